// What a run says, as a stream of events. The terminal, `--json` and the client of a remote run read the same stream,
// so what an operator sees over SSH is what the host saw.
import { z } from "zod"

/** Raised when an event changes in a way that a reader of the older ones can't take. */
export const eventsVersion = 1

const findingSchema = z.object({
	state: z.enum(["satisfied", "needed", "unknown"]),
	because: z.string(),
	hint: z.string().optional(),
})

const summaryRowSchema = z.object({
	artifact: z.string(),
	source: z.string(),
	snapshot: z.string(),
	ageSeconds: z.number().optional(),
	digest: z.string().optional(),
	verified: z.string(),
	ok: z.boolean(),
})

const modelSchema = z.object({
	/** Where it was looked for, in the operator's words: `share`, `r2`, a directory. */
	place: z.string(),
	/** `<directory>/<file>` */
	path: z.string(),
	/** `ok`, `missing`, `truncated`, … */
	status: z.string(),
	/** For what is right the deepest tier that was proven, else the one that decided. */
	tier: z.string(),
	because: z.string(),
	/** Stands in the manifest, and not as optional. */
	needed: z.boolean(),
	/** False makes the run end with 3. */
	right: z.boolean(),
	sizeBytes: z.number().optional(),
	/** Of its bytes, where they were read. */
	sha256: z.string().optional(),
	/** When they were read. */
	hashedAt: z.iso.datetime().optional(),
})

/** What is to be said of one model in one place. */
export type ModelFacts = z.infer<typeof modelSchema>

const workflowSchema = z.object({
	/** Below the directory of workflows. */
	path: z.string(),
	/** `ok`, `incomplete`: a model is not there; `broken`: it can't be judged. */
	status: z.enum(["ok", "incomplete", "broken"]),
	because: z.string().optional(),
	/** False makes the run end with 3. */
	right: z.boolean(),
	models: z.array(
		z.object({
			name: z.string(),
			directory: z.string().optional(),
			/** Only nodes load it that don't run: muted, bypassed, or set aside. */
			optional: z.boolean(),
			nodes: z.array(z.object({ type: z.string(), id: z.string() })),
			/** The path of what provides it. Without `because` it is right. */
			providedBy: z.string().optional(),
			/** Why the workflow doesn't have it. */
			because: z.string().optional(),
			/** Where it can be had. */
			url: z.string().optional(),
			repository: z.string().optional(),
			gated: z.boolean().optional(),
		}),
	),
})

/** What is to be said of one workflow and the models it needs. */
export type WorkflowFacts = z.infer<typeof workflowSchema>

const modelPathsSchema = z.object({
	/** The file, as the operator named it. */
	path: z.string(),
	line: z.number().optional(),
	severity: z.enum(["error", "warning"]),
	message: z.string(),
})

/** One thing that is wrong with an extra_model_paths.yaml. */
export type ModelPathsFacts = z.infer<typeof modelPathsSchema>

const containerSchema = z.object({
	/** As in `comfy-user001`. */
	container: z.string(),
	/** Its name in the compose files; absent where it is no part of them. */
	service: z.string().optional(),
	/** It is one of the stack's. */
	expected: z.boolean(),
	/** Docker's word, `running`, `exited`, …; `missing` where there is no such container. */
	state: z.string(),
	/** Docker's word, `healthy`, `unhealthy`, `starting`; `none` where nothing is checked. */
	health: z.string(),
	/** From when it runs, or doesn't any more. */
	since: z.iso.datetime().optional(),
	/** How often Docker has started it again by itself. */
	restarts: z.number(),
	/** It runs the image that its name stands for now; absent where that can't be said. */
	imageCurrent: z.boolean().optional(),
	/** It was started from the files as they are now. */
	configurationCurrent: z.boolean().optional(),
	/** False makes the run end with 3. */
	right: z.boolean(),
	because: z.string(),
})

/** What is to be said of one container. */
export type ContainerFacts = z.infer<typeof containerSchema>

const logLineSchema = z.object({
	container: z.string(),
	/** When the container said it, as Docker noted it. */
	saidAt: z.string().optional(),
	text: z.string(),
})

/** A line of a container's log. */
export type LogLine = z.infer<typeof logLineSchema>

const changeSchema = z.object({
	/** `new`, `changed`, `mode` of a file; `new password`, `new secret`, `removed`, `directory`. */
	change: z.string(),
	name: z.string(),
	/** Its lines, those with `+` new and those with `-` gone; never of what is secret. */
	diff: z.array(z.string()).optional(),
})

/** One thing that a step changes. */
export type ChangeFacts = z.infer<typeof changeSchema>

const timerSchema = z.object({
	/** As in `backup`. */
	timer: z.string(),
	by: z.enum(["systemd", "cron"]),
	/** `on`, `off`, `missing`, or `changed`: not as it was written. */
	state: z.string(),
	lastRunAt: z.iso.datetime().optional(),
	/** How that run ended: `exit 0`, `timeout (15)`; `under way`. */
	result: z.string().optional(),
	nextRunAt: z.iso.datetime().optional(),
	/** False makes the run end with 3. */
	right: z.boolean(),
	because: z.string(),
})

/** What is to be said of one timer. */
export type TimerFacts = z.infer<typeof timerSchema>

