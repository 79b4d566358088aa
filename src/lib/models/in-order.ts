// Several pieces of work at once, their results in the order in which they were given.

/**
 * Starts at most `together` pieces of work at a time and yields their results in order. A failure is thrown where its
 * result would stand, after those before it; pieces that were not started by then never are.
 */
export async function* inOrder<T>(works: readonly (() => Promise<T>)[], together: number): AsyncGenerator<T> {
	const started: Promise<T>[] = []
	let next = 0
	const start = () => {
		const work = works[next++]
		if (work === undefined) return
		const running = work()
		// Whoever waits for it hears of its failure; until then it is no stray one.
		running.catch(() => {})
		started.push(running)
	}
	try {
		while (started.length < together && next < works.length) start()
		for (let first = started.shift(); first !== undefined; first = started.shift()) {
			const result = await first
			start()
			yield result
		}
	} finally {
		// What is under way reads files that the caller is about to close.
		await Promise.allSettled(started)
	}
}
