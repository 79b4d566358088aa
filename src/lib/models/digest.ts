// The digests of a model, in one pass over its bytes.
import { createHash } from "node:crypto"
import { blockBytes } from "../storage/transfer.ts"

export { blockBytes }

type ModelDigests = { digest: string; sizeBytes: number; blocks: readonly string[] }

/**
 * Reads a file from its beginning into a caller's buffer, so that memory doesn't grow with the file.
 * @returns how many bytes came; 0 at the end
 */
export type ReadInto = (buffer: Buffer, offset: number) => Promise<number>

/**
 * sha256 of the whole, in hex, and with `blocks` of every 16 MiB of it.
 * @param buffer its length must divide a block; it is written to
 */
export async function digestModel(
	readInto: ReadInto,
	{ blocks: wanted, buffer, signal }: { blocks: boolean; buffer: Buffer; signal?: AbortSignal },
): Promise<ModelDigests> {
	const whole = createHash("sha256")
	const blocks: string[] = []
	let block = createHash("sha256")
	let sizeBytes = 0
	for (;;) {
		signal?.throwIfAborted()
		// A read may give less than it was asked for; blocks end where they end all the same.
		const room = Math.min(buffer.length, blockBytes - (sizeBytes % blockBytes))
		const came = await readInto(buffer.subarray(0, room), sizeBytes)
		if (came === 0) break
		whole.update(buffer.subarray(0, came))
		if (wanted) block.update(buffer.subarray(0, came))
		sizeBytes += came
		if (wanted && sizeBytes % blockBytes === 0) {
			blocks.push(block.digest("hex"))
			block = createHash("sha256")
		}
	}
	if (wanted && sizeBytes % blockBytes !== 0) blocks.push(block.digest("hex"))
	return { digest: whole.digest("hex"), sizeBytes, blocks }
}
