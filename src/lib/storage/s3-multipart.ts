// A large file, sent in equal parts by threads of their own; gone on with after an interruption.
import { randomUUID } from "node:crypto"
import { setTimeout as wait } from "node:timers/promises"
import type { CompletedPart, HeadObjectCommandOutput } from "@aws-sdk/client-s3"
import { OperatorError } from "../errors.ts"
import { type RetryBudget, retryBudget, retryDelayMs } from "./block-source.ts"
import type { HttpLimits } from "./byte-source.ts"
import { bytesCounted, type Control, newControl, stop } from "./control.ts"
import { combineCrc64 } from "./crc64nvme.ts"
import type { Connection } from "./s3-connection.ts"
import { asIfSent, s3Problem, statusOf } from "./s3-errors.ts"
import { type Signer, signRequest } from "./s3-sign.ts"
import {
	beginUploadState,
	isSameUpload,
	noteSentPart,
	readUploadState,
	removeUploadState,
	type SentPart,
	type UploadState,
} from "./upload-state.ts"
import { JobFailed, openWorkerPool, type WorkerPool } from "./worker-pool.ts"

export type PartedUpload = {
	signer: Signer
	bucket: string
	key: string
	localFile: string
	sizeBytes: number
	/** R2 wants equal part sizes except the last. */
	partBytes: number
	/** sha256 of the whole in hex. */
	digest: string
	metadata: (putId: string) => Record<string, string>
	/** Where an unfinished upload is noted; without it, one that fails is aborted. */
	resumeFile?: string
	concurrentParts: number
	limits: HttpLimits
	limitBytesPerSecond?: number
	onProgress?: (doneBytes: number) => void
	signal?: AbortSignal
}

/** By what the object is known as this upload's, and the CRC-64/NVME of the whole in base64. */
export type UploadMark = { putId: string; crc64: string }

type Begun = { uploadId: string; putId: string; parts: ReadonlyMap<number, SentPart> }

// Clearing up must end even when the service has gone silent.
const abortTimeoutMs = 10_000
const progressMs = 250

/**
 * Sends the parts that the service doesn't have yet, a few at a time, and has it join them if the key still holds
 * nothing. When that fails for good, the unfinished upload is aborted: the only thing that comfyume ever takes away from
 * a bucket. What a later run can go on with stays.
 * @param findHead looks at the key again, for a service that knows no condition on the joining
 * @param onJoin called right before the parts are joined: from then on the object may stand
 */
export async function uploadInParts(
	connection: Connection,
	upload: PartedUpload,
	findHead: () => Promise<HeadObjectCommandOutput | undefined>,
	onJoin: (mark: UploadMark) => void,
): Promise<void> {
	const { signal, resumeFile } = upload
	let begun = await findBegun(connection, upload)
	try {
		for (;;) {
			begun ??= await begin(connection, upload)
			try {
				const sent = await sendParts(upload, begun)
				onJoin({ putId: begun.putId, crc64: sent.crc64 })
				await complete(connection, upload, begun.uploadId, sent, findHead)
				if (resumeFile !== undefined) await removeUploadState(resumeFile)
				return
			} catch (error) {
				// One that was gone on with may be too old for the service; a lost answer is for the caller to find out.
				const stale = isNoSuchUpload(error) && begun.parts.size > 0 && (await findHead()) === undefined
				if (!stale) throw error
				begun = undefined
			}
		}
	} catch (error) {
		if (begun !== undefined && (resumeFile === undefined || isFinal(error, signal))) {
			await abortUpload(connection, upload, begun.uploadId)
			if (resumeFile !== undefined) await removeUploadState(resumeFile)
		}
		throw error
	}
}

const isNoSuchUpload = (error: unknown) => error instanceof Error && error.name === "NoSuchUpload"

/** Whether the same upload would fail in the same way if it were gone on with. */
function isFinal(error: unknown, signal: AbortSignal | undefined): boolean {
	if (signal?.aborted === true) return false
	if (error instanceof OperatorError) return true
	const status = statusOf(error)
	return status !== undefined && status < 500 && ![401, 403, 408, 429].includes(status)
}

async function abortUpload({ sdk, client }: Connection, { bucket, key }: PartedUpload, UploadId: string) {
	// Its own failure would hide the one that matters; the service drops what is left unfinished after a week.
	await client
		.send(new sdk.AbortMultipartUploadCommand({ Bucket: bucket, Key: key, UploadId }), {
			abortSignal: AbortSignal.timeout(abortTimeoutMs),
		})
		.catch(() => {})
}

