// Has the disk take what was written while more comes. Left to one fsync at the end, a quarter of a large transfer's
// time would be spent waiting for it.
import type { FileHandle } from "node:fs/promises"

export type EarlyFlush = {
	/** So many bytes more have been written. @throws what an earlier flush failed with */
	wrote(bytes: number): void
	/** Fsyncs. @throws what this or an earlier flush failed with */
	finish(): Promise<void>
}

// Large enough that a disk's own order of things isn't disturbed.
const flushedAtOnceBytes = 128 * 1024 * 1024

/** One flush at a time, behind the writes. Closing the file waits for one that is under way. */
export function earlyFlush(
	file: Pick<FileHandle, "datasync" | "sync">,
	atOnceBytes = flushedAtOnceBytes,
): EarlyFlush {
	let unflushedBytes = 0
	let flushing: Promise<void> | undefined
	// The system tells of a failed write once: who asks again is told that all is well.
	let failure: { error: unknown } | undefined
	const check = () => {
		if (failure !== undefined) throw failure.error
	}
	const flush = async () => {
		try {
			await file.datasync()
		} catch (error) {
			failure ??= { error }
		} finally {
			flushing = undefined
		}
	}
	return {
		wrote(bytes) {
			check()
			unflushedBytes += bytes
			if (unflushedBytes < atOnceBytes || flushing !== undefined) return
			unflushedBytes = 0
			flushing = flush()
		},
		async finish() {
			await flushing
			check()
			await file.sync()
		},
	}
}
