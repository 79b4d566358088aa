// Waiting for a condition: with a deadline, never a bare sleep.
import { setTimeout as pause } from "node:timers/promises"

export type PollOptions = {
	/** What is waited for, as the error says it. */
	what: string
	deadlineMs: number
	intervalMs?: number
}

/**
 * Asks until the answer is something else than `undefined` or `false`, and gives that answer.
 * @throws {Error} naming what was waited for, when the deadline passes.
 */
export async function poll<T>(
	ask: () => Promise<T | undefined | false> | T | undefined | false,
	{ what, deadlineMs, intervalMs = 20 }: PollOptions,
): Promise<T> {
	const startedAt = performance.now()
	for (;;) {
		const answer = await ask()
		if (answer !== undefined && answer !== false) return answer
		if (performance.now() - startedAt > deadlineMs) throw new Error(`${what}: not within ${deadlineMs} ms`)
		await pause(intervalMs)
	}
}
