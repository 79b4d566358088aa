// The stack's containers, as an operator reads them: what is missing first.
import { formatSeconds, formatTable, printable } from "../../ui/format.ts"
import type { ContainerFacts } from "../events.ts"

/**
 * A table of all containers: those that are missing, then what else is not right, then what is well. A cell is empty
 * where there is nothing to worry about.
 * @param now of the machine that looked
 * @param width of the terminal, in characters
 */
export function containersTable(facts: readonly ContainerFacts[], now: Date, width: number): string[] {
	const rows = [...facts]
		.sort((one, other) => rankOf(one) - rankOf(other))
		.map((container) => ({
			container: printable(container.container),
			state: stateOf(container),
			since:
				container.since === undefined
					? ""
					: formatSeconds((now.getTime() - Date.parse(container.since)) / 1000),
			restarts: container.restarts === 0 ? "" : String(container.restarts),
			outdated: outdatedOf(container),
			because: container.right ? "" : printable(container.because),
		}))
	return formatTable(
		[
			{ key: "container", heading: "container" },
			{ key: "state", heading: "state" },
			{ key: "since", heading: "since" },
			{ key: "restarts", heading: "restarts" },
			{ key: "outdated", heading: "outdated" },
			{ key: "because", heading: "because" },
		],
		rows,
		width,
	)
}

function rankOf({ right, state }: ContainerFacts): number {
	if (right) return 2
	return state === "missing" ? 0 : 1
}

/** One word: what runs is as healthy as its check says. */
function stateOf({ state, health }: ContainerFacts): string {
	return printable(state === "running" && health !== "none" ? health : state)
}

function outdatedOf({ imageCurrent, configurationCurrent }: ContainerFacts): string {
	return [
		...(imageCurrent === false ? ["image"] : []),
		...(configurationCurrent === false ? ["configuration"] : []),
	].join(", ")
}

/** As compose writes it: who says it stands before the line. */
export const logLine = ({ container, text }: { container: string; text: string }): string =>
	`${printable(container)} | ${printable(text)}`
