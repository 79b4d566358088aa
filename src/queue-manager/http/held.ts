// A request that is held until its job ends: for the client that blocks until it has the result.
import type { Socket } from "node:net"
import type { Found } from "../queue/queue.ts"
import type { Service } from "../service.ts"

// nginx gives up after 600 s; the answer must be there before.
const longestMs = 590_000
// Events may be missed while Redis is away: looked at again now and then.
const lookAgainMs = 5000

/**
 * Waits until a job has ended, and gives it as it is then: with its result, or still running when the time is up, the
 * client has gone, or the queue manager stops.
 */
export async function heldUntilDone(service: Service, first: Found, client: Socket): Promise<Found> {
	const { queue, hub, closing } = service
	const id = first.record.id
	// The job is accepted: that Redis goes away now is no reason to say anything else.
	const status = await service.status().catch(() => undefined)
	const maxWaitMs = Number(status?.config.get("max_wait") ?? 600) * 1000
	const deadline = service.now() + Math.min(maxWaitMs, longestMs)
	for (let found = first; ; ) {
		const isOver = service.now() >= deadline || closing.aborted || client.destroyed
		found = (await queue.find(id).catch(() => undefined)) ?? found
		const { status: state } = found.record
		if (isOver || (state !== "pending" && state !== "running")) return found
		await changed(Math.min(lookAgainMs, deadline - service.now()))
	}

	/** Until something happened to the job, or the time is up. */
	function changed(mostMs: number): Promise<void> {
		return new Promise((resolve) => {
			const done = () => {
				clearTimeout(timer)
				forget()
				closing.removeEventListener("abort", done)
				client.off("close", done)
				resolve()
			}
			const timer = setTimeout(done, Math.max(0, mostMs))
			const forget = hub.onChange((record) => {
				if (record.id === id) done()
			})
			closing.addEventListener("abort", done)
			client.once("close", done)
		})
	}
}
