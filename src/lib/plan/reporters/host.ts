// What a host does by itself and how full it is, as an operator reads it.
import { formatBytes, formatSeconds, formatTable, printable } from "../../ui/format.ts"
import type { FileSystemFacts, TimerFacts } from "../events.ts"

/**
 * A table of timers, those that are not right first.
 * @param now of the machine that looked
 * @param width of the terminal, in characters
 */
export function timersTable(facts: readonly TimerFacts[], now: Date, width: number): string[] {
	const seconds = (from: Date, to: Date) => (to.getTime() - from.getTime()) / 1000
	const rows = [...facts]
		.sort((one, other) => Number(one.right) - Number(other.right))
		.map(({ timer, state, lastRunAt, result, nextRunAt, right, because }) => ({
			timer: printable(timer),
			state: printable(state),
			last: lastRunAt === undefined ? "never" : `${formatSeconds(seconds(new Date(lastRunAt), now))} ago`,
			result: printable(result ?? ""),
			next: nextRunAt === undefined ? "" : `in ${formatSeconds(seconds(now, new Date(nextRunAt)))}`,
			because: right ? "" : printable(because),
		}))
	return formatTable(
		[
			{ key: "timer", heading: "timer" },
			{ key: "state", heading: "state" },
			{ key: "last", heading: "last run" },
			{ key: "result", heading: "its end" },
			{ key: "next", heading: "next" },
			{ key: "because", heading: "because" },
		],
		rows,
		width,
	)
}

const ranks = { critical: 0, warning: 1, ok: 2 } as const

/** A table of file systems, the fullest kind first. */
export function fileSystemsTable(facts: readonly FileSystemFacts[], width: number): string[] {
	const rows = [...facts]
		.sort((one, other) => ranks[one.level] - ranks[other.level])
		.map(({ paths, source, sizeBytes, freeBytes, usedPercent, inodesUsedPercent, level }) => ({
			source: printable(source),
			level: level === "ok" ? "ok" : level.toUpperCase(),
			used: `${usedPercent} %`,
			free: formatBytes(freeBytes),
			size: formatBytes(sizeBytes),
			inodes: inodesUsedPercent === undefined ? "" : `${inodesUsedPercent} %`,
			paths: paths.map(printable).join(", "),
		}))
	return formatTable(
		[
			{ key: "source", heading: "file system" },
			{ key: "level", heading: "level" },
			{ key: "used", heading: "used" },
			{ key: "free", heading: "free" },
			{ key: "size", heading: "size" },
			{ key: "inodes", heading: "inodes" },
			{ key: "paths", heading: "holds" },
		],
		rows,
		width,
	)
}
