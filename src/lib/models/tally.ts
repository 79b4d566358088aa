// Many verdicts in one sentence.
import type { Verdict } from "./verify.ts"

const namedAtMost = 5

/**
 * @returns `none` where there is no model at all, which is what a share that isn't mounted looks like; `text` as in
 * `28 ok, 1 missing; 1 not right: vae/a.safetensors (missing)`
 */
export function tally(verdicts: readonly Verdict[]): { none: boolean; wrong: boolean; text: string } {
	const wrong = verdicts.filter(({ right }) => !right)
	const counts = [...Map.groupBy(verdicts, ({ status }) => status)]
		.map(([status, all]) => `${all.length} ${status}`)
		.join(", ")
	const named = wrong.slice(0, namedAtMost).map(({ path, status }) => `${path} (${status})`)
	const more = wrong.length > named.length ? ` and ${wrong.length - named.length} more` : ""
	return {
		none: verdicts.every(({ right, status }) => right && (status === "unknown" || status === "extra")),
		wrong: wrong.length > 0,
		text:
			wrong.length === 0
				? `${counts}; nothing needed is wrong`
				: `${counts}; ${wrong.length} not right: ${named.join(", ")}${more}`,
	}
}
