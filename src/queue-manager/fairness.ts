// How evenly users were served lately, as one number: Jain's index, 1 when all got the same, 1/n when one got it all.

/** @param windowMs what counts as lately */
export function createFairness(windowMs: number) {
	const starts: { user: string; atMs: number }[] = []
	return {
		/** A user's job was started. */
		served(user: string, atMs: number): void {
			starts.push({ user, atMs })
			forget(atMs)
		},
		/** @returns 1 also when nobody was served */
		index(nowMs: number): number {
			forget(nowMs)
			const counts = [...Map.groupBy(starts, ({ user }) => user).values()].map(({ length }) => length)
			return jainIndex(counts)
		},
	}

	function forget(nowMs: number): void {
		const first = starts.findIndex(({ atMs }) => atMs > nowMs - windowMs)
		starts.splice(0, first < 0 ? starts.length : first)
	}
}

/** (sum of x)² / (n * sum of x²) */
export function jainIndex(values: readonly number[]): number {
	const sum = values.reduce((all, value) => all + value, 0)
	const squares = values.reduce((all, value) => all + value * value, 0)
	return squares === 0 ? 1 : (sum * sum) / (values.length * squares)
}
