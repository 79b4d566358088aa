// "Did you mean …?": the known word nearest to a mistyped one.

/**
 * The candidate that is fewest typing mistakes away, when that is few enough to be what was meant.
 * @returns undefined when nothing is near
 */
export function closest(word: string, candidates: Iterable<string>): string | undefined {
	const wanted = word.toLowerCase()
	let best: { candidate: string; mistakes: number } | undefined
	for (const candidate of candidates) {
		const mistakes = distance(wanted, candidate.toLowerCase())
		if (best === undefined || mistakes < best.mistakes) best = { candidate, mistakes }
	}
	const allowed = Math.max(1, Math.floor(word.length / 3))
	return best !== undefined && best.mistakes <= allowed ? best.candidate : undefined
}

// Damerau and Levenshtein: letters left out, put in, replaced, or two neighbours swapped.
function distance(from: string, to: string): number {
	let beforePrevious: number[] = []
	let previous = Array.from({ length: to.length + 1 }, (_, index) => index)
	for (let row = 1; row <= from.length; row++) {
		const current = [row]
		for (let column = 1; column <= to.length; column++) {
			const same = from[row - 1] === to[column - 1]
			let least = Math.min(
				(previous[column] ?? 0) + 1,
				(current[column - 1] ?? 0) + 1,
				(previous[column - 1] ?? 0) + (same ? 0 : 1),
			)
			const swapped =
				row > 1 && column > 1 && from[row - 1] === to[column - 2] && from[row - 2] === to[column - 1]
			if (swapped) least = Math.min(least, (beforePrevious[column - 2] ?? 0) + 1)
			current.push(least)
		}
		beforePrevious = previous
		previous = current
	}
	return previous[to.length] ?? 0
}
