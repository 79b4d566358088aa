// Places held against each other: what one has and another lacks, sizes that differ, names that differ only in case.
import { isModelName } from "./directories.ts"
import { foldPath, type ModelEntry } from "./manifest.ts"
import type { Verdict } from "./verify.ts"

/** What lies in one place: path -> size in bytes, undefined for what is there and is no file. */
export type Listing = { place: string; files: ReadonlyMap<string, number | undefined> }

export type Comparison = {
	/** A verdict of one place, with what the other places say of the same path. */
	compare(place: string, verdict: Verdict, entry: ModelEntry | undefined): Verdict
}

/** @param listings of all places that could be listed, and what the manifest names */
export function comparePlaces(
	listings: readonly Listing[],
	models: readonly ModelEntry[] | undefined,
): Comparison {
	const folded = new Map<string, Set<string>>()
	const note = (path: string) => {
		const twins = folded.get(foldPath(path)) ?? new Set<string>()
		folded.set(foldPath(path), twins.add(path))
	}
	for (const { files } of listings) for (const path of files.keys()) note(path)
	for (const { path } of models ?? []) note(path)

	const twinsOf = (path: string) =>
		[...(folded.get(foldPath(path)) ?? [])]
			.filter((other) => other !== path)
			.map((other) => `${other} differs from it only in case or in Unicode's form`)

	return {
		compare(place, verdict, entry) {
			const { path, status, sizeBytes } = verdict
			const others = listings.filter((listing) => listing.place !== place)
			const say = (more: readonly string[]) => [verdict.because, ...more].join("; ")
			const twins = twinsOf(path)
			if (status === "missing" || status === "broken-link") {
				const having = others.flatMap(({ place: other, files }) => {
					const there = files.get(path)
					return there === undefined ? [] : [`${other} has it (${there} bytes)`]
				})
				const nowhere = others.length > 0 && having.length === 0 ? ["no other place has it"] : []
				return { ...verdict, because: say([...having, ...nowhere, ...twins]) }
			}
			if (!isModelName(path)) return verdict
			if (status !== "ok" && status !== "extra") return { ...verdict, because: say(twins) }
			const differing = others.flatMap(({ place: other, files }) => {
				const there = files.get(path)
				return there === undefined || there === sizeBytes ? [] : [`${other} has ${there} bytes of it`]
			})
			// Where the manifest knows the size, the other place's own verdict says who is wrong.
			if (differing.length > 0 && entry?.sizeBytes === undefined) {
				const because = `it has ${sizeBytes} bytes here, ${differing.join(", ")}`
				return { ...verdict, status: "differs", tier: "size", right: false, because }
			}
			if (status === "ok") return twins.length === 0 ? verdict : { ...verdict, because: say(twins) }
			const lacking = others
				.filter(({ files }) => !files.has(path))
				.map(({ place: other }) => `${other} doesn't have it`)
			return { ...verdict, because: say([...lacking, ...twins]) }
		},
	}
}
