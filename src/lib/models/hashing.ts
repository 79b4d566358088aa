// How the digests of files on a disk are had: read now, or remembered from before.
import { join } from "node:path"
import { openHashPool } from "../storage/hash-pool.ts"
import { type DigestCache, digestCacheFile, isSame, openDigestCache } from "./digest-cache.ts"
import { isModelName } from "./directories.ts"
import { type FileIdentity, locate } from "./kind.ts"
import type { ModelEntry } from "./manifest.ts"
import { coverageOf, filesOfPart, type Scrub } from "./scrub.ts"

/** What is to be known of a model's digest. Times in ISO 8601. */
export type Digested =
	/** Its bytes were read; `before` is what they came to the last time, when nothing else has changed since. */
	| { state: "read"; sha256: string; hashedAt: string; now?: boolean; before?: string }
	/** Noted by whoever stored it. */
	| { state: "claimed"; sha256: string }
	| { state: "changed" }
	| { state: "none"; because: string }

export type Hashing = {
	/** sha256 of a file's bytes, in hex. Throws what the system throws. */
	hash: (diskPath: string, signal: AbortSignal | undefined) => Promise<string>
	/** How many files at a time. */
	together: number
	cache?: DigestCache
	/**
	 * `hash`: read, whatever is remembered. `ask`: remembered, or read where there is something to compare with.
	 * `skip`: remembered or nothing.
	 */
	treat: (path: string) => "hash" | "ask" | "skip"
	now: () => Date
}

/** The digest of a file of this machine's disk. Throws what the system throws. */
export async function digestOfFile(
	{
		path,
		diskPath,
		located,
		entry,
	}: {
		path: string
		diskPath: string
		located: { identity: FileIdentity }
		entry: ModelEntry | undefined
	},
	{ hash, cache, treat, now }: Hashing,
	signal: AbortSignal | undefined,
): Promise<Digested> {
	const known = cache?.find(path, located.identity)
	const how = treat(path)
	if (known !== undefined && how !== "hash") return { state: "read", ...known }
	if (how === "skip") return { state: "none", because: "it is not in this part of the scrub" }
	if (how === "ask" && entry?.sha256 === undefined) return { state: "none", because: "no digest is known" }
	const startedAt = now()
	const sha256 = await hash(diskPath, signal)
	const after = await locate(diskPath)
	if (after.state !== "file" || !isSame(after.identity, located.identity)) return { state: "changed" }
	// One that changed by itself stays known as it was: the next look must say so again.
	const rotten = known !== undefined && known.sha256 !== sha256 && sha256 !== entry?.sha256
	if (!rotten) await cache?.note(path, located.identity, { sha256, startedAt })
	return {
		state: "read",
		sha256,
		hashedAt: startedAt.toISOString(),
		now: true,
		...(known !== undefined && { before: known.sha256 }),
	}
}

export type HashingOptions = {
	/** The models' directory on this machine, and what lies there: path -> size, undefined for what is no file. */
	directory: string
	files: ReadonlyMap<string, number | undefined>
	/** Where digests are remembered; nothing is without it. */
	cacheDirectory?: string
	models: readonly ModelEntry[] | undefined
	/** Read every byte, whatever is remembered. */
	deep: boolean
	/** Read the files of this part; of the others only what is remembered. */
	scrub?: Scrub
	now: () => Date
	/** Bytes hashed so far, of how many. */
	onProgress: (progress: { doneBytes: number; totalBytes: number }) => void
}

/** Opens threads for hashing and the cache. `close` ends them and gives what the operator should know. */
export async function openHashing(
	options: HashingOptions,
): Promise<Hashing & { close(): Promise<string[]> }> {
	const { directory, files, cacheDirectory, models, deep, scrub, now, onProgress } = options
	const sizes = new Map(
		[...files].flatMap(([path, sizeBytes]): [string, number][] =>
			sizeBytes !== undefined && isModelName(path) ? [[path, sizeBytes]] : [],
		),
	)
	const cache =
		cacheDirectory === undefined
			? undefined
			: await openDigestCache(digestCacheFile(cacheDirectory, directory), now)
	const part = scrub === undefined ? undefined : filesOfPart(sizes, scrub)
	const treat = (path: string) => {
		if (deep || part?.has(path) === true) return "hash"
		return part === undefined ? "ask" : "skip"
	}
	const withDigest = new Set(
		models?.flatMap(({ path, sha256 }) => (sha256 === undefined ? [] : [path])) ?? [],
	)
	const hashedAt = async (path: string) => {
		const located = await locate(join(directory, path))
		return located.state === "file" ? cache?.find(path, located.identity)?.hashedAt : undefined
	}
	let totalBytes = 0
	for (const [path, sizeBytes] of sizes) {
		const how = treat(path)
		const asked = how === "ask" && withDigest.has(path) && (await hashedAt(path)) === undefined
		if (how === "hash" || asked) totalBytes += sizeBytes
	}
	const pool = openHashPool()
	let doneBytes = 0
	return {
		together: pool.threads,
		...(cache && { cache }),
		treat,
		now,
		hash: async (diskPath, signal) => {
			let ofThis = 0
			const { digest } = await pool.hashFile(diskPath, {
				...(signal && { signal }),
				onProgress: (bytes) => {
					doneBytes += bytes - ofThis
					ofThis = bytes
					onProgress({ doneBytes, totalBytes: Math.max(totalBytes, doneBytes) })
				},
			})
			return digest
		},
		close: async () => {
			await pool[Symbol.asyncDispose]()
			await cache?.save(new Set(files.keys()))
			const trouble = cache?.trouble()
			const coverage =
				scrub === undefined ? [] : [coverageOf(await Promise.all([...sizes.keys()].map(hashedAt)))]
			return [...(trouble === undefined ? [] : [trouble]), ...coverage]
		},
	}
}
