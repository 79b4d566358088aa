// fstab: which file systems are mounted where, read and written line by line.

export type FstabEntry = {
	source: string
	target: string
	type: string
	options: readonly string[]
	/** Whether `dump` backs it up; 0. */
	dump: number
	/** When `fsck` looks at it: 0 never, 1 first, 2 afterwards. */
	pass: number
}

/** What a line says; undefined for comments, empty lines and what is no entry. */
export function readFstabLine(line: string): FstabEntry | undefined {
	const fields = line.trim().split(/\s+/)
	const [source = "", target, type, options = "defaults", dump = "0", pass = "0"] = fields
	if (source.startsWith("#") || target === undefined || type === undefined) return undefined
	return {
		source: decoded(source),
		target: trimmed(decoded(target)),
		type,
		options: options.split(",").filter((option) => option !== ""),
		dump: Number(dump) || 0,
		pass: Number(pass) || 0,
	}
}

/** All entries for a mount point. There should be one at most. */
export function entriesFor(text: string, target: string): FstabEntry[] {
	return text.split("\n").flatMap((line) => {
		const entry = readFstabLine(line)
		return entry?.target === trimmed(target) ? [entry] : []
	})
}

/** Whether a text has this entry for its mount point and no other. The order of options means nothing. */
export function hasEntry(text: string, wanted: FstabEntry): boolean {
	const [found, ...others] = entriesFor(text, wanted.target)
	return found !== undefined && others.length === 0 && meaningOf(found) === meaningOf(wanted)
}

/**
 * The same text with this entry for its mount point, in the place of what stood there for it, else at the end. All
 * other lines stay byte for byte. Pure.
 */
export function withEntry(text: string, wanted: FstabEntry): string {
	if (hasEntry(text, wanted)) return text
	const target = trimmed(wanted.target)
	const lines = text.split("\n")
	const ours = lines.map((line) => readFstabLine(line)?.target === target)
	const first = ours.indexOf(true)
	if (first < 0) {
		const between = text === "" || text.endsWith("\n") ? "" : "\n"
		return `${text}${between}${renderEntry(wanted)}\n`
	}
	return lines
		.flatMap((line, index) => (index === first ? [renderEntry(wanted)] : ours[index] ? [] : [line]))
		.join("\n")
}

/** The entry as one line, without its end. */
export function renderEntry({ source, target, type, options, dump, pass }: FstabEntry): string {
	return [encoded(source), encoded(target), type, options.join(",") || "defaults", dump, pass].join(" ")
}

const meaningOf = ({ source, target, type, options, dump, pass }: FstabEntry) =>
	JSON.stringify([source, trimmed(target), type, [...options].sort(), dump, pass])

const trimmed = (path: string) => (path.length > 1 ? path.replace(/\/+$/, "") : path)

// Four characters can't stand in a field as they are.
const encoded = (text: string) =>
	text.replaceAll(/[ \t\n\\]/g, (character) => `\\${character.charCodeAt(0).toString(8).padStart(3, "0")}`)
const decoded = (text: string) =>
	text.replaceAll(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))
