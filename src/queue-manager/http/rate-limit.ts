// So many at once, and then so many a second: for each who asks.

/** Makes a limit. @returns whether `who` may, at a time in ms; saying yes counts */
export function createRateLimit({ burst, perSecond }: { burst: number; perSecond: number }) {
	const left = new Map<string, { tokens: number; atMs: number }>()
	return (who: string, nowMs: number): boolean => {
		// Those who were quiet long enough are as good as new.
		if (left.size > 10_000) {
			for (const [one, { atMs }] of left) if (nowMs - atMs > (burst / perSecond) * 1000) left.delete(one)
		}
		const known = left.get(who) ?? { tokens: burst, atMs: nowMs }
		const tokens = Math.min(burst, known.tokens + ((nowMs - known.atMs) / 1000) * perSecond)
		const may = tokens >= 1
		left.set(who, { tokens: may ? tokens - 1 : tokens, atMs: nowMs })
		return may
	}
}
