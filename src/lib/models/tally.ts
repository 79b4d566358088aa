// Many verdicts in one sentence.
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
