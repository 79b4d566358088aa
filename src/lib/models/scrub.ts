// Scrubbing: every file is read again from time to time, a part of them each day, and it is known how long ago.
import { exitCodes, OperatorError } from "../errors.ts"
import { byBytes } from "./directories.ts"

/** The n-th of so many parts; counted from 1. */
export type Scrub = { part: number; parts: number }

/** @throws {OperatorError} (2) for what is not `n/t` with n from 1 to t */
export function parseScrub(text: string): Scrub {
	const [, part, parts] = /^([1-9]\d{0,3})\/([1-9]\d{0,3})$/.exec(text) ?? []
	if (part !== undefined && parts !== undefined && Number(part) <= Number(parts))
		return { part: Number(part), parts: Number(parts) }
	throw new OperatorError(`--scrub ${JSON.stringify(text)} names no part`, {
		exitCode: exitCodes.usage,
		hint: "write the part and their number, as in --scrub 3/7; from cron: --scrub $(date +\\%u)/7",
	})
}

/**
 * The files of one part. The parts go through the files in the order of their paths and hold about the same number of
 * bytes: none has more than its share and the largest file. A file that is added or removed moves few others.
 * @param files path -> size in bytes
 */
export function filesOfPart(files: ReadonlyMap<string, number>, { part, parts }: Scrub): Set<string> {
	const sorted = [...files].sort(([one], [other]) => byBytes(one, other))
	const total = sorted.reduce((sum, [, sizeBytes]) => sum + sizeBytes, 0)
	let before = 0
	return new Set(
		sorted
			.filter(([, sizeBytes]) => {
				const middle = before + sizeBytes / 2
				before += sizeBytes
				return Math.min(parts, Math.floor((middle / Math.max(1, total)) * parts) + 1) === part
			})
			.map(([path]) => path),
	)
}

/** How long ago files were really read; `undefined` for one that never was since it last changed. */
export function coverageOf(hashedAt: readonly (string | undefined)[]): string {
	const known = hashedAt.filter((at) => at !== undefined).sort()
	const never = hashedAt.length - known.length
	const [oldest] = known
	const longest =
		oldest === undefined ? "no file was ever read to its end" : `the oldest reading of a file is of ${oldest}`
	return `coverage: ${longest}; ${never} of ${hashedAt.length} never since they last changed`
}
