// Hashing a file in a worker: the next chunk is read while this one is hashed.
import { createHash } from "node:crypto"
import { closeSync, openSync, read } from "node:fs"
import { type Control, countBytes, isStopped } from "./control.ts"
import type { Jobs } from "./worker-pool.ts"

// Smaller ones are slow on NFS.
const chunkBytes = 1024 * 1024
// Where a thread has one file alone: fewer turns of its event loop are 3 % less work. Transfers would need it per part.
const wholeChunkBytes = 4 * 1024 * 1024

/** An error that only says that somebody called a halt. */
export function stoppedError(): Error {
	return Object.assign(new Error("stopped"), { code: "ABORT_ERR" })
}

// Used again and again: left to the garbage collector, they would pile up faster than it comes.
const idleBuffers = new Map<number, Buffer[]>()
const takeBuffer = (bytes: number) => idleBuffers.get(bytes)?.pop() ?? Buffer.allocUnsafeSlow(bytes)

/** Reads a file's stretch in chunks, each valid until the next one is asked for. Ends early where the file does. */
export async function* readAhead(
	fd: number,
	first: number,
	end: number,
	control: Control,
	bufferBytes = chunkBytes,
): AsyncGenerator<Buffer> {
	const buffers = [takeBuffer(bufferBytes), takeBuffer(bufferBytes)] as const
	const readChunk = (buffer: Buffer, at: number) =>
		new Promise<number>((resolve, reject) => {
			const room = Math.min(bufferBytes, end - at)
			if (room <= 0) return resolve(0)
			read(fd, buffer, 0, room, at, (error, came) => (error === null ? resolve(came) : reject(error)))
		})
	let at = first
	let turn: 0 | 1 = 0
	let next = readChunk(buffers[turn], at)
	try {
		for (let came = await next; came > 0; came = await next) {
			if (isStopped(control)) throw stoppedError()
			const chunk = buffers[turn].subarray(0, came)
			at += came
			turn = turn === 0 ? 1 : 0
			next = readChunk(buffers[turn], at)
			// Who takes the chunk may leave before the read has ended; then nobody awaits it.
			next.catch(() => {})
			yield chunk
		}
	} finally {
		await next.catch(() => {})
		idleBuffers.set(bufferBytes, [...(idleBuffers.get(bufferBytes) ?? []), ...buffers])
	}
}

/** sha256 of a whole file and of its blocks, in one pass. */
export async function hashWhole({
	path,
	blockBytes,
	control,
}: Jobs["hash"]["input"]): Promise<Jobs["hash"]["output"]> {
	const whole = createHash("sha256")
	const blocks: string[] = []
	let block = createHash("sha256")
	let sizeBytes = 0
	const fd = openSync(path, "r")
	try {
		for await (const chunk of readAhead(fd, 0, Number.POSITIVE_INFINITY, control, wholeChunkBytes)) {
			whole.update(chunk)
			if (blockBytes !== undefined) {
				// A read may give less than it was asked for; blocks end where they end all the same.
				for (let at = 0; at < chunk.length; ) {
					const room = Math.min(chunk.length - at, blockBytes - ((sizeBytes + at) % blockBytes))
					block.update(chunk.subarray(at, at + room))
					at += room
					if ((sizeBytes + at) % blockBytes !== 0) continue
					blocks.push(block.digest("hex"))
					block = createHash("sha256")
				}
			}
			sizeBytes += chunk.length
			countBytes(control, chunk.length)
		}
	} finally {
		closeSync(fd)
	}
	if (blockBytes !== undefined && sizeBytes % blockBytes !== 0) blocks.push(block.digest("hex"))
	const digest = whole.digest("hex")
	return blockBytes === undefined ? { digest, sizeBytes } : { digest, sizeBytes, blocks }
}
