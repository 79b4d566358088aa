// The file that is about to be stored: read once to learn its checksums, and again to send it.
import { createHash } from "node:crypto"
import type { FileHandle } from "node:fs/promises"
import { OperatorError } from "../errors.ts"
import { crc64nvme } from "./crc64nvme.ts"

// Smaller reads are slow on NFS.
const chunkBytes = 1024 * 1024

/** A piece of a file, with what its bytes must come to. */
export type FilePart = {
	/** From 1, as S3 counts parts. */
	number: number
	offsetBytes: number
	sizeBytes: number
	/** sha256 in hex. */
	digest: string
	/** CRC-64/NVME in base64. */
	crc64: string
}

export type MeasuredFile = { parts: readonly FilePart[]; digest: string; crc64: string }

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

/**
 * Reads the whole file once and gives digest and checksum of it and of its parts.
 * @param partBytes size of all parts but the last
 */
export async function measureFile(
	file: FileHandle,
	{
		sizeBytes,
		partBytes,
		signal,
	}: { sizeBytes: number; partBytes: number; signal?: AbortSignal | undefined },
): Promise<MeasuredFile> {
	const whole = { digest: createHash("sha256"), crc64: crc64nvme() }
	const parts: FilePart[] = []
	let offsetBytes = 0
	do {
		const size = Math.min(partBytes, sizeBytes - offsetBytes)
		const single = size === sizeBytes
		const part = single ? whole : { digest: createHash("sha256"), crc64: crc64nvme() }
		for await (const chunk of readStretch(file, { offsetBytes, sizeBytes: size })) {
			signal?.throwIfAborted()
			part.digest.update(chunk)
			part.crc64.update(chunk)
			if (single) continue
			whole.digest.update(chunk)
			whole.crc64.update(chunk)
		}
		parts.push({
			number: parts.length + 1,
			offsetBytes,
			sizeBytes: size,
			digest: part.digest.copy().digest("hex"),
			crc64: part.crc64.base64(),
		})
		offsetBytes += size
	} while (offsetBytes < sizeBytes)
	return { parts, digest: whole.digest.digest("hex"), crc64: whole.crc64.base64() }
}
