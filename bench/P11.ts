// P11: `comfyume --version` of the release, on its own Node, against that Node doing nothing. Goal: below 1.25 times.
import { execFileSync } from "node:child_process"
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { cpus } from "node:os"
import { fileURLToPath } from "node:url"

const goal = 1.25
const warmUps = 2
const rounds = 7

const root = fileURLToPath(new URL("..", import.meta.url))
const arch = process.arch
execFileSync(process.execPath, [`${root}scripts/release.ts`, "--arch", arch], { stdio: "inherit" })
const tree = `${root}dist/release/tree-${arch}`
const node = `${tree}/node/bin/node`

const subjects = {
	bare: [node, "-e", "0"],
	release: [node, `${tree}/dist/cli/cli.js`, "--version"],
	launcher: [`${tree}/bin/comfyume`, "--version"],
} as const
type Subject = keyof typeof subjects
const names = Object.keys(subjects) as Subject[]
const runs: Record<Subject, number[]> = { bare: [], release: [], launcher: [] }

for (let round = -warmUps; round < rounds; round++) {
	// Interleaved, and each first in turn, so that a busy moment hits all alike.
	for (let turn = 0; turn < names.length; turn++) {
		const name = names[(turn + round + warmUps) % names.length] ?? "bare"
		const [program, ...argv] = subjects[name]
		const startedAt = performance.now()
		execFileSync(program, argv, { stdio: "ignore" })
		if (round >= 0) runs[name].push(Number((performance.now() - startedAt).toFixed(2)))
	}
}

const median = (values: readonly number[]) =>
	[...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN
const ratio = median(runs.release) / median(runs.bare)
const result = {
	goal: `below ${goal}`,
	ratio,
	reached: ratio < goal,
	medianMs: Object.fromEntries(names.map((name) => [name, median(runs[name])])),
	warmUps,
	runsMs: runs,
	node: execFileSync(node, ["--version"], { encoding: "utf8" }).trim(),
	machine: `${cpus()[0]?.model ?? "unknown"}, ${cpus().length} cores`,
	version: (JSON.parse(readFileSync(`${root}package.json`, "utf8")) as { version: string }).version,
}
mkdirSync(`${root}bench/results`, { recursive: true })
// A list of numbers on one line, as the formatter wants it.
const text = JSON.stringify(result, undefined, "\t").replaceAll(/\[[\s\d.,]+\]/g, (list) =>
	list.replaceAll(/\s+/g, " ").replace("[ ", "[").replace(" ]", "]"),
)
writeFileSync(`${root}bench/results/P11.json`, `${text}\n`)
console.log(
	`P11: ${ratio.toFixed(2)} times bare Node (goal ${goal}); medians ${names.map((name) => `${name} ${median(runs[name]).toFixed(1)} ms`).join(", ")}`,
)
process.exitCode = result.reached ? 0 : 3
