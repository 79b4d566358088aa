// How long a job will wait, from how long jobs of its kind and of those before it took lately.
import type { QueueStatus } from "./queue/status.ts"

const fewest = 3

/**
 * Seconds until a waiting job starts, or null while too little is known: some kind that waits or runs was not yet seen
 * three times. What stands before it is taken to be mixed as the whole queue is.
 */
export function waitSeconds(
	{ kinds, running, activeWorkers, nowMs }: QueueStatus,
	position: number | null,
): number | null {
	if (position === null) return null
	const averages = new Map<string, number>()
	for (const [kind, { ranMs }] of kinds) {
		if (ranMs.length < fewest) return null
		averages.set(kind, ranMs.reduce((sum, ms) => sum + ms, 0) / ranMs.length)
	}
	const average = (kind: string) => averages.get(kind) ?? 0
	const waiting = [...kinds].reduce((sum, [, one]) => sum + one.waiting, 0)
	const all = [...kinds].reduce((sum, [kind, one]) => sum + one.waiting * average(kind), 0)
	const workers = Math.max(1, activeWorkers)
	const remaining = running.reduce(
		(sum, { kind, startedMs }) => sum + Math.max(0, average(kind) - (nowMs - startedMs)),
		0,
	)
	const before = waiting === 0 ? 0 : position * (all / waiting)
	const free = workers - running.length
	if (position < free) return 0
	return Math.ceil((before + remaining) / workers / 1000)
}
