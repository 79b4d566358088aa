// Drills, as an operator reads them: one line each.
import { formatDuration, formatSeconds, formatTable, printable } from "../../ui/format.ts"
import type { DrillFacts } from "../events.ts"

/**
 * A table of drills in the order in which they are given: how many came back right, the oldest state among them, and how
 * long all of it took.
 * @param width of the terminal, in characters
 */
export function drillsTable(drills: readonly DrillFacts[], width: number): string[] {
	const rows = drills.map(({ drilledAt, exitCode, results, comfyume }) => {
		const good = results.filter(({ ok }) => ok)
		const ages = results.flatMap(({ ageSeconds }) => ageSeconds ?? [])
		const tookMs = results.reduce((sum, { tookSeconds = 0 }) => sum + tookSeconds * 1000, 0)
		return {
			drilled: drilledAt.replace(/:\d\d\.\d+Z$/, "Z").replace("T", " "),
			exit: String(exitCode),
			good: `${good.length} of ${results.length}`,
			oldest: ages.length === 0 ? "" : formatSeconds(Math.max(...ages)),
			took: formatDuration(tookMs),
			comfyume: printable(comfyume),
			bad: results
				.filter(({ ok }) => !ok)
				.map(({ artifact, destination }) => printable(`${artifact} on ${destination}`))
				.join(", "),
		}
	})
	return formatTable(
		[
			{ key: "drilled", heading: "drilled (UTC)" },
			{ key: "exit", heading: "exit" },
			{ key: "good", heading: "good" },
			{ key: "oldest", heading: "oldest" },
			{ key: "took", heading: "took" },
			{ key: "comfyume", heading: "comfyume" },
			{ key: "bad", heading: "not good" },
		],
		rows,
		width,
	)
}
