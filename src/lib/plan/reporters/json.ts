// `--json`: one event per line, as the schema in events.ts has it.
import type { Terminal } from "../../ui/surroundings.ts"
import type { Reporter } from "../events.ts"

/** Writes each event to stdout as it happens. */
export function jsonReporter(terminal: Pick<Terminal, "out">): Reporter {
	return {
		event: (event) => terminal.out(`${JSON.stringify(event)}\n`),
		close: async () => {},
	}
}