async function begin({ sdk, client }: Connection, upload: PartedUpload): Promise<Begun> {
	const { bucket, key, sizeBytes, partBytes, digest, signer, resumeFile } = upload
	const putId = randomUUID()
	const { UploadId: uploadId } = await client.send(
		new sdk.CreateMultipartUploadCommand({
			Bucket: bucket,
			Key: key,
			Metadata: upload.metadata(putId),
			ContentType: "application/octet-stream",
			ChecksumAlgorithm: "CRC64NVME",
			ChecksumType: "FULL_OBJECT",
		}),
		upload.signal === undefined ? {} : { abortSignal: upload.signal },
	)
	if (uploadId === undefined) throw s3Problem("ForeignAnswer", "an upload without an id")
	const begun = { uploadId, putId, parts: new Map() }
	const { endpoint } = signer
	if (resumeFile !== undefined)
		await beginUploadState(resumeFile, { endpoint, bucket, key, sizeBytes, partBytes, digest, ...begun })
	return begun
}

/** The upload that is noted, with the parts that the service still has of it; another one that is noted is aborted. */
async function findBegun(connection: Connection, upload: PartedUpload): Promise<Begun | undefined> {
	const { bucket, key, sizeBytes, partBytes, digest, signer, resumeFile } = upload
	const state = resumeFile === undefined ? undefined : await readUploadState(resumeFile)
	if (state === undefined) return undefined
	const place = { endpoint: signer.endpoint, bucket, key }
	if (!isSameUpload(state, { ...place, sizeBytes, partBytes, digest })) {
		// Only what lies in this very bucket can be reached from here.
		if (state.endpoint === place.endpoint && state.bucket === bucket)
			await abortUpload(connection, { ...upload, key: state.key }, state.uploadId)
		return undefined
	}
	const parts = await keptParts(connection, upload, state)
	return parts === undefined ? undefined : { ...state, parts }
}

async function keptParts(
	{ sdk, client }: Connection,
	{ bucket, key, sizeBytes, partBytes, signal }: PartedUpload,
	state: UploadState,
): Promise<ReadonlyMap<number, SentPart> | undefined> {
	const kept = new Map<number, SentPart>()
	let PartNumberMarker: string | undefined
	try {
		do {
			const page = await client.send(
				new sdk.ListPartsCommand({ Bucket: bucket, Key: key, UploadId: state.uploadId, PartNumberMarker }),
				signal === undefined ? {} : { abortSignal: signal },
			)
			for (const { PartNumber: number = 0, ETag, Size, ChecksumCRC64NVME } of page.Parts ?? []) {
				const noted = state.parts.get(number)
				const size = Math.min(partBytes, sizeBytes - (number - 1) * partBytes)
				const sameSum = ChecksumCRC64NVME === undefined || ChecksumCRC64NVME === noted?.crc64
				if (noted !== undefined && noted.etag === ETag && Size === size && sameSum) kept.set(number, noted)
			}
			PartNumberMarker = page.IsTruncated === true ? page.NextPartNumberMarker : undefined
		} while (PartNumberMarker !== undefined)
		return kept
	} catch (error) {
		if (isNoSuchUpload(error) || statusOf(error) === 404) return undefined
		throw error
	}
}

type Sent = { parts: CompletedPart[]; crc64: string }

async function sendParts(upload: PartedUpload, begun: Begun): Promise<Sent> {
	const { signal } = upload
	await using pool = openWorkerPool(3)
	const control = newControl()
	const halt = new AbortController()
	const onAbort = () => {
		stop(control)
		halt.abort(signal?.reason)
	}
	signal?.addEventListener("abort", onAbort, { once: true })
	try {
		signal?.throwIfAborted()
		return await sendWith(pool, upload, begun, { control, halt })
	} finally {
		signal?.removeEventListener("abort", onAbort)
		stop(control)
		halt.abort()
	}
}

