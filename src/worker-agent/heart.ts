// Heartbeats for one job: they keep its lease, carry its progress, and hear when it isn't wanted any more.
import type { Logger } from "pino"
import { messageOf } from "../lib/errors.ts"
import { bell } from "./bell.ts"
import type { Progress } from "./progress.ts"
import type { Lease, QueueClient } from "./queue-client.ts"

export type Heart = {
	/** Aborted when the job is not ours any more; its reason is `cancelled` or `lost`. */
	gone: AbortSignal
	/** What the next beat tells. */
	tell(progress: Progress): void
	/** Ends it, and waits for a beat that is under way. */
	stop(): Promise<void>
}

/**
 * Beats at once and then every `intervalMs`. A queue manager that is away is no reason to stop: the job goes on, and
 * whether its lease held is for the queue manager to say.
 */
export function startHeart(
	queue: Pick<QueueClient, "heartbeat">,
	lease: Lease,
	intervalMs: number,
	about: () => object,
	log: Logger,
): Heart {
	const gone = new AbortController()
	const stopped = new AbortController()
	const pulse = bell(stopped.signal)
	let latest: Progress | undefined
	let told: Progress | undefined

	async function beat(): Promise<void> {
		const news = latest
		try {
			const answer = await queue.heartbeat(lease, news === told ? undefined : news, about())
			told = news
			if (answer !== "cancelled" && answer !== "lost") return
			log.info({ job: lease.id, answer }, "the job is not ours any more")
			gone.abort(answer)
			stopped.abort()
		} catch (error) {
			log.warn({ job: lease.id, error: messageOf(error) }, "a heartbeat was not heard")
		}
	}

	async function run(): Promise<void> {
		while (!stopped.signal.aborted) {
			await beat()
			await pulse.wait(intervalMs)
		}
	}

	const running = run()
	return {
		gone: gone.signal,
		tell(progress) {
			latest = progress
		},
		async stop() {
			stopped.abort()
			await running
		},
	}
}
