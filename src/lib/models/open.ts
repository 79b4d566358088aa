// A model on this machine's disk, open for judging and for hashing.
import { open } from "node:fs/promises"
import type { ReadRange } from "../formats/safetensors.ts"
import type { ReadInto } from "./digest.ts"

/** Judged by small reads, hashed by large ones into one buffer. */
export type OpenModel = { read: ReadRange; readInto: ReadInto }

/** Opens a regular file for reading. Throws what the system throws. */
export async function openModel(diskPath: string): Promise<OpenModel & AsyncDisposable> {
	const file = await open(diskPath, "r")
	return {
		async read(offset, length) {
			const bytes = Buffer.allocUnsafe(length)
			let done = 0
			while (done < length) {
				const { bytesRead } = await file.read(bytes, done, length - done, offset + done)
				if (bytesRead === 0) break
				done += bytesRead
			}
			return bytes.subarray(0, done)
		},
		readInto: async (buffer, offset) => (await file.read(buffer, 0, buffer.length, offset)).bytesRead,
		[Symbol.asyncDispose]: () => file.close(),
	}
}
