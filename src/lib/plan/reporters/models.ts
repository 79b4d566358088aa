// Models × places, as an operator reads them: what is wrong first.
import { isKeptAside } from "../../formats/model-name.ts"
import { formatBytes, formatTable, printable } from "../../ui/format.ts"
import type { ModelFacts } from "../events.ts"

/**
 * A table of all models and what each place has of them; what is missing comes first, then what else is not right,
 * then what is only worth knowing; at the bottom what was kept aside.
 * @param width of the terminal, in characters
 */
export function modelsTable(facts: readonly ModelFacts[], width: number): string[] {
	const places = [...new Set(facts.map(({ place }) => place))]
	const rows = [...Map.groupBy(facts, ({ path }) => path)]
		.map(([path, all]) => ({ path, all, rank: Math.min(...all.map(rankOf)) }))
		.sort((one, other) => one.rank - other.rank)
		.map(({ path, all }) => {
			const cells = Object.fromEntries(
				places.map((place, index) => [String(index), cellOf(all, place, places.length)]),
			)
			return { ...cells, path: printable(path), size: sizesOf(all), because: becauseOf(all, places.length) }
		})
	return formatTable<string>(
		[
			{ key: "path", heading: "model" },
			...places.map((place, index) => ({
				key: String(index),
				heading: places.length === 1 ? "status" : printable(place),
			})),
			{ key: "size", heading: "size" },
			{ key: "because", heading: "because" },
		],
		rows,
		width,
	)
}

function rankOf({ path, right, status }: ModelFacts): number {
	if (right && isKeptAside(path)) return 4
	if (!right) return status === "missing" ? 0 : 1
	return status === "ok" ? 3 : 2
}

/** `ok (digest)`, `truncated`; `-` where a place says nothing of it. */
function cellOf(all: readonly ModelFacts[], place: string, places: number): string {
	const found = all.find((facts) => facts.place === place)
	if (found === undefined) return places === 1 ? "" : "-"
	return found.status === "ok" ? `ok (${printable(found.tier)})` : printable(found.status)
}

/** One size where the places agree; both where they don't. */
function sizesOf(all: readonly ModelFacts[]): string {
	const sizes = new Set(all.flatMap(({ sizeBytes }) => (sizeBytes === undefined ? [] : [sizeBytes])))
	return [...sizes].map(formatBytes).join(" / ")
}

/** Of several places the one that has something to say; of one, always. */
function becauseOf(all: readonly ModelFacts[], places: number): string {
	const telling = all.filter(({ status }) => status !== "ok")
	const shown = telling.length > 0 || places > 1 ? telling : all
	const texts = new Set(
		shown.map(({ place, because }) => printable(places === 1 ? because : `${place}: ${because}`)),
	)
	return [...texts].join("; ")
}
