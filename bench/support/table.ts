// Writes the table of docs/benchmarks.md from bench/results: what was measured, losing rows and all.
import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import { type Comparison, root } from "./measure.ts"

type Result = {
	about?: string
	comparisons?: (Comparison & { reached: boolean })[]
	mediansMs?: Record<string, number>
	medianMs?: Record<string, number>
	ratio?: number
	goal?: string
	reached: boolean
	rounds?: number
	machine?: string
	node?: string
	filesOn?: string
	loadAverage?: number
	tools?: Record<string, string>
	notes?: string[]
}

const file = `${root}docs/benchmarks.md`
const [begin, end] = ["<!-- results -->", "<!-- end of results -->"]
const goals = readdirSync(`${root}bench/results`)
	.flatMap((name) => /^(P\d+)\.json$/.exec(name)?.[1] ?? [])
	.sort((a, b) => Number(a.slice(1)) - Number(b.slice(1)))
const rows = ["| goal | what | measured | wanted | | medians |", "|---|---|---|---|---|---|"]
const facts: string[] = []
for (const goal of goals) {
	const result = JSON.parse(readFileSync(`${root}bench/results/${goal}.json`, "utf8")) as Result
	const medians = Object.entries(result.mediansMs ?? result.medianMs ?? {})
		.map(([name, ms]) => `${name} ${Math.round(ms)} ms`)
		.join(", ")
	for (const { what, ratio, goal: wanted, stretch, most, reached, unit = "×" } of comparisonsOf(
		goal,
		result,
	)) {
		const about = [result.about, what].filter((part) => part !== undefined).join(" ")
		const bound = `${most ? "≤" : "≥"} ${wanted}${unit}${stretch === undefined ? "" : ` (${stretch})`}`
		rows.push(
			`| ${goal} | ${about} | ${Number(ratio.toFixed(2))}${unit} | ${bound} | ${reached ? "reached" : "**not reached**"} | ${medians} |`,
		)
	}
	const tools = Object.values(result.tools ?? {}).join("; ")
	const load = result.loadAverage === undefined ? "" : `, load average ${result.loadAverage}`
	const filesOn = result.filesOn === undefined ? "" : `, files on ${result.filesOn}`
	const rounds = result.rounds === undefined ? "" : `, median of ${result.rounds}`
	const notes = (result.notes ?? []).map((note) => ` ${note}`).join("")
	facts.push(
		`- ${goal}: Node ${result.node ?? "?"}, ${result.machine ?? "?"}${filesOn}${load}${rounds}. ${tools}${notes}`.trimEnd(),
	)
}
const text = readFileSync(file, "utf8")
const before = text.slice(0, text.indexOf(begin) + begin.length)
const after = text.slice(text.indexOf(end))
writeFileSync(file, `${before}\n\n${rows.join("\n")}\n\n${facts.join("\n")}\n\n${after}`)

/** Two that are older than `publish` have but a ratio; the queue manager's are told of in its own document. */
function comparisonsOf(
	goal: string,
	{ comparisons, ratio, reached }: Result,
): (Comparison & { reached: boolean })[] {
	if (comparisons !== undefined) return comparisons
	const about: Record<string, Omit<Comparison, "ratio">> = {
		P9: { what: "verifying 7 GiB of models again that have not changed, against hashing them", goal: 1000 },
		P11: { what: "`comfyume --version` against bare Node", goal: 1.25, most: true },
	}
	const known = about[goal]
	return known === undefined || ratio === undefined ? [] : [{ ...known, ratio, reached }]
}
