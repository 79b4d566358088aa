// Hashing for one model at a time, between other work: threads live no longer than the file takes.
import { openHashPool } from "../storage/hash-pool.ts"
import type { DigestCache } from "./digest-cache.ts"
import type { Hashing } from "./hashing.ts"

/** @param options.cache digests that are remembered; every byte is read without it */
export function hashingAlone({
	cache,
	now,
	onProgress,
}: {
	cache?: DigestCache
	now: () => Date
	onProgress: (doneBytes: number) => void
}): Hashing {
	return {
		together: 1,
		// Only asked: a dry run keeps nothing. `verify-models` is what remembers.
		...(cache && { cache: { ...cache, note: async () => {} } }),
		treat: () => (cache === undefined ? "hash" : "ask"),
		now,
		hash: async (diskPath, signal) => {
			await using pool = openHashPool(1)
			return (await pool.hashFile(diskPath, { ...(signal && { signal }), onProgress })).digest
		},
	}
}
