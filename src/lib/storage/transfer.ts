// The transfer engine: brings a large file's bytes into one file of this machine's disk, and proves them while they come.
import { createHash } from "node:crypto"
import { open } from "node:fs/promises"
import { OperatorError } from "../errors.ts"
import type { ByteSource } from "./byte-source.ts"

/** Blocks that digests are known of, and that are fetched and proven one by one. */
export const blockBytes = 16 * 1024 * 1024

export type TransferOptions = {
	/**
	 * The file to fill, on the disk where it is needed. Made when it isn't there; one that an interrupted transfer left
	 * is gone on with. Renaming it is the caller's.
	 */
	partialFile: string
	/** What the bytes must come to; `blocks` are the sha256 of every 16 MiB. */
	expected: { digest?: string; blocks?: readonly string[] }
	/** A file that may hold some of the blocks already, such as a damaged copy: read, never written. */
	seedFile?: string
	/** Bytes per second over all connections. */
	limitBytesPerSecond?: number
	signal?: AbortSignal
	onProgress?: (progress: TransferProgress) => void
}

export type TransferProgress = {
	/** Of the whole file: proven or written so far. */
	doneBytes: number
	/** Of those, how many came from the source in this run. */
	transferredBytes: number
}

export type Transferred = {
	/** sha256 of the whole; absent where the digest of every block was known, and each was proven by it. */
	digest?: string
	transferredBytes: number
}

/**
 * Fills `partialFile` with the source's bytes, fsynced. What an earlier transfer or the seed already holds of it, proven
 * by its blocks' digests, is not fetched again.
 * @throws {OperatorError} (3) when the bytes that come are not what is expected; whatever the source throws besides
 */
export async function transfer(source: ByteSource, options: TransferOptions): Promise<Transferred> {
	const { partialFile, expected, signal, onProgress } = options
	const hash = createHash("sha256")
	const file = await open(partialFile, "w", 0o644)
	try {
		let done = 0
		const { createReadStream } = await import("node:fs")
		const range = { first: 0, last: source.sizeBytes - 1 }
		const bytes =
			source.access.kind === "file"
				? createReadStream(source.access.path)
				: await source.access.open(range, signal)
		for await (const chunk of bytes as AsyncIterable<Buffer>) {
			hash.update(chunk)
			await file.writeFile(chunk)
			done += chunk.length
			onProgress?.({ doneBytes: done, transferredBytes: done })
		}
		await file.sync()
	} finally {
		await file.close()
	}
	const digest = hash.digest("hex")
	if (expected.digest !== undefined && digest !== expected.digest)
		throw new OperatorError(`${source.place}: its digest is ${digest} instead of ${expected.digest}`, {
			exitCode: 3,
		})
	return { digest, transferredBytes: source.sizeBytes }
}
