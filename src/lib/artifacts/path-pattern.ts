// Patterns over paths, as the catalogue uses them. `*` stands for anything within one part, names that begin with a dot
// included (a backup that passes over dot files by accident would be none); `**` for any number of parts.

/** True when the path is what the pattern means, or lies below it. Both absolute, or both relative. */
export function isWithin(path: string, pattern: string): boolean {
	return partsMatch(path.split("/"), pattern.split("/"))
}

/** True for the directories above what a pattern without wildcards in its parents means. */
export function leadsTo(directory: string, pattern: string): boolean {
	return pattern.startsWith(`${directory}/`)
}

function partsMatch(parts: readonly string[], patterns: readonly string[]): boolean {
	const [pattern, ...morePatterns] = patterns
	if (pattern === undefined) return true
	if (pattern === "**")
		return partsMatch(parts, morePatterns) || (parts.length > 0 && partsMatch(parts.slice(1), patterns))
	const [part, ...moreParts] = parts
	return part !== undefined && partMatches(part, pattern) && partsMatch(moreParts, morePatterns)
}

function partMatches(part: string, pattern: string): boolean {
	const pieces = pattern.split("*")
	const [first = "", ...rest] = pieces
	const last = rest.pop()
	if (last === undefined) return part === first
	if (part.length < first.length + last.length || !part.startsWith(first) || !part.endsWith(last))
		return false
	let from = first.length
	for (const piece of rest) {
		const at = part.indexOf(piece, from)
		if (at === -1 || at + piece.length > part.length - last.length) return false
		from = at + piece.length
	}
	return true
}
