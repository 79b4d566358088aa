// A model on this machine's disk, open for judging: small reads here and there.
import { open } from "node:fs/promises"
import type { ReadRange } from "../formats/safetensors.ts"

/** Opens a regular file for reading. Throws what the system throws. */
export async function openModel(diskPath: string): Promise<{ read: ReadRange } & AsyncDisposable> {
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
		[Symbol.asyncDispose]: () => file.close(),
	}
}
