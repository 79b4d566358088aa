// What all measurements have in common: interleaved runs, medians, facts of the machine, and the file they go to.
import { execFileSync } from "node:child_process"
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { cpus, loadavg, totalmem } from "node:os"
import { fileURLToPath } from "node:url"
import { scratch } from "./files.ts"

export const root = fileURLToPath(new URL("../..", import.meta.url))

/** `--quick` is for a look; what is published comes without it. */
export const isQuick = process.argv.includes("--quick")
const warmUps = isQuick ? 1 : 2
const rounds = isQuick ? 3 : 7

export type Subject = {
	/** Not measured: what must be as it was before each run. */
	before?: () => unknown
	run: () => unknown
}

/** Runs all subjects in turn, each first in one round, so that a busy moment hits all alike. @returns milliseconds */
export async function interleave<N extends string>(
	subjects: Readonly<Record<N, Subject>>,
): Promise<Record<N, number[]>> {
	const names = Object.keys(subjects) as N[]
	const runs = Object.fromEntries(names.map((name) => [name, []])) as unknown as Record<N, number[]>
	for (let round = -warmUps; round < rounds; round++)
		for (let turn = 0; turn < names.length; turn++) {
			const name = names[(turn + round + warmUps) % names.length] as N
			await subjects[name].before?.()
			const startedAt = performance.now()
			await subjects[name].run()
			if (round >= 0) runs[name].push(Math.round(performance.now() - startedAt))
		}
	return runs
}

export const median = (values: readonly number[]) =>
	[...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN

export type Comparison = {
	/** As in `against rclone`. */
	what: string
	ratio: number
	goal: number
	stretch?: number
	/** With `most` the goal is an upper bound. */
	most?: true
	unit?: string
}

/** The first line that a program says of its version; undefined when it isn't there. */
export function versionOf(program: string, ...argv: string[]): string | undefined {
	try {
		const text = execFileSync(program, argv, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] })
		return text.split("\n")[0]?.trim()
	} catch {
		return undefined
	}
}

/** The kind of file system that is measured on. */
function fileSystem(): string {
	mkdirSync(scratch, { recursive: true })
	const table = execFileSync("df", ["--output=fstype", scratch], { encoding: "utf8" })
	return table.trim().split("\n").at(-1) ?? "?"
}

/** Writes `bench/results/<goal>.json`, and says what came of it. */
export function publish(
	goal: string,
	about: string,
	comparisons: readonly Comparison[],
	facts: {
		runsMs?: Record<string, number[]>
		tools?: Record<string, string | undefined>
		notes?: string[]
		[name: string]: unknown
	},
): void {
	const checked = comparisons.map(({ most, ...comparison }) => ({
		...comparison,
		ratio: Number(comparison.ratio.toFixed(3)),
		...(most && { most }),
		reached: most === true ? comparison.ratio <= comparison.goal : comparison.ratio >= comparison.goal,
	}))
	const result = {
		about,
		comparisons: checked,
		reached: checked.every(({ reached }) => reached),
		...facts,
		...(facts.runsMs && {
			mediansMs: Object.fromEntries(Object.entries(facts.runsMs).map(([name, runs]) => [name, median(runs)])),
			...{ warmUps, rounds },
		}),
		node: process.version,
		machine: `${cpus()[0]?.model ?? "unknown"}, ${cpus().length} cores, ${Math.round(totalmem() / 2 ** 30)} GiB`,
		filesOn: fileSystem(),
		// Others at work on the machine are in the figures.
		loadAverage: Number((loadavg()[0] ?? 0).toFixed(1)),
		version: (JSON.parse(readFileSync(`${root}package.json`, "utf8")) as { version: string }).version,
	}
	mkdirSync(`${root}bench/results`, { recursive: true })
	// A list of numbers on one line, as the formatter wants it.
	const text = JSON.stringify(result, undefined, "\t").replaceAll(/\[[\s\d.,]+\]/g, (list) =>
		list.replaceAll(/\s+/g, " ").replace("[ ", "[").replace(" ]", "]"),
	)
	writeFileSync(`${root}bench/results/${goal}.json`, `${text}\n`)
	for (const { what, ratio, goal: wanted, most, reached, unit = "×" } of checked)
		console.log(
			`${goal} ${what}: ${ratio.toFixed(2)}${unit} (goal ${most ? "≤" : "≥"} ${wanted}${unit}) ${reached ? "reached" : "NOT reached"}`,
		)
	if (!result.reached) process.exitCode = 3
}
