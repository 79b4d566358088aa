// Digests of files, several at once, in threads of their own.
import { availableParallelism } from "node:os"
import { bytesCounted, newControl, stop } from "./control.ts"
import { blockBytes } from "./transfer.ts"
import { openWorkerPool } from "./worker-pool.ts"

export type FileDigests = {
	/** sha256 of the whole, in hex. */
	digest: string
	sizeBytes: number
	/** sha256 of every 16 MiB, where they were asked for. */
	blocks?: readonly string[]
}

export type HashOptions = {
	/** Also the digest of each 16 MiB: twice the work. */
	blocks?: boolean
	signal?: AbortSignal
	/** A few times per second, with the bytes hashed so far. */
	onProgress?: (doneBytes: number) => void
}

export type HashPool = AsyncDisposable & {
	/** How many files are worth asking for at once. */
	readonly threads: number
	/**
	 * Hashes a file of this machine. More files than threads wait in line.
	 * @throws what the system throws, with its code; the signal's reason when it was stopped
	 */
	hashFile(path: string, options?: HashOptions): Promise<FileDigests>
}

const progressMs = 250

/** Threads start with the first files and end with the pool. */
export function openHashPool(threads = Math.min(availableParallelism(), 8)): HashPool {
	const pool = openWorkerPool(threads)
	const idle = Array.from({ length: threads }, (_, thread) => thread)
	const line: ((thread: number) => void)[] = []
	const takeThread = () => {
		const thread = idle.shift()
		return thread === undefined ? new Promise<number>((resolve) => line.push(resolve)) : thread
	}
	const giveBack = (thread: number) => {
		const next = line.shift()
		if (next === undefined) idle.unshift(thread)
		else next(thread)
	}
	return {
		threads,
		async hashFile(path, { blocks, signal, onProgress } = {}) {
			const control = newControl()
			const thread = await takeThread()
			const timer = onProgress && setInterval(() => onProgress(bytesCounted(control)), progressMs)
			const onAbort = () => stop(control)
			signal?.addEventListener("abort", onAbort, { once: true })
			try {
				signal?.throwIfAborted()
				const input = { path, control, ...(blocks === true ? { blockBytes } : {}) }
				const digests = await pool.run(thread, "hash", input)
				onProgress?.(digests.sizeBytes)
				return digests
			} catch (error) {
				signal?.throwIfAborted()
				throw error
			} finally {
				signal?.removeEventListener("abort", onAbort)
				clearInterval(timer)
				giveBack(thread)
			}
		},
		[Symbol.asyncDispose]: () => pool[Symbol.asyncDispose](),
	}
}
