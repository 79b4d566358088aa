// The transfer engine: brings a large file's bytes into one file of this machine's disk, and proves them while they come.
import { type FileHandle, stat } from "node:fs/promises"
import { availableParallelism } from "node:os"
import { codeOf, OperatorError, systemError } from "../errors.ts"
import type { ByteSource } from "./byte-source.ts"
import { bytesCounted, newControl, stop } from "./control.ts"
import { type EarlyFlush, earlyFlush } from "./early-flush.ts"
import { ObjectChanged } from "./object-store.ts"
import { noteBlock, removePartial, removePartialState } from "./partial-state.ts"
import {
	fetchBlocks,
	findCandidates,
	follow,
	prepare,
	proveBlocks,
	type Run,
	takeSeed,
} from "./transfer-run.ts"
import { JobFailed, openWorkerPool } from "./worker-pool.ts"

/** Blocks that digests are known of, and that are fetched and proven one by one. */
export const blockBytes = 16 * 1024 * 1024

export type TransferOptions = {
	/**
	 * The file to fill, on the disk where it is needed. Made when it isn't there; one that an interrupted transfer left
	 * is gone on with. Renaming it is the caller's. `<partialFile>.json` beside it notes what came; it goes at the end.
	 */
	partialFile: string
	/** What the bytes must come to; `blocks` are the sha256 of every 16 MiB. */
	expected: { digest?: string; blocks?: readonly string[] }
	/** A file that may hold some of the blocks already, such as a damaged copy: read, never written. */
	seedFile?: string
	/** Bytes per second over all connections. */
	limitBytesPerSecond?: number
	/** Blocks under way at once. */
	lanes?: number
	/** Another size of blocks, where no digests of blocks are expected; for tests. */
	blockSizeBytes?: number
	signal?: AbortSignal
	/** A few times per second. */
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
	/** Bytes of the file that came from the source in this run. */
	transferredBytes: number
}

// A source that is replaced again and again would keep us for ever.
const mostRenewals = 2

/**
 * Fills `partialFile` with the source's bytes, fsynced. What an earlier transfer or the seed already holds of it, proven
 * by its blocks' digests, is not fetched again. After a failure or a signal the partial file stays, to be gone on with;
 * it is removed where it could only mislead or fill the disk.
 * @throws {OperatorError} (3) when the bytes that come are not what is expected, (7) for want of space;
 * {ObjectChanged} when the source was replaced and can't be renewed; whatever the source throws besides
 */
export async function transfer(source: ByteSource, options: TransferOptions): Promise<Transferred> {
	let current = source
	for (let renewals = 0; ; renewals++) {
		try {
			return await transferOnce(current, options)
		} catch (error) {
			if (!(error instanceof ObjectChanged)) throw error
			// What came of the old object must never stand beside what comes of the new one.
			if (options.expected.blocks === undefined) await removePartial(options.partialFile)
			if (current.renew === undefined || renewals === mostRenewals) throw error
			current = await current.renew()
		}
	}
}

