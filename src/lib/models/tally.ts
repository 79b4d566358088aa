// Many verdicts in one sentence.
import { formatBytes } from "../ui/format.ts"
import { isKeptAside } from "./directories.ts"
import type { Verdict } from "./verify.ts"

const namedAtMost = 5

/**
 * @returns `none` where there is no model at all, which is what a share that isn't mounted looks like; `text` as in
 * `28 ok, 1 missing; 1 not right`; `named`, what is not right, as in `vae/a.safetensors (missing)`
 */
export function tally(verdicts: readonly Verdict[]): {
	none: boolean
	wrong: boolean
	text: string
	named: string
} {
	const wrong = verdicts.filter(({ right }) => !right)
	const counts = [...Map.groupBy(verdicts, ({ status }) => status)]
		.map(([status, all]) => `${all.length} ${status}`)
		.join(", ")
	const named = wrong.slice(0, namedAtMost).map(({ path, status }) => `${path} (${status})`)
	const more = wrong.length > named.length ? ` and ${wrong.length - named.length} more` : ""
	return {
		none:
			verdicts.every(({ right, status }) => right && (status === "unknown" || status === "extra")) ||
			(wrong.length > 0 && verdicts.every(({ status }) => status === "missing")),
		wrong: wrong.length > 0,
		text: `${counts}; ${wrong.length === 0 ? "nothing needed is wrong" : `${wrong.length} not right`}`,
		named: `${named.join(", ")}${more}`,
	}
}

/**
 * What healing has kept aside: nobody misses the room until the disk is full.
 * @param files path -> size in bytes
 */
export function keptAside(files: ReadonlyMap<string, number | undefined>): string | undefined {
	const kept = [...files].filter(([path]) => isKeptAside(path))
	if (kept.length === 0) return undefined
	const size = formatBytes(kept.reduce((sum, [, sizeBytes = 0]) => sum + sizeBytes, 0))
	return kept.length === 1
		? `1 file that was replaced is kept as .bad-…: ${size}`
		: `${kept.length} files that were replaced are kept as .bad-…: ${size}`
}
