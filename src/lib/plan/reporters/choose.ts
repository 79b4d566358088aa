// Which reporter a run gets, and the promise that none of them can hurt it.
import type { Terminal } from "../../ui/surroundings.ts"
import type { Reporter } from "../events.ts"
import { jsonReporter } from "./json.ts"
import { plainReporter } from "./plain.ts"

export type ReporterOptions = { json?: boolean; quiet?: boolean; verbose?: boolean }

/**
 * NDJSON with `--json`; a live list on a person's terminal; else lines, as `--quiet` and `--verbose` want them too.
 * What it returns never throws: neither a closed pipe nor a mistake in drawing changes the work's result.
 */
export async function chooseReporter(
	terminal: Terminal,
	{ json = false, quiet = false, verbose = false }: ReporterOptions,
): Promise<Reporter> {
	if (json) return unfailing(jsonReporter(terminal))
	if (quiet || verbose || !terminal.interactive) return unfailing(plainReporter(terminal, { quiet, verbose }))
	// listr2 loads only where it draws.
	const { interactiveReporter } = await import("./interactive.ts")
	return unfailing(interactiveReporter(terminal))
}

/** The same reporter, whose failures are swallowed. */
export function unfailing(reporter: Reporter): Reporter {
	return {
		event(event) {
			try {
				reporter.event(event)
			} catch {
				// A reporter that can't report has nowhere to say so.
			}
		},
		async close() {
			try {
				await reporter.close()
			} catch {
				// As above.
			}
		},
	}
}
