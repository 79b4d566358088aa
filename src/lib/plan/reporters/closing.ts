// What stands at the end of a run: the table, what failed and why, the counts, and the next command.
import { stripVTControlCharacters } from "node:util"
import { paint } from "../../ui/color.ts"
import { formatDuration, formatSeconds, formatTable, printable, wrapText } from "../../ui/format.ts"
import type { Terminal } from "../../ui/surroundings.ts"
import type {
	ChangeFacts,
	ContainerFacts,
	DrillFacts,
	Event,
	FileSystemFacts,
	ModelFacts,
	Outcome,
	TimerFacts,
} from "../events.ts"
import { type ChecklistLine, checklistTable } from "./checklist.ts"
import { containersTable } from "./containers.ts"
import { drillsTable } from "./drills.ts"
import { fileSystemsTable, timersTable } from "./host.ts"
import { modelsTable } from "./models.ts"
import { modelPathsLine, workflowLines } from "./workflows.ts"

type StepEvent = Extract<Event, { event: "step" }>
type EndEvent = Extract<Event, { event: "end" }>
type ErrorEvent = Extract<Event, { event: "error" }>

/** Gathers what the closing needs while the events pass by. */
export type Closing = {
	event(event: Event): void
	/** Prints it: the table on stdout, all else on stderr. Nothing where the run had no end and no error. */
	print(): void
}

const columns = [
	{ key: "artifact", heading: "artifact" },
	{ key: "source", heading: "source" },
	{ key: "snapshot", heading: "snapshot" },
	{ key: "age", heading: "age" },
	{ key: "digest", heading: "digest" },
	{ key: "verified", heading: "verified" },
] as const

/** @param options.quiet print only what went wrong: a good run stays silent, as cron wants it */
export function createClosing(terminal: Terminal, { quiet }: { quiet: boolean }): Closing {
	const titles = new Map<string, string>()
	const failures: StepEvent[] = []
	const checklist: ChecklistLine[] = []
	const planned = new Set<string>()
	const errors: ErrorEvent[] = []
	const models: ModelFacts[] = []
	const containers: ContainerFacts[] = []
	const timers: TimerFacts[] = []
	const fileSystems: FileSystemFacts[] = []
	const drills: DrillFacts[] = []
	const documents: string[] = []
	const lines: string[] = []
	let end: EndEvent | undefined
	let endedAt = new Date(0)
	const colors = paint(terminal.color)
	const talk = (line: string) => terminal.talk(`${line}\n`)
	// A log has no edge; only a person's terminal has.
	const width = () => (terminal.interactive ? readableWidth(terminal.columns) : 120)

	// Commands stand on a line of their own and are never broken: they are there to be copied.
	const failure = ({ step, because, hint }: StepEvent, mark: string) => {
		const [head = "", ...tail] = wrapText(
			`${mark} ${titles.get(step) ?? step}: ${printable(because)}`,
			width(),
		)
		talk(head.replace(mark, colors.bad(mark)))
		for (const line of tail) talk(line)
		if (hint !== undefined) talk(`  try: ${printable(hint)}`)
	}

	/** They come in any order, being asked side by side. */
	const inOrder = (lines: readonly ChecklistLine[]) => {
		const places = new Map([...titles.keys()].map((id, index) => [id, index]))
		return lines.toSorted((a, b) => (places.get(a.step) ?? 0) - (places.get(b.step) ?? 0))
	}

	return {
		event(event) {
			if (event.event === "plan" || event.event === "steps")
				for (const { id, title } of event.steps) titles.set(id, printable(title))
			if (event.event === "step" && event.asked !== undefined)
				checklist.push({ ...event, asked: event.asked })
			if (event.event === "step" && isFailure(event.outcome)) failures.push(event)
			if (event.event === "step" && event.outcome === "planned") planned.add(event.step)
			if (event.event === "model") models.push(event)
			if (event.event === "container") containers.push(event)
			if (event.event === "timer") timers.push(event)
			if (event.event === "file-system") fileSystems.push(event)
			if (event.event === "drill") drills.push(event)
			if (event.event === "document") documents.push(event.text)
			if (event.event === "workflow") lines.push(...workflowLines(event))
			if (event.event === "change") lines.push(...changeLines(event))
			if (event.event === "model-paths") lines.push(modelPathsLine(event))
			if (event.event === "error") errors.push(event)
			if (event.event === "end") {
				end = event
				endedAt = new Date(event.at)
			}
		},
		print() {
			if (end !== undefined && !quiet && end.summary.length > 0) {
				const rows = end.summary.map((row) =>
					planned.has(row.artifact) && !row.ok ? plannedRow(row.artifact) : rowOf(row),
				)
				talk("")
				for (const line of formatTable(columns, rows, width())) terminal.out(`${line}\n`)
			}
			// What was asked for: said also when quiet, and as it is, for it is no table of ours.
			for (const text of documents) terminal.out(plainText(text))
			const tables = [
				// What restores and heals says the same in its own table.
				(end?.summary.length ?? 0) === 0 && models.length > 0 ? modelsTable(models, width()) : [],
				(end?.summary.length ?? 0) === 0 && drills.length > 0 ? drillsTable(drills, width()) : [],
				checklist.length > 0 ? checklistTable(inOrder(checklist), width()) : [],
				containers.length > 0 ? containersTable(containers, endedAt, width()) : [],
				timers.length > 0 ? timersTable(timers, endedAt, width()) : [],
				fileSystems.length > 0 ? fileSystemsTable(fileSystems, width()) : [],
				lines,
			]
			for (const table of quiet ? [] : tables.filter(({ length }) => length > 0)) {
				talk("")
				for (const line of table) terminal.out(`${line}\n`)
			}
			const real = failures.filter(({ outcome }) => outcome === "failed")
			const blocked = failures.filter(({ outcome }) => outcome === "blocked")
			const aborted = failures.filter(({ outcome }) => outcome === "aborted")
			if (failures.length + errors.length > 0) talk("")
			for (const event of real) failure(event, "failed:")
			for (const event of blocked) failure(event, "blocked:")
			const [first] = aborted
			if (first !== undefined) {
				const more = aborted.length > 1 ? ` (and ${aborted.length - 1} more)` : ""
				failure({ ...first, because: `${first.because}${more}` }, "stopped:")
			}
			for (const { message, hint } of errors) {
				for (const line of wrapText(`error: ${printable(message)}`, width())) talk(colors.bad(line))
				if (hint !== undefined) talk(`  try: ${printable(hint)}`)
			}
			if (end === undefined || (quiet && end.exitCode === 0)) return
			talk("")
			for (const line of wrapText(countsLine(end), width())) talk(colors.strong(line))
			if (end.next !== undefined) talk(`next: ${printable(end.next)}`)
		},
	}
}