async function transferOnce(source: ByteSource, options: TransferOptions): Promise<Transferred> {
	const { partialFile, expected, signal } = options
	const { sizeBytes, place } = source
	const size = options.blockSizeBytes ?? blockBytes
	const count = Math.ceil(sizeBytes / size)
	signal?.throwIfAborted()
	if (expected.blocks !== undefined && expected.blocks.length !== count)
		throw new OperatorError(
			`${place}: it has ${sizeBytes} bytes, which are ${count} blocks; the manifest names ${expected.blocks.length}`,
		)
	const sourceBefore = await statSource(source)
	const control = newControl()
	const halt = new AbortController()
	const onAbort = () => {
		stop(control)
		halt.abort(signal?.reason)
	}
	signal?.addEventListener("abort", onAbort, { once: true })
	if (signal?.aborted === true) onAbort()
	// One thread more follows with the digest of the whole, where that is what proves it.
	const threads = Math.min(Math.max(availableParallelism(), 1), 4)
	const pool = openWorkerPool(threads + 1)
	const done = new Set<number>()
	let noting: Promise<void> = Promise.resolve()
	let misleads = false
	let doneBytes = 0
	let shownBytes = 0
	let flush: EarlyFlush | undefined
	const follower =
		expected.blocks === undefined ? follow(pool, threads, options, size, source, control) : undefined
	const run: Run = {
		source,
		options,
		blockBytes: size,
		count,
		pool,
		control,
		halt,
		done,
		onDone: (block) => {
			const { first, last } = run.stretch(block)
			done.add(block)
			doneBytes += last - first + 1
			follower?.advance(done)
		},
		note: async (block, digest) => {
			noting = noteBlock(partialFile, block, digest)
			await noting
			run.onDone(block)
			flush?.wrote(size)
		},
		stretch: (block) => ({ first: block * size, last: Math.min((block + 1) * size, sizeBytes) - 1 }),
	}
	const cameFor = { proof: 0 }
	const progress = () => {
		const transferredBytes = bytesCounted(control)
		shownBytes = Math.max(
			shownBytes,
			Math.min(sizeBytes, Math.max(doneBytes, cameFor.proof + transferredBytes)),
		)
		options.onProgress?.({ doneBytes: shownBytes, transferredBytes })
	}
	const timer = options.onProgress && setInterval(progress, 250)
	let file: FileHandle | undefined
	try {
		const found = await findCandidates(run)
		file = await prepare(run, { goesOn: found.candidates.size > 0, noted: found.noted })
		flush = earlyFlush(file)
		await proveBlocks(run, found, threads)
		if (options.seedFile !== undefined) await takeSeed(run, options.seedFile, threads)
		cameFor.proof = doneBytes
		await fetchBlocks(run, threads)
		const digest = await follower?.finish()
		await sourceUnchanged(source, sourceBefore)
		if (expected.digest !== undefined && digest !== undefined && digest !== expected.digest) {
			// Which of the blocks is wrong can't be told, so none of them may be gone on with.
			misleads = true
			throw new OperatorError(`${place}: its digest is ${digest} instead of ${expected.digest}`)
		}
		await flush.finish()
		await file.close()
		file = undefined
		await removePartialState(partialFile)
		progress()
		return { transferredBytes: bytesCounted(control), ...(digest !== undefined && { digest }) }
	} catch (error) {
		if (signal?.aborted === true)
			throw new OperatorError(`${place}: stopped`, {
				cause: signal.reason,
				hint: "run the same command again to go on",
			})
		// Others need the room that this one couldn't use.
		misleads ||= ["ENOSPC", "EDQUOT"].includes(codeOf(error) ?? "")
		throw forOperator(error, run)
	} finally {
		signal?.removeEventListener("abort", onAbort)
		clearInterval(timer)
		stop(control)
		halt.abort()
		await pool[Symbol.asyncDispose]()
		await file?.close()
		await noting.catch(() => {})
		if (misleads) await removePartial(partialFile)
	}
}

function forOperator(error: unknown, { source, options }: Run): unknown {
	if (error instanceof OperatorError) return error
	const { partialFile } = options
	const atTarget = error instanceof JobFailed ? error.target === true : codeOf(error) !== undefined
	if (!atTarget) return error instanceof JobFailed ? systemError(error, `reading ${source.place}`) : error
	return systemError(error, `writing ${partialFile}`)
}

type Identity = { size: number; mtimeMs: number; ino: number }

async function statSource({ access, sizeBytes, place }: ByteSource): Promise<Identity | undefined> {
	if (access.kind !== "file") return undefined
	const stats = await stat(access.path).catch((error: unknown) => {
		throw systemError(error, `reading ${place}`)
	})
	if (stats.size !== sizeBytes) throw new ObjectChanged(place)
	return stats
}

async function sourceUnchanged(source: ByteSource, before: Identity | undefined): Promise<void> {
	if (before === undefined) return
	const after = await statSource(source)
	if (after?.mtimeMs !== before.mtimeMs || after.ino !== before.ino) throw new ObjectChanged(source.place)
}
