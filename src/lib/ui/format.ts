// Numbers and tables as operators read them. All pure.
import { stripVTControlCharacters } from "node:util"

/** `512 B`, `1.5 KiB`, `12.0 MiB`, `1.25 GiB` */
export function formatBytes(sizeBytes: number): string {
	if (sizeBytes < 1024) return `${Math.max(0, Math.round(sizeBytes))} B`
	let value = sizeBytes
	let unit = "B"
	for (const larger of ["KiB", "MiB", "GiB", "TiB"]) {
		// 1023.96 would be shown as 1024.0 of the smaller unit.
		if (value < 1023.95) break
		value /= 1024
		unit = larger
	}
	return `${value.toFixed(unit === "GiB" || unit === "TiB" ? 2 : 1)} ${unit}`
}

/** `80.2 MiB/s` */
export const formatRate = (bytesPerSecond: number): string => `${formatBytes(bytesPerSecond)}/s`

const spans = [
	{ seconds: 86_400, name: "d" },
	{ seconds: 3600, name: "h" },
	{ seconds: 60, name: "min" },
	{ seconds: 1, name: "s" },
] as const

/** How long ago or how long, in its two largest units: `45 s`, `12 min 5 s`, `3 h 12 min`, `5 d 3 h`. */
export function formatSeconds(seconds: number): string {
	const whole = Math.max(0, Math.round(seconds))
	const index = spans.findIndex((span) => whole >= span.seconds)
	const span = spans[index]
	if (span === undefined) return "0 s"
	const next = spans[index + 1]
	const rest = next === undefined ? 0 : Math.floor((whole % span.seconds) / next.seconds)
	const first = `${Math.floor(whole / span.seconds)} ${span.name}`
	return next === undefined || rest === 0 ? first : `${first} ${rest} ${next.name}`
}

/** How long a piece of work took: tenths below ten seconds. */
export function formatDuration(durationMs: number): string {
	if (durationMs < 9950) return `${(Math.max(0, durationMs) / 1000).toFixed(1)} s`
	return formatSeconds(durationMs / 1000)
}

/**
 * One line of text that came from elsewhere: a tool's output or another machine's answer must not move the cursor,
 * change colors or set the window's title.
 */
export function printable(text: string): string {
	return stripVTControlCharacters(text)
		.replaceAll(/\s+/g, " ")
		.replaceAll(/[\p{Cc}\p{Cf}]/gu, "")
		.trim()
}

/** A column's key and its heading; a row is one text per key. */
export type Column<Key extends string> = { key: Key; heading: string }
export type TableRow<Key extends string> = Readonly<Record<Key, string>>

/** How wide the gaps are, and what room the last column then must have: below it a list of blocks is read better. */
const settings = [
	{ gap: "  ", narrowestLast: 16 },
	{ gap: " ", narrowestLast: 10 },
] as const

/**
 * A table, or where it would be wider than the terminal a list of blocks, one per row.
 * @param columns the first one names the row and heads its block
 * @param width of the terminal, in characters
 * @returns lines without trailing spaces
 */
export function formatTable<Key extends string>(
	columns: readonly [Column<Key>, ...Column<Key>[]],
	rows: readonly TableRow<Key>[],
	width: number,
): string[] {
	// A column in which no row says anything is only in the way.
	const [first, ...others] = columns
	const used = [first, ...others.filter(({ key }) => rows.some((row) => row[key] !== ""))]
	const widths = used.map(({ key, heading }) =>
		Math.max(lengthOf(heading), ...rows.map((row) => lengthOf(row[key]))),
	)
	const last = widths.length - 1
	const fitting = settings
		.map(({ gap, narrowestLast }) => {
			const total = widths.reduce((sum, one) => sum + one, gap.length * last)
			const forLast = width - total + (widths[last] ?? 0)
			return { gap, forLast, fits: total <= width || (last > 0 && forLast >= narrowestLast) }
		})
		.find(({ fits }) => fits)
	if (fitting === undefined) return blocks(used, rows, width)
	const { gap, forLast } = fitting
	widths[last] = Math.min(widths[last] ?? 0, forLast)
	const line = (cells: readonly string[]) =>
		cells
			.map((cell, index) => pad(cell, widths[index] ?? 0))
			.join(gap)
			.trimEnd()
	// Only the last column may take several lines.
	const wrapped = (row: TableRow<Key>) => {
		const cells = used.map(({ key }) => row[key])
		const ends = wrapText(cells[last] ?? "", widths[last] ?? 1, "")
		return ends.map((end, index) =>
			line([...(index === 0 ? cells.slice(0, -1) : cells.slice(0, -1).map(() => "")), end]),
		)
	}
	return [line(used.map(({ heading }) => heading)), ...rows.flatMap(wrapped)]
}

function blocks<Key extends string>(
	[first, ...others]: readonly Column<Key>[],
	rows: readonly TableRow<Key>[],
	width: number,
): string[] {
	if (first === undefined) return []
	const headings = Math.max(...others.map(({ heading }) => lengthOf(heading)), 0)
	return rows.flatMap((row) => [
		...wrapText(row[first.key], width, ""),
		...others
			.filter(({ key }) => row[key] !== "")
			.flatMap(({ key, heading }) => {
				const [head = "", ...tail] = wrapText(row[key], Math.max(8, width - headings - 4), "")
				const label = `  ${pad(heading, headings)}  `
				return [`${label}${head}`, ...tail.map((line) => `${" ".repeat(label.length)}${line}`)]
			}),
	])
}

/** Breaks a text into lines of at most `width`; lines after the first begin with `indent`. Long words are cut. */
export function wrapText(text: string, width: number, indent = "  "): string[] {
	const lines: string[] = []
	let line = ""
	for (const word of text.split(" ")) {
		let rest = word
		const start = () => (lines.length === 0 ? "" : indent)
		if (line !== "" && lengthOf(line) + 1 + lengthOf(rest) <= width) {
			line += ` ${rest}`
			continue
		}
		if (line !== "") lines.push(line)
		while (lengthOf(start()) + lengthOf(rest) > width) {
			const room = Math.max(1, width - lengthOf(start()))
			const letters = [...rest]
			lines.push(`${start()}${letters.slice(0, room).join("")}`)
			rest = letters.slice(room).join("")
		}
		line = `${start()}${rest}`
	}
	if (line.trim() !== "" || lines.length === 0) lines.push(line)
	return lines
}

const lengthOf = (text: string) => [...text].length
const pad = (text: string, width: number) => `${text}${" ".repeat(Math.max(0, width - lengthOf(text)))}`
