// The one idea: a command is a Plan, an ordered list of Steps that read the world, change it, and read it again.
import type {
	ChangeFacts,
	ContainerFacts,
	DrillFacts,
	FileSystemFacts,
	LogLine,
	ModelFacts,
	ModelPathsFacts,
	TimerFacts,
	WorkflowFacts,
} from "./events.ts"

/** What a check found out, and why it says so. The reason is shown to the operator as it stands. */
export type Finding =
	| { state: "satisfied"; because: string }
	| { state: "needed"; because: string; hint?: string }
	| { state: "unknown"; because: string; hint?: string }

/** How far a transfer or another long piece of work has come. Sizes in bytes. */
type Progress = {
	doneBytes: number
	totalBytes?: number
	/** Where the bytes come from, in the operator's words: `share`, `r2`. */
	from?: string
}

/** What a step tells while it works. */
export type Report = {
	progress(progress: Progress): void
	/** Something the operator should know although the step goes on. */
	note(text: string): void
	/** A note that also makes the run end with exit code 3: work went on, but something is wrong. */
	warn(text: string): void
	/** What was found out of one model in one place. */
	model(facts: ModelFacts): void
	/** What was found out of one workflow. */
	workflow(facts: WorkflowFacts): void
	/** What is wrong with a file that tells ComfyUI where models lie. */
	modelPaths(facts: ModelPathsFacts): void
	/** What was found out of one container of the stack. */
	container(facts: ContainerFacts): void
	/** What is to be changed, or was. */
	change(facts: ChangeFacts): void
	/** A line of a container's log. */
	log(line: LogLine): void
	/** What was found out of one timer. */
	timer(facts: TimerFacts): void
	/** What was found out of the room on one file system. */
	fileSystem(facts: FileSystemFacts): void
	/** What a drill has found, this one or an earlier one. */
	drill(facts: DrillFacts): void
	/** A text for people, as a whole; Markdown. */
	document(text: string): void
}

export type Step = {
	/** Unique in its plan; what `--only` and `--json` call it. */
	id: string
	title: string
	/** What its check asks, as an operator would by hand; for a checklist, in which the finding is the answer. */
	asked?: string
	/** Steps that must be satisfied before this one is touched. A step without them goes on when others failed. */
	requires?: readonly string[]
	/** Steps of different lanes run side by side (lanes.ts). Without one, a step waits for all before it. */
	lane?: string
	/** What it finds satisfied stays so when those that it requires are applied: a dry run counts on that. */
	lasting?: boolean
	/** Only reads. Throws only for what makes the answer impossible (unreachable, refused credentials). */
	check(report: Report): Promise<Finding>
	/** Changes the world. Its success is judged by the next check, never by its return. */
	apply(report: Report): Promise<void>
}

export type Plan = {
	/** The command, as in `restore`. */
	command: string
	environment: string
	/** The host the plan works on, by its configured name. */
	host: string
	/** Where that host really is, in the operator's words; a stand-in says here that it is one. */
	place: string
	steps: readonly Step[]
	/**
	 * What comes after them, worked out when they have run, whatever became of them: it depends on what they brought. It
	 * only reads. Throws what makes the rest impossible; the run then ends with that.
	 */
	following?: (before: Before) => Promise<Following | undefined>
	/**
	 * Its checks may be asked side by side and before their turn, as long as nothing is to be done (ahead.ts): a step's
	 * check must not need what an earlier step's check has left behind.
	 */
	checksAhead?: boolean
	/** What should be known before the first step. A `warning` is also said to who wants quiet; the exit code stays. */
	notes?: readonly { level: "info" | "warning"; text: string }[]
	/** Facts gathered on the way, asked for after the last step: the rows of the closing table. */
	summary?: () => readonly SummaryRow[]
	/** The next command to type, by how it ended. */
	next?: (ended: { exitCode: number; dryRun: boolean }) => string | undefined
}

/** What became of the parts before. */
export type Before = {
	/** Something was changed, or could not be. */
	touched: boolean
}

/** A later part of a plan. Its steps may require those of the parts before. */
export type Following = Pick<Plan, "steps" | "notes" | "following">

/** One row of the table that closes a backup or a restore. */
export type SummaryRow = {
	artifact: string
	/** Where it came from (restore) or all places it stands in (backup). */
	source: string
	snapshot: string
	/** Age in seconds at the end of the run. */
	ageSeconds?: number
	/** First 12 digits of the archive's digest, or of the commit. */
	digest?: string
	/** What was proven, or what is missing and why. */
	verified: string
	ok: boolean
}

export const satisfied = (because: string): Finding => ({ state: "satisfied", because })

export const needed = (because: string, hint?: string): Finding => ({
	state: "needed",
	because,
	...(hint === undefined ? {} : { hint }),
})

export const unknown = (because: string, hint?: string): Finding => ({
	state: "unknown",
	because,
	...(hint === undefined ? {} : { hint }),
})

/**
 * Another plan's steps as a part of this one: their ids, and what they require of each other, get a name in front.
 * @param requires what all of them require beside that
 */
export function within(name: string, steps: readonly Step[], requires: readonly string[] = []): Step[] {
	const own = new Set(steps.map(({ id }) => id))
	return steps.map((step) => ({
		...step,
		id: `${name}/${step.id}`,
		requires: [...requires, ...(step.requires ?? []).map((id) => (own.has(id) ? `${name}/${id}` : id))],
		...(step.lane === undefined ? {} : { lane: `${name}/${step.lane}` }),
	}))
}

/**
 * Parts one after another, each worked out when the one before has run. One without steps is passed over; what it notes
 * is said with the next.
 */
export async function inTurn(
	[first, ...rest]: readonly ((before: Before) => Promise<Following>)[],
	before: Before = { touched: false },
	notes: NonNullable<Following["notes"]> = [],
): Promise<Following> {
	if (first === undefined) return { steps: [], notes }
	const part = await first(before)
	const said = [...notes, ...(part.notes ?? [])]
	if (part.steps.length === 0) return inTurn(rest, before, said)
	const following = (since: Before) => inTurn(rest, since)
	return { ...part, notes: said, ...(rest.length === 0 ? {} : { following }) }
}
