// The file that is about to be stored: read once to learn its checksums, and again to send it.
import { createHash } from "node:crypto"
import type { FileHandle } from "node:fs/promises"
import { OperatorError } from "../errors.ts"
import { crc64nvme } from "./crc64nvme.ts"

// Smaller reads are slow on NFS.
const chunkBytes = 1024 * 1024

/**
 * Reads a stretch of a file in chunks of up to 1 MiB.
 * @throws {OperatorError} when the file ends before the stretch does.
 */
export async function* readStretch(
	file: FileHandle,
	{ offsetBytes, sizeBytes }: { offsetBytes: number; sizeBytes: number },
): AsyncGenerator<Buffer> {
	let done = 0
	while (done < sizeBytes) {
		// A new buffer for each chunk: whoever takes it may hold it while the next is read.
		const chunk = Buffer.allocUnsafe(Math.min(chunkBytes, sizeBytes - done))
		const { bytesRead } = await file.read(chunk, 0, chunk.length, offsetBytes + done)
		if (bytesRead === 0) throw new OperatorError("the file became shorter while it was read")
		done += bytesRead
		yield chunk.subarray(0, bytesRead)
	}
}

/** Reads the whole file once: sha256 in hex, and CRC-64/NVME in base64. */
export async function measureFile(
	file: FileHandle,
	{ sizeBytes, signal }: { sizeBytes: number; signal?: AbortSignal | undefined },
): Promise<{ digest: string; crc64: string }> {
	const digest = createHash("sha256")
	const crc64 = crc64nvme()
	for await (const chunk of readStretch(file, { offsetBytes: 0, sizeBytes })) {
		signal?.throwIfAborted()
		digest.update(chunk)
		crc64.update(chunk)
	}
	return { digest: digest.digest("hex"), crc64: crc64.base64() }
}
