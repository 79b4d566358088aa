// How the digests of files on a disk are had: read now, or remembered from before.
import { open } from "node:fs/promises"
import { digestModel } from "./digest.ts"
import type { DigestCache } from "./digest-cache.ts"
import { isSame } from "./digest-cache.ts"
import { type FileIdentity, locate } from "./kind.ts"
import type { ModelEntry } from "./manifest.ts"

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

const bufferBytes = 1024 * 1024

/** Hashes one file at a time, on this thread. */
export function hashHere(onBytes?: (doneBytes: number) => void): Pick<Hashing, "hash" | "together"> {
	const buffer = Buffer.allocUnsafe(bufferBytes)
	return {
		together: 1,
		hash: async (diskPath, signal) => {
			await using file = await open(diskPath, "r")
			const readInto = async (into: Buffer, offset: number) => {
				const { bytesRead } = await file.read(into, 0, into.length, offset)
				onBytes?.(bytesRead)
				return bytesRead
			}
			return (await digestModel(readInto, { blocks: false, buffer, ...(signal && { signal }) })).digest
		},
	}
}
