// The checklist: each line with what was asked and what was answered, what is wrong first.
import { formatTable, printable } from "../../ui/format.ts"
import type { Event, Outcome } from "../events.ts"

/** A step that says what its check asks. */
export type ChecklistLine = Extract<Event, { event: "step" }> & { asked: string }

const columns = [
	{ key: "line", heading: "line" },
	{ key: "is", heading: "" },
	{ key: "asked", heading: "asked" },
	{ key: "answered", heading: "answered" },
] as const

const words: Readonly<Record<Outcome, string>> = {
	satisfied: "ok",
	applied: "ok",
	planned: "wrong",
	failed: "WRONG",
	blocked: "waits",
	aborted: "stopped",
}
const order: readonly Outcome[] = ["failed", "planned", "aborted", "blocked", "satisfied", "applied"]

/** Lines of at most so many columns; of lines alike, in the order in which they were asked for. */
export function checklistTable(lines: readonly ChecklistLine[], width: number): string[] {
	const sorted = lines.toSorted((a, b) => order.indexOf(a.outcome) - order.indexOf(b.outcome))
	return formatTable(
		columns,
		sorted.map(({ step, outcome, asked, because }) => ({
			line: printable(step),
			is: words[outcome],
			asked: printable(asked),
			answered: printable(because),
		})),
		width,
	)
}
