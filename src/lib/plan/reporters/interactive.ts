// A person's terminal: a list of steps that fills in as the events come, drawn by listr2.
import {
	DefaultRenderer,
	Listr,
	ListrLogger,
	ListrTaskState,
	type ListrTaskWrapper,
	ProcessOutput,
	type SimpleRenderer,
} from "listr2"
import { paint } from "../../ui/color.ts"
import { printable, wrapText } from "../../ui/format.ts"
import type { Terminal } from "../../ui/surroundings.ts"
import type { Event, Reporter } from "../events.ts"
import { createClosing, readableWidth } from "./closing.ts"
import { createPace, type Pace } from "./pace.ts"
import { headline, outcomeWords } from "./plain.ts"

type StepEvent = Extract<Event, { event: "step" }>
type PlanEvent = Extract<Event, { event: "plan" }>
/** The steps of a plan, or of a later part of it, which is drawn as a list of its own below the first. */
type StepsEvent = PlanEvent | Extract<Event, { event: "steps" }>

// listr2 asks stdout whether it is a terminal; ours is stderr, and chooseReporter has asked already.
class TerminalRenderer extends DefaultRenderer {
	static override nonTTY = true
}

type Task = ListrTaskWrapper<unknown, typeof TerminalRenderer, typeof SimpleRenderer>

type Line = {
	title: string
	/** What stands behind the title at the moment. */
	state: string
	notes: string[]
	pace: Pace
	/** From when listr2 has come to the step. */
	task?: Task
	/** Its step is being checked: with lanes, listr2 comes to all of them at once. */
	begun: PromiseWithResolvers<void>
	ended: PromiseWithResolvers<StepEvent | undefined>
}

type List = { lines: ReadonlyMap<string, Line>; drawn: Promise<unknown> }

/** Draws on stderr. The closing is printed below the list. */
export function interactiveReporter(terminal: Terminal): Reporter {
	const closing = createClosing(terminal, { quiet: false })
	let list: List | undefined
	// What came while there was no list to show it in.
	const loose: string[] = []
	// Events come in one by one, and listr2 needs turns of its own: each list waits for the one before it.
	let previous: Promise<unknown> = Promise.resolve()

	const begin = (plan: StepsEvent) => {
		finish()
		list = draw(terminal, plan, previous)
		previous = list.drawn
	}
	const finish = () => {
		for (const line of list?.lines.values() ?? []) {
			line.begun.resolve()
			line.ended.resolve(undefined)
		}
	}

	return {
		event(event) {
			closing.event(event)
			if (event.event === "plan" || event.event === "steps") return begin(event)
			const line = "step" in event && event.step !== undefined ? list?.lines.get(event.step) : undefined
			if (line !== undefined) return follow(line, event)
			if (event.event === "note") loose.push(`${event.level}: ${printable(event.text)}`)
		},
		async close() {
			finish()
			await previous
			for (const text of loose) terminal.talk(`${text}\n`)
			closing.print()
		},
	}
}

function follow(line: Line, event: Event): void {
	switch (event.event) {
		case "checking":
			line.begun.resolve()
			line.state = "checking"
			break
		case "checked":
			line.state = printable(event.finding.because)
			break
		case "applying":
			line.state = "applying"
			break
		case "progress":
			line.state = line.pace.describe(event, Date.parse(event.at))
			break
		case "note": {
			const note = `${event.level === "warning" ? "warning: " : ""}${printable(event.text)}`
			line.notes.push(note)
			if (line.task !== undefined) line.task.output = note
			break
		}
		case "step":
			line.state =
				event.outcome === "planned"
					? `${outcomeWords.planned}: ${printable(event.because)}`
					: printable(event.because)
			line.begun.resolve()
			line.ended.resolve(event)
			break
	}
	if (line.task !== undefined) line.task.title = titleOf(line)
}

const titleOf = ({ title, state }: Line) => (state === "" ? title : `${title}: ${state}`)

function draw(terminal: Terminal, plan: StepsEvent, previous: Promise<unknown>): List {
	const lines = new Map(
		plan.steps.map(({ id, title }): [string, Line] => [
			id,
			{
				title: printable(title),
				state: "",
				notes: [],
				pace: createPace(),
				begun: Promise.withResolvers(),
				ended: Promise.withResolvers(),
			},
		]),
	)
	const drawn = previous.then(async () => {
		const head = plan.event === "plan" ? headline(plan) : undefined
		for (const text of head === undefined ? [] : wrapText(head, readableWidth(terminal.columns)))
			terminal.talk(`${text}\n`)
		const sideBySide = plan.steps.some(({ lane }) => lane !== undefined)
		await listOf(terminal, lines, sideBySide).run()
	})
	return { lines, drawn: drawn.catch(() => undefined) }
}

function listOf(terminal: Terminal, lines: ReadonlyMap<string, Line>, sideBySide: boolean) {
	const colors = paint(terminal.color)
	const same = (text: string | undefined) => text ?? ""
	const tasks = [...lines.values()].map((line) => ({
		title: line.title,
		rendererOptions: { outputBar: Number.POSITIVE_INFINITY, persistentOutput: true },
		task: async (_: unknown, task: Task) => {
			line.task = task
			if (sideBySide) {
				// To listr2 they have all started; to a person those that wait have not.
				task.task.state$ = ListrTaskState.WAITING
				await line.begun.promise
				task.task.state$ = ListrTaskState.STARTED
			}
			task.title = titleOf(line)
			for (const note of line.notes) task.output = note
			const ended = await line.ended.promise
			const outcome = ended?.outcome ?? "aborted"
			if (outcome === "failed") throw new Error(titleOf(line))
			if (outcome === "planned" || outcome === "blocked" || outcome === "aborted") task.skip(titleOf(line))
		},
	}))
	return new Listr(tasks, {
		concurrent: sideBySide,
		exitOnError: false,
		// Signals belong to cli.ts; listr2 would exit with 127 on Ctrl-C.
		registerSignalListeners: false,
		renderer: TerminalRenderer,
		fallbackRendererCondition: false,
		silentRendererCondition: false,
		rendererOptions: {
			logger: new ListrLogger({ useIcons: true, toStderr: [], processOutput: outputTo(terminal) }),
			collapseErrors: true,
			showErrorMessage: false,
			suffixSkips: false,
			formatOutput: "wrap",
			// listr2 brings colors of its own, which ask stdout and not the terminal.
			color: {
				COMPLETED: (text) => colors.good(same(text)),
				FAILED: (text) => colors.bad(same(text)),
				PENDING: (text) => colors.warning(same(text)),
				SKIPPED_WITH_COLLAPSE: (text) => colors.warning(same(text)),
				WAITING: (text) => colors.faint(same(text)),
				OUTPUT: same,
			},
		},
	})
}

/** A stream for listr2 that writes where we talk, and is never narrower than what can be read. */
function outputTo(terminal: Terminal): ProcessOutput {
	const stream = {
		isTTY: true,
		get columns() {
			return readableWidth(terminal.columns)
		},
		get rows() {
			return terminal.rows ?? 24
		},
		write(chunk: string | Uint8Array) {
			terminal.talk(typeof chunk === "string" ? chunk : Buffer.from(chunk).toString())
			return true
		},
		on: () => stream,
		once: () => stream,
		off: () => stream,
	} as unknown as NodeJS.WriteStream
	return new ProcessOutput(stream, stream, { leaveEmptyLine: false })
}
