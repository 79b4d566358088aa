// How long a job will wait, from how long jobs of its kind and of those before it took lately.
import type { QueueStatus } from "./queue/status.ts"

const fewest = 3

/**
 * Seconds until a waiting job starts, or null until jobs of its kind were seen three times. What stands before it is
 * taken to be mixed as the whole queue is; kinds that are not known yet are taken to be as the others on average.
 */
export function waitSeconds(
	{ kinds, running, activeWorkers, nowMs }: QueueStatus,
	kind: string,
	position: number | null,
): number | null {
	if (position === null) return null
	const averages = new Map<string, number>()
	for (const [name, { ranMs }] of kinds) {
		if (ranMs.length >= fewest) averages.set(name, mean(ranMs))
	}
	if (!averages.has(kind)) return null
	const usual = mean([...averages.values()])
	const average = (name: string) => averages.get(name) ?? usual

	const workers = Math.max(1, activeWorkers)
	if (position < workers - running.length) return 0
	const waiting = [...kinds].reduce((sum, [, one]) => sum + one.waiting, 0)
	const all = [...kinds].reduce((sum, [name, one]) => sum + one.waiting * average(name), 0)
	const before = waiting === 0 ? 0 : position * (all / waiting)
	const remaining = running.reduce(
		(sum, one) => sum + Math.max(0, average(one.kind) - (nowMs - one.startedMs)),
		0,
	)
	return Math.ceil((before + remaining) / workers / 1000)
}

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length
