// A large file, sent in equal parts.
import type { CompletedPart, HeadObjectCommandOutput } from "@aws-sdk/client-s3"
import type { FilePart } from "./local-file.ts"
import { type Connection, sendBytes } from "./s3-connection.ts"
import { s3Problem, statusOf } from "./s3-errors.ts"

export type PartedUpload = {
	bucket: string
	key: string
	metadata: Record<string, string>
	sizeBytes: number
	/** R2 wants equal part sizes except the last. */
	parts: readonly FilePart[]
	/** CRC-64/NVME of the whole, base64. */
	crc64: string
	bytesOf: (part: FilePart) => AsyncIterable<Buffer>
	onProgress?: (doneBytes: number) => void
	signal?: AbortSignal
}

// Clearing up must end even when the service has gone silent.
const abortTimeoutMs = 10_000

/**
 * Sends the parts, a few at a time, and has the service join them if the key still holds nothing. When that fails, the
 * unfinished upload is aborted: the only thing that comfyume ever takes away from a bucket.
 * @param findHead looks at the key again, for a service that knows no condition on the joining
 */
export async function uploadInParts(
	connection: Connection,
	upload: PartedUpload,
	concurrentParts: number,
	findHead: () => Promise<HeadObjectCommandOutput | undefined>,
): Promise<void> {
	const { sdk, client } = connection
	const { bucket: Bucket, key: Key, signal } = upload
	const created = await client.send(
		new sdk.CreateMultipartUploadCommand({
			Bucket,
			Key,
			Metadata: upload.metadata,
			ContentType: "application/octet-stream",
			ChecksumAlgorithm: "CRC64NVME",
			ChecksumType: "FULL_OBJECT",
		}),
		signal === undefined ? {} : { abortSignal: signal },
	)
	const { UploadId } = created
	if (UploadId === undefined) throw s3Problem("ForeignAnswer", "an upload without an id")
	try {
		const completed = await sendParts(connection, upload, UploadId, concurrentParts)
		await complete(connection, upload, UploadId, completed, findHead)
	} catch (error) {
		// Its own failure would hide the one that matters; the service drops what is left unfinished after a week.
		await client
			.send(new sdk.AbortMultipartUploadCommand({ Bucket, Key, UploadId }), {
				abortSignal: AbortSignal.timeout(abortTimeoutMs),
			})
			.catch(() => {})
		throw error
	}
}

async function sendParts(
	{ sdk, client }: Connection,
	upload: PartedUpload,
	UploadId: string,
	concurrentParts: number,
): Promise<CompletedPart[]> {
	const stop = new AbortController()
	const signal = upload.signal === undefined ? stop.signal : AbortSignal.any([stop.signal, upload.signal])
	const sentOf = new Map<number, number>()
	const completed: CompletedPart[] = []
	const waiting = [...upload.parts]
	const sendOne = async (part: FilePart) => {
		const command = new sdk.UploadPartCommand({
			Bucket: upload.bucket,
			Key: upload.key,
			UploadId,
			PartNumber: part.number,
			ContentLength: part.sizeBytes,
			ChecksumCRC64NVME: part.crc64,
		})
		sendBytes(command, {
			...part,
			open: () => upload.bytesOf(part),
			onSent: (bytes) => {
				sentOf.set(part.number, bytes)
				let total = 0
				for (const sent of sentOf.values()) total += sent
				upload.onProgress?.(total)
			},
		})
		const { ETag } = await client.send(command, { abortSignal: signal })
		if (ETag === undefined) throw s3Problem("ForeignAnswer", "a part without an ETag")
		completed.push({ PartNumber: part.number, ETag, ChecksumCRC64NVME: part.crc64 })
	}
	const lane = async () => {
		for (let part = waiting.shift(); part !== undefined; part = waiting.shift()) await sendOne(part)
	}
	let failure: { error: unknown } | undefined
	const lanes = Array.from({ length: concurrentParts }, () =>
		lane().catch((error: unknown) => {
			// The first failure is the reason; the others only follow from the stop.
			failure ??= { error }
			stop.abort()
		}),
	)
	// All lanes have ended before the upload is aborted: a part that comes later would be left behind.
	await Promise.all(lanes)
	if (failure !== undefined) throw failure.error
	return completed.sort((a, b) => (a.PartNumber ?? 0) - (b.PartNumber ?? 0))
}

async function complete(
	{ sdk, client }: Connection,
	upload: PartedUpload,
	UploadId: string,
	Parts: CompletedPart[],
	findHead: () => Promise<HeadObjectCommandOutput | undefined>,
): Promise<void> {
	const input = {
		Bucket: upload.bucket,
		Key: upload.key,
		UploadId,
		MultipartUpload: { Parts },
		ChecksumCRC64NVME: upload.crc64,
		ChecksumType: "FULL_OBJECT" as const,
		MpuObjectSize: upload.sizeBytes,
	}
	const sending = upload.signal === undefined ? {} : { abortSignal: upload.signal }
	try {
		await client.send(new sdk.CompleteMultipartUploadCommand({ ...input, IfNoneMatch: "*" }), sending)
	} catch (error) {
		if (statusOf(error) !== 501) throw error
		// This service has no condition here: looking right before is the best there is.
		if ((await findHead()) !== undefined)
			throw Object.assign(s3Problem("PreconditionFailed", "something stands there"), {
				$metadata: { httpStatusCode: 412 },
			})
		await client.send(new sdk.CompleteMultipartUploadCommand(input), sending)
	}
}