/** Below this nothing is readable; 0 is what some pseudo-terminals say when they don't know. */
export const readableWidth = (terminalColumns: number) =>
	Number.isFinite(terminalColumns) && terminalColumns >= 20 ? Math.min(terminalColumns, 200) : 80

/** Neither done nor, in a dry run, planned. */
export const isFailure = (outcome: Outcome) =>
	outcome === "failed" || outcome === "blocked" || outcome === "aborted"

/** Lines stay lines. Names in it come from elsewhere, and must not move the cursor. */
const plainText = (text: string) => stripVTControlCharacters(text).replaceAll(/[^\P{Cc}\n\t]/gu, "")

/** The lines of files keep their tabs. */
const changeLines = ({ change, name, diff = [] }: ChangeFacts) => [
	`${change}: ${printable(name)}`,
	...diff.map((line) => `  ${stripVTControlCharacters(line)}`),
]

function countsLine({ satisfied, applied, planned, failed, durationMs }: EndEvent): string {
	const parts = [
		{ count: applied, word: "applied" },
		{ count: planned, word: "to apply" },
		{ count: satisfied, word: "already right" },
		{ count: failed, word: "failed" },
	].filter(({ count }) => count > 0)
	const counts = parts.map(({ count, word }) => `${count} ${word}`).join(", ")
	return `${counts === "" ? "nothing to do" : counts} in ${formatDuration(durationMs)}`
}

const rowOf = (row: EndEvent["summary"][number]) => ({
	artifact: printable(row.artifact),
	source: printable(row.source),
	// A snapshot's name ends with the digest, which has a column of its own.
	snapshot: printable(row.snapshot).replace(`-${row.digest}`, ""),
	age: row.ageSeconds === undefined ? "" : formatSeconds(row.ageSeconds),
	digest: printable(row.digest ?? ""),
	verified: `${row.ok ? "" : "NOT OK: "}${printable(row.verified)}`,
})

/** A dry run hasn't failed at what it only looked at. */
const plannedRow = (artifact: string): ReturnType<typeof rowOf> => ({
	artifact: printable(artifact),
	source: "",
	snapshot: "",
	age: "",
	digest: "",
	verified: "would be applied",
})