async function sendWith(
	pool: WorkerPool,
	upload: PartedUpload,
	begun: Begun,
	{ control, halt }: { control: Control; halt: AbortController },
): Promise<Sent> {
	const { sizeBytes, partBytes, localFile: path, resumeFile } = upload
	const count = Math.ceil(sizeBytes / partBytes)
	const sent = new Map<number, SentPart>()
	const budget = retryBudget(count)
	let keptBytes = 0
	const sendOne = async (number: number, lane: number) => {
		const first = (number - 1) * partBytes
		const stretch = { first, last: Math.min(number * partBytes, sizeBytes) - 1 }
		const thread = lane % 2
		const measured = await pool.run(thread, "measure", { path, ...stretch, control })
		const kept = begun.parts.get(number)
		if (kept?.crc64 === measured.crc64) {
			keptBytes += stretch.last - first + 1
			sent.set(number, kept)
			return
		}
		const etag = await sendPart(
			pool,
			upload,
			{ ...stretch, ...measured, number, lane, thread },
			{
				uploadId: begun.uploadId,
				control,
				halt,
				budget,
			},
		)
		const part = { etag, crc64: measured.crc64 }
		if (resumeFile !== undefined && !halt.signal.aborted) await noteSentPart(resumeFile, number, part)
		sent.set(number, part)
	}
	const waiting = Array.from({ length: count }, (_, index) => index + 1).values()
	let failure: { error: unknown } | undefined
	const lane = async (own: number) => {
		for (const number of waiting) {
			if (halt.signal.aborted) return
			await sendOne(number, own)
		}
	}
	const fail = (error: unknown) => {
		// The first failure is the reason; the others only follow from the stop.
		failure ??= { error }
		stop(control)
		halt.abort()
	}
	// The file may have changed since its digest was taken; the parts' own digests can't tell.
	const whole = pool
		.run(2, "hash", { path, control: newControl() })
		.then(({ digest }) => {
			if (digest !== upload.digest)
				throw new OperatorError(`${path} does not have the digest ${upload.digest}`, {
					hint: `sha256sum ${path}`,
				})
		})
		.catch(fail)
	const timer =
		upload.onProgress &&
		setInterval(() => upload.onProgress?.(Math.min(sizeBytes, keptBytes + bytesCounted(control))), progressMs)
	const halted = new Promise<void>((resolve) => halt.signal.addEventListener("abort", () => resolve()))
	try {
		const lanes = Array.from({ length: upload.concurrentParts }, (_, own) => lane(own).catch(fail))
		await Promise.race([Promise.all([...lanes, whole]), halted])
	} finally {
		clearInterval(timer)
	}
	if (failure !== undefined) throw failure.error
	halt.signal.throwIfAborted()
	upload.onProgress?.(sizeBytes)
	return joined(sent, { sizeBytes, partBytes })
}

function joined(
	sent: ReadonlyMap<number, SentPart>,
	{ sizeBytes, partBytes }: { sizeBytes: number; partBytes: number },
): Sent {
	const inOrder = [...sent].sort(([a], [b]) => a - b)
	const parts = inOrder.map(([PartNumber, { etag, crc64 }]) => ({
		PartNumber,
		ETag: etag,
		ChecksumCRC64NVME: crc64,
	}))
	const crc64 = inOrder
		.map(([number, part]) => ({
			crc64: part.crc64,
			size: Math.min(partBytes, sizeBytes - (number - 1) * partBytes),
		}))
		.reduce((whole, part) => ({ crc64: combineCrc64(whole.crc64, part.crc64, part.size), size: 0 })).crc64
	return { parts, crc64 }
}

type MeasuredPart = {
	number: number
	first: number
	last: number
	digest: string
	crc64: string
	lane: number
	thread: number
}

async function sendPart(
	pool: WorkerPool,
	{ signer, bucket, key, localFile: path, limits, limitBytesPerSecond }: PartedUpload,
	{ number, first, last, digest, crc64, lane, thread }: MeasuredPart,
	{
		uploadId,
		control,
		halt,
		budget,
	}: { uploadId: string; control: Control; halt: AbortController; budget: RetryBudget },
): Promise<string> {
	const unsigned = {
		method: "PUT" as const,
		bucket,
		key,
		query: { partNumber: String(number), uploadId },
		headers: { "x-amz-checksum-crc64nvme": crc64 },
		payloadDigest: digest,
	}
	const { connectTimeoutMs, stallMs, leastBytes } = limits
	for (let attempt = 1; ; attempt++) {
		try {
			const { etag } = await pool.run(thread, "send", {
				...{ lane, path, first, last, control },
				request: signRequest(signer, unsigned, new Date()),
				limits: { connectTimeoutMs, stallMs, leastBytes },
				...(limitBytesPerSecond !== undefined && { limitBytesPerSecond }),
			})
			if (etag === undefined) throw s3Problem("ForeignAnswer", "a part without an ETag")
			return etag
		} catch (error) {
			halt.signal.throwIfAborted()
			const delayMs = retryDelayMs(error, attempt, limits)
			if (delayMs === undefined || !budget.take())
				throw error instanceof JobFailed && error.exchange
					? asIfSent({ ...plain(error), attempts: attempt })
					: error
			await wait(delayMs, undefined, { signal: halt.signal })
		}
	}
}

const plain = ({ message, code, status }: JobFailed) => ({
	message,
	...(code !== undefined && { code }),
	...(status !== undefined && { status }),
})

async function complete(
	{ sdk, client }: Connection,
	upload: PartedUpload,
	UploadId: string,
	{ parts: Parts, crc64 }: Sent,
	findHead: () => Promise<HeadObjectCommandOutput | undefined>,
): Promise<void> {
	const input = {
		Bucket: upload.bucket,
		Key: upload.key,
		UploadId,
		MultipartUpload: { Parts },
		ChecksumCRC64NVME: crc64,
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
