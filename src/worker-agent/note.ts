// The agent's memory across its own restarts: one file that says which job is at hand, or how it ended.
import { mkdir, open, readFile, rename, rm } from "node:fs/promises"
import { join } from "node:path"
import { z } from "zod"
import { codeOf, systemError } from "../lib/errors.ts"

/** How a job ended here. */
export type Ending = z.infer<typeof endingSchema>
/** The job at hand. `ending` is set when it has ended and the queue manager hasn't taken that yet. */
export type Note = z.infer<typeof noteSchema>

export type Notebook = ReturnType<typeof openNotebook>

const endingSchema = z.union([
	z.object({ state: z.literal("completed"), result: z.record(z.string(), z.unknown()) }),
	z.object({ state: z.literal("failed"), error: z.string(), retryable: z.boolean() }),
	z.object({ state: z.literal("handed back"), because: z.string() }),
])
const noteSchema = z.object({
	version: z.literal(1),
	id: z.string(),
	attempt: z.number(),
	leaseToken: z.string().optional(),
	promptId: z.string(),
	/** Nodes that must have saved something. */
	saving: z.array(z.string()),
	startedMs: z.number(),
	ending: endingSchema.optional(),
	endedMs: z.number().optional(),
})

/** Opens the directory that holds the note; it is made if it isn't there. */
export function openNotebook(directory: string) {
	const file = join(directory, "job.json")

	return {
		/** @throws {OperatorError} when the directory can't be written: nothing would survive a restart */
		async prepare(): Promise<void> {
			try {
				await mkdir(directory, { recursive: true, mode: 0o700 })
				const probe = join(directory, "probe.partial")
				await (await open(probe, "w", 0o600)).close()
				await rm(probe)
			} catch (error) {
				throw systemError(error, `writing to WORKER_STATE_PATH ${directory}`)
			}
		},

		/** The note, if there is one that can be read. A torn or foreign file counts as none. */
		async read(): Promise<Note | undefined> {
			try {
				return noteSchema.parse(JSON.parse(await readFile(file, "utf8")))
			} catch (error) {
				if (codeOf(error) === "ENOENT" || error instanceof SyntaxError || error instanceof z.ZodError)
					return undefined
				throw systemError(error, `reading ${file}`)
			}
		},

		/** Replaces the note; afterwards it survives a power cut. */
		async write(note: Note): Promise<void> {
			const partial = `${file}.partial`
			try {
				const handle = await open(partial, "w", 0o600)
				try {
					await handle.writeFile(JSON.stringify(note))
					await handle.sync()
				} finally {
					await handle.close()
				}
				await rename(partial, file)
				const folder = await open(directory, "r")
				await folder.sync().finally(() => folder.close())
			} catch (error) {
				throw systemError(error, `writing ${file}`)
			}
		},

		clear: () => rm(file, { force: true }),
	}
}
