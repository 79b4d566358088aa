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

const outcomeSchema = z.enum(["satisfied", "applied", "planned", "failed", "blocked", "aborted"])

/** How a step ended. `planned` is what a dry run says of a step that it would apply. */
export type Outcome = z.infer<typeof outcomeSchema>

const bodySchema = z.discriminatedUnion("event", [
	z.object({
		event: z.literal("plan"),
		command: z.string(),
		environment: z.string(),
		host: z.string(),
		place: z.string(),
		dryRun: z.boolean(),
		steps: z.array(z.object({ id: z.string(), title: z.string() })),
	}),
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
	z.object({
		event: z.literal("step"),
		step: z.string(),
		outcome: outcomeSchema,
		because: z.string(),
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
