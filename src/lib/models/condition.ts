// Whether a model must be healed, may stay as it is, or is right.
import type { ModelEntry } from "./manifest.ts"
import { isTrusted } from "./offer.ts"
import { type Verdict, type VerifyOptions, verifyModel } from "./verify.ts"

/** With the verdict that it comes from, for whoever reads events. */
export type Condition = { verdict: Verdict } & (
	| { state: "right"; because: string }
	/** It differs from figures that nobody has verified, and is whole by itself: it is said, and left alone. */
	| { state: "doubtful"; because: string }
	| { state: "wrong"; because: string; isMissing: boolean }
)

/** Judges a model on this machine's disk. Throws what the disk throws. */
export async function conditionOf(
	directory: string,
	entry: ModelEntry,
	options: VerifyOptions,
): Promise<Condition> {
	const verdict = await verifyModel(directory, entry.path, entry, options)
	const { status, right, because } = verdict
	if (right)
		return {
			verdict,
			state: "right",
			because: status === "missing" ? "it is optional, and not there" : because,
		}
	if (byFigures.has(status) && !isTrusted(entry)) {
		const itself = await verifyModel(
			directory,
			entry.path,
			{ path: entry.path },
			{ ...options, level: "structure" },
		)
		if (itself.right)
			return { verdict, state: "doubtful", because: `${because}; by itself it is whole, and stays` }
	}
	return { verdict, state: "wrong", because: `${status}: ${because}`, isMissing: status === "missing" }
}

// What the manifest's figures alone can say.
const byFigures = new Set(["truncated", "size-mismatch", "digest-mismatch"])