const fileSystemSchema = z.object({
	/** What lies on it, the first one as it was asked for. */
	paths: z.array(z.string()),
	/** The device or the share, as `df` names it. */
	source: z.string(),
	sizeBytes: z.number(),
	/** What root's runs and everybody else's can still write. */
	freeBytes: z.number(),
	usedPercent: z.number(),
	/** Absent where the file system counts none. */
	inodesUsedPercent: z.number().optional(),
	level: z.enum(["ok", "warning", "critical"]),
})

/** What is to be said of the room on one file system. */
export type FileSystemFacts = z.infer<typeof fileSystemSchema>

/** One artifact brought back from one destination. */
export const drillResultSchema = z.object({
	artifact: z.string(),
	/** `share`, `r2` */
	destination: z.string(),
	/** The snapshot that was brought back; absent where there is none. */
	snapshot: z.string().optional(),
	ok: z.boolean(),
	/** What was proven, or what is wrong. */
	because: z.string(),
	/** How old the state is that would come back: what was done since is lost (recovery point). */
	ageSeconds: z.number().optional(),
	/** How long fetching, unpacking and comparing took (recovery time). */
	tookSeconds: z.number().optional(),
	/** Of the archive. */
	sizeBytes: z.number().optional(),
	/** False for an encrypted one whose key wasn't at hand: its bytes are right, and whether it can be opened isn't known. */
	opened: z.literal(false).optional(),
})

const drillSchema = z.object({
	/** The comfyume that did it. */
	comfyume: z.string(),
	drilledAt: z.iso.datetime(),
	exitCode: z.number(),
	results: z.array(drillResultSchema),
})

/** What one drill has found. */
export type DrillFacts = z.infer<typeof drillSchema>

const outcomeSchema = z.enum(["satisfied", "applied", "planned", "failed", "blocked", "aborted"])

/** How a step ended. `planned` is what a dry run says of a step that it would apply. */
export type Outcome = z.infer<typeof outcomeSchema>

/** Steps of different lanes run side by side: their events come in any order. */
const stepsSchema = z.array(z.object({ id: z.string(), title: z.string(), lane: z.string().optional() }))

const bodySchema = z.discriminatedUnion("event", [
	z.object({
		event: z.literal("plan"),
		command: z.string(),
		environment: z.string(),
		host: z.string(),
		place: z.string(),
		dryRun: z.boolean(),
		steps: stepsSchema,
	}),
	/** The steps of the plan's next part, which were not known before. */
	z.object({ event: z.literal("steps"), steps: stepsSchema }),
	z.object({ event: z.literal("checking"), step: z.string() }),
	z.object({ event: z.literal("checked"), step: z.string(), finding: findingSchema }),
	z.object({ event: z.literal("applying"), step: z.string() }),
	z.object({
		event: z.literal("progress"),
		step: z.string(),
		doneBytes: z.number(),
		totalBytes: z.number().optional(),
		from: z.string().optional(),
	}),
	z.object({
		event: z.literal("note"),
		step: z.string().optional(),
		level: z.enum(["info", "warning"]),
		text: z.string(),
	}),
	modelSchema.extend({ event: z.literal("model"), step: z.string().optional() }),
	workflowSchema.extend({ event: z.literal("workflow"), step: z.string().optional() }),
	modelPathsSchema.extend({ event: z.literal("model-paths"), step: z.string().optional() }),
	containerSchema.extend({ event: z.literal("container"), step: z.string().optional() }),
	changeSchema.extend({ event: z.literal("change"), step: z.string().optional() }),
	logLineSchema.extend({ event: z.literal("log"), step: z.string().optional() }),
	timerSchema.extend({ event: z.literal("timer"), step: z.string().optional() }),
	fileSystemSchema.extend({ event: z.literal("file-system"), step: z.string().optional() }),
	drillSchema.extend({ event: z.literal("drill"), step: z.string().optional() }),
	/** A text for people, as a whole; Markdown. */
	z.object({ event: z.literal("document"), step: z.string().optional(), text: z.string() }),
	z.object({
		event: z.literal("step"),
		step: z.string(),
		outcome: outcomeSchema,
		/** What was found, or what kept it from being looked at. */
		because: z.string(),
		/** Of a line of a checklist: what was asked; `because` is the answer. */
		asked: z.string().optional(),
		hint: z.string().optional(),
		durationMs: z.number(),
	}),
	z.object({
		event: z.literal("error"),
		message: z.string(),
		hint: z.string().optional(),
		exitCode: z.number(),
	}),
	z.object({
		event: z.literal("end"),
		exitCode: z.number(),
		satisfied: z.number(),
		applied: z.number(),
		planned: z.number(),
		failed: z.number(),
		durationMs: z.number(),
		summary: z.array(summaryRowSchema),
		next: z.string().optional(),
	}),
])

/** What happened, without when: what the runner makes. */
export type EventBody = z.infer<typeof bodySchema>

/** One line of `--json`: the version of the schema, the time in ISO 8601 UTC, and what happened. */
export const eventSchema = z.intersection(
	z.object({ version: z.literal(eventsVersion), at: z.iso.datetime() }),
	bodySchema,
)

export type Event = z.infer<typeof eventSchema>

/** Takes events as they happen. Must not throw: a broken screen never changes the work's result. */
export type Reporter = {
	event(event: Event): void
	/** Called once, after the last event; resolves when all is written. */
	close(): Promise<void>
}
