// Lines without a terminal: a log that grows at its end and holds no escape codes.
import { formatDuration, printable } from "../../ui/format.ts"
import type { Terminal } from "../../ui/surroundings.ts"
import type { Event, Outcome, Reporter } from "../events.ts"
import { createClosing, isFailure } from "./closing.ts"
import { logLine } from "./containers.ts"
import { createPace, type Pace } from "./pace.ts"

const progressEveryMs = 10_000

/** How an outcome is called, in every reporter. */
export const outcomeWords: Readonly<Record<Outcome, string>> = {
	satisfied: "ok",
	applied: "applied",
	planned: "would apply",
	failed: "FAILED",
	blocked: "BLOCKED",
	aborted: "STOPPED",
}

/**
 * @param options.verbose also says when a step is checked and applied
 * @param options.quiet says only what went wrong
 */
export function plainReporter(terminal: Terminal, { quiet = false, verbose = false } = {}): Reporter {
	const plain = { ...terminal, color: false }
	const closing = createClosing(plain, { quiet })
	const titles = new Map<string, string>()
	const paces = new Map<string, { pace: Pace; saidAtMs: number }>()
	const say = (text: string) => terminal.talk(`${text}\n`)
	const titleOf = (step: string) => titles.get(step) ?? step

	const progress = (event: Extract<Event, { event: "progress" }>) => {
		const atMs = Date.parse(event.at)
		const known = paces.get(event.step)
		const pace = known?.pace ?? createPace()
		const text = pace.describe(event, atMs)
		const due = known === undefined || atMs - known.saidAtMs >= progressEveryMs
		paces.set(event.step, { pace, saidAtMs: due ? atMs : known.saidAtMs })
		// The first event only starts the clock.
		if (due && known !== undefined && !quiet) say(`${titleOf(event.step)}: ${text}`)
	}

	return {
		event(event) {
			closing.event(event)
			switch (event.event) {
				case "plan": {
					for (const { id, title } of event.steps) titles.set(id, printable(title))
					if (!quiet) say(headline(event))
					return
				}
				case "steps":
					for (const { id, title } of event.steps) titles.set(id, printable(title))
					return
				case "progress":
					return progress(event)
				case "note":
					if (quiet && event.level === "info") return
					say(
						`${event.level === "warning" ? "warning: " : "note: "}${about(event.step)}${printable(event.text)}`,
					)
					return
				case "log":
					// What was asked for: said also when quiet.
					terminal.out(`${logLine(event)}\n`)
					return
				case "step":
					if (quiet && !isFailure(event.outcome)) return
					say(
						`${outcomeWords[event.outcome]}: ${titleOf(event.step)}: ${printable(event.because)}${took(event.durationMs)}`,
					)
					return
				case "checking":
				case "applying":
					if (verbose) say(`${event.event}: ${titleOf(event.step)}`)
					return
				case "checked":
					if (verbose)
						say(`${event.finding.state}: ${titleOf(event.step)}: ${printable(event.finding.because)}`)
					return
			}
		},
		close: async () => closing.print(),
	}

	function about(step: string | undefined): string {
		return step === undefined ? "" : `${titleOf(step)}: `
	}
}

const took = (durationMs: number) => (durationMs < 50 ? "" : ` (${formatDuration(durationMs)})`)

/** The first line of a run: what, of which environment, and where that really is. */
export function headline({
	command,
	environment,
	host,
	place,
	dryRun,
}: Extract<Event, { event: "plan" }>): string {
	const where = `${printable(environment)}, ${printable(host)} (${printable(place)})`
	return `${printable(command)}${dryRun ? " (dry run: nothing is changed)" : ""}: ${where}`
}
