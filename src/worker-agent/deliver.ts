// Handing in how a job ended, until the queue manager has taken it.
import type { Logger } from "pino"
import { messageOf } from "../lib/errors.ts"
import { bell } from "./bell.ts"
import type { Ending, Note, Notebook } from "./note.ts"
import type { QueueClient, Taken } from "./queue-client.ts"

export type Delivery = "taken" | "refused" | "given up" | "interrupted"

// The queue manager keeps what belongs to a job for a day.
const mostMs = 24 * 3600 * 1000
const firstWaitMs = 500
const longestWaitMs = 30_000

/**
 * Asks again and again, waiting longer each time, until it is answered, a day has passed, or `stop` is aborted. In the
 * last case the note stays for the next start.
 * @param gone aborted with the reason `cancelled` when nobody wants to hear of the job any more
 * @param note has an ending, and stands in the notebook
 */
export async function deliver(
	note: Note & { ending: Ending },
	queue: QueueClient,
	notebook: Notebook,
	stop: AbortSignal,
	{ log, now, gone }: { log: Logger; now: () => number; gone?: AbortSignal },
): Promise<Delivery> {
	const rest = gone === undefined ? bell(stop) : bell(stop, gone)
	let ending = note.ending
	for (let waitMs = firstWaitMs; ; waitMs = Math.min(waitMs * 2, longestWaitMs)) {
		if (gone?.aborted === true && gone.reason === "cancelled") return "refused"
		try {
			const taken = await hand(note, ending, queue)
			if (taken.state === "taken") return "taken"
			log.warn({ job: note.id, because: taken.because }, "the queue manager refused how the job ended")
			if (ending.state !== "completed" || taken.status === 404 || taken.status === 409) return "refused"
			// A result that can't be taken (too large, say) must not leave its job running.
			ending = { state: "failed", error: `its result was refused: ${taken.because}`, retryable: false }
			await notebook.write({ ...note, ending })
			continue
		} catch (error) {
			log.warn({ job: note.id, error: messageOf(error) }, "the queue manager can't be told how the job ended")
		}
		if (now() - (note.endedMs ?? now()) > mostMs) return "given up"
		if (stop.aborted) return "interrupted"
		await rest.wait(waitMs)
	}
}

function hand(note: Note, ending: Ending, queue: QueueClient): Promise<Taken> {
	const lease = { id: note.id, leaseToken: note.leaseToken }
	if (ending.state === "completed") return queue.complete(lease, ending.result)
	if (ending.state === "failed") return queue.fail(lease, ending.error, ending.retryable)
	return queue.release(lease, ending.because)
}
