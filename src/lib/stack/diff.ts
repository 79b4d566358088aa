// What would change in a text, line by line, as `diff` prints it without context.

// Beyond it, the table of comparisons grows too large: then only how much is said.
const mostCells = 4_000_000

/** Lines that go and come, with `-` and `+`; empty for equal texts. Pure. */
export function diffLines(before: string, after: string): string[] {
	if (before === after) return []
	const from = before === "" ? [] : before.split("\n")
	const to = after === "" ? [] : after.split("\n")
	let start = 0
	while (start < from.length && start < to.length && from[start] === to[start]) start++
	let end = 0
	while (end < from.length - start && end < to.length - start && from.at(-1 - end) === to.at(-1 - end)) end++
	const old = from.slice(start, from.length - end)
	const young = to.slice(start, to.length - end)
	if (old.length * young.length > mostCells) return [`- ${old.length} lines`, `+ ${young.length} lines`]
	return walk(old, young)
}

// The longest common subsequence, by its table of lengths from the end.
function walk(old: readonly string[], young: readonly string[]): string[] {
	const width = young.length + 1
	const lengths = new Uint32Array((old.length + 1) * width)
	const at = (row: number, column: number) => lengths[row * width + column] ?? 0
	for (let row = old.length - 1; row >= 0; row--)
		for (let column = young.length - 1; column >= 0; column--)
			lengths[row * width + column] =
				old[row] === young[column]
					? at(row + 1, column + 1) + 1
					: Math.max(at(row + 1, column), at(row, column + 1))
	const lines: string[] = []
	let row = 0
	let column = 0
	while (row < old.length || column < young.length) {
		if (row < old.length && column < young.length && old[row] === young[column]) {
			row++
			column++
		} else if (column >= young.length || (row < old.length && at(row + 1, column) >= at(row, column + 1)))
			lines.push(`- ${old[row++]}`)
		else lines.push(`+ ${young[column++]}`)
	}
	return lines
}
