// A bucket of an S3 service (R2) as a store. Together with the other s3-*.ts files the only door to the AWS SDK, which
// is loaded with the first request.
import { createHash, randomUUID } from "node:crypto"
import { type FileHandle, open } from "node:fs/promises"
import type { HeadObjectCommandOutput } from "@aws-sdk/client-s3"
import { OperatorError, systemError } from "../errors.ts"
import type { Secret } from "../secret.ts"
import type { ByteSource } from "./byte-source.ts"
import { checkKey, checkNewKey, checkPrefix, problemOfKey } from "./keys.ts"
import { measureFile, readStretch } from "./local-file.ts"
import type { GetOptions, ObjectHead, ObjectStore, PutOptions } from "./object-store.ts"
import { type Connection, connect, sendBytes } from "./s3-connection.ts"
import { asIfSent, s3Error, s3Problem, statusOf } from "./s3-errors.ts"
import { type UploadMark, uploadInParts } from "./s3-multipart.ts"
import { exactly, expectBytes, requestBytes } from "./s3-read.ts"
import { emptyDigest, signRequest } from "./s3-sign.ts"

export type S3StoreOptions = {
	/** What reports call it, as in `r2`. */
	name: string
	/** As in `https://<account>.eu.r2.cloudflarestorage.com`, without the bucket. */
	endpoint: string
	bucket: string
	region?: string
	accessKeyId: Secret
	secretAccessKey: Secret
	/** Ends everything that is under way. */
	signal?: AbortSignal
	/** Larger files go up in parts. */
	singlePutBytes?: number
	/** Size of all parts but the last; grows by itself where a file would need more than 10 000. */
	partBytes?: number
	/** Parts under way at once. */
	concurrentParts?: number
	connectTimeoutMs?: number
	/** A transfer fails that waits this long for fewer than `leastBytes`. */
	stallMs?: number
	leastBytes?: number
	/** How often a request is sent at most, and the pauses in between. */
	attempts?: number
	retryDelayMs?: number
	longestRetryDelayMs?: number
	random?: () => number
}

const mebibyte = 1024 * 1024
const mostParts = 10_000
// Both in the object's metadata: what its content is, and which call of `put` made it.
const digestField = "sha256"
const putField = "comfyume-put"

/** Opens a bucket as a store. Sends nothing before the first call. Its list passes over keys that no store could take. */
export function s3Store(options: S3StoreOptions): ObjectStore {
	const { name, endpoint, bucket, singlePutBytes = 64 * mebibyte, partBytes = 16 * mebibyte } = options
	const place = { name, endpoint, bucket }
	const limits = {
		connectTimeoutMs: options.connectTimeoutMs ?? 10_000,
		stallMs: options.stallMs ?? 30_000,
		leastBytes: options.leastBytes ?? 16 * 1024,
	}
	const wireLimits = {
		...limits,
		attempts: options.attempts ?? 4,
		baseDelayMs: options.retryDelayMs ?? 500,
		longestDelayMs: options.longestRetryDelayMs ?? 20_000,
	}
	const signer = {
		endpoint,
		region: options.region ?? "auto",
		accessKeyId: options.accessKeyId,
		secretAccessKey: options.secretAccessKey,
	}
	let connection: Promise<Connection> | undefined
	const connected = () => {
		connection ??= connect({
			endpoint,
			region: options.region ?? "auto",
			accessKeyId: options.accessKeyId,
			secretAccessKey: options.secretAccessKey,
			...limits,
			retries: { ...wireLimits, random: options.random ?? Math.random },
		})
		return connection
	}
	const signalOf = (own?: AbortSignal) => {
		const signals = [own, options.signal].filter((signal) => signal !== undefined)
		return signals.length === 0 ? undefined : AbortSignal.any(signals)
	}
	const sending = (signal: AbortSignal | undefined) => (signal === undefined ? {} : { abortSignal: signal })

	/** One page of the bucket's list; also the way to a named diagnosis, since its refusals carry a code. */
	const listPage = async (input: { prefix: string; after?: string; most?: number }, signal?: AbortSignal) => {
		const { sdk, client } = await connected()
		const command = new sdk.ListObjectsV2Command({
			Bucket: bucket,
			Prefix: input.prefix,
			...(input.after === undefined ? {} : { ContinuationToken: input.after }),
			...(input.most === undefined ? {} : { MaxKeys: input.most }),
		})
		const page = await client.send(command, sending(signal))
		// A foreign answer with status 200 would otherwise look like an empty bucket.
		if (page.Name === undefined && page.KeyCount === undefined && page.IsTruncated === undefined)
			throw s3Problem("ForeignAnswer", "a list that names no bucket")
		return page
	}

	const findHead = async (
		key: string,
		signal?: AbortSignal,
	): Promise<HeadObjectCommandOutput | undefined> => {
		const { sdk, client } = await connected()
		try {
			const command = new sdk.HeadObjectCommand({ Bucket: bucket, Key: key, ChecksumMode: "ENABLED" })
			const answer = await client.send(command, sending(signal))
			if (answer.ETag !== undefined) return answer
			// Whatever answers here isn't S3; a list, which has a body, can tell what it is.
			await listPage({ prefix: key, most: 1 }, signal)
			throw s3Problem("ForeignAnswer", "a head without an ETag")
		} catch (error) {
			const status = statusOf(error)
			if (status === undefined || ![400, 401, 403, 404].includes(status)) throw error
			// The answer to a HEAD has no body and so no code. A list tells a missing object from a missing bucket, and
			// a refused token from one that may only not look.
			await listPage({ prefix: key, most: 1 }, signal)
			if (status === 404) return undefined
			if (status === 400) throw error
			throw new OperatorError(
				`looking at ${key} in ${name} (${endpoint}, bucket ${bucket}): the token may list the bucket, but not HEAD objects`,
				{ exitCode: 6, cause: error, hint: "give the token the right to read objects of this bucket" },
			)
		}
	}

	const readBack = async (
		key: string,
		stored: HeadObjectCommandOutput,
		digest: string,
		shown: string,
		signal?: AbortSignal,
	) => {
		const options = stored.ETag === undefined ? {} : { ifMatch: stored.ETag }
		const answer = await requestBytes(await connected(), { bucket, key, ...options }, signal)
		const { body, sizeBytes } = expectBytes(answer, options)
		const hash = createHash("sha256")
		const rename = (error: unknown) => s3Error(error, `reading ${key} back`, place, signal)
		for await (const chunk of exactly(body, sizeBytes, rename)) hash.update(chunk as Buffer)
		if (hash.digest("hex") !== digest)
			throw new OperatorError(`${shown}: read back, it has another digest`, damaged)
	}

	const put = async (key: string, localFile: string, file: FileHandle, putOptions: PutOptions) => {
		const { sizeBytes, digest, onProgress } = putOptions
		const signal = signalOf(putOptions.signal)
		if ((await findHead(key, signal)) !== undefined) return "already-there"
		const { size } = await file.stat()
		if (size !== sizeBytes)
			throw new OperatorError(
				`storing ${key} in ${name}: ${localFile} has ${size} bytes instead of ${sizeBytes}`,
			)
		const inParts = sizeBytes > singlePutBytes
		const partSize =
			sizeBytes <= partBytes * mostParts ? partBytes : Math.ceil(sizeBytes / mostParts / mebibyte) * mebibyte
		const metadata = (putId: string) => ({ [digestField]: digest, [putField]: putId })
		const common = {
			...{ bucket, key, sizeBytes, digest },
			...(onProgress === undefined ? {} : { onProgress }),
			...(signal === undefined ? {} : { signal }),
		}
		const { resumeFile, limitBytesPerSecond } = putOptions
		let mark: UploadMark | undefined
		let refused: unknown
		try {
			if (inParts) {
				const parted = {
					...{ ...common, metadata, localFile, signer, limits: wireLimits },
					partBytes: partSize,
					concurrentParts: options.concurrentParts ?? 3,
					...(resumeFile !== undefined && { resumeFile }),
					...(limitBytesPerSecond !== undefined && { limitBytesPerSecond }),
				}
				const onJoin = (joined: UploadMark) => {
					mark = joined
				}
				await uploadInParts(await connected(), parted, () => findHead(key, signal), onJoin)
			} else {
				const measured = await measureFile(file, { sizeBytes, signal })
				if (measured.digest !== digest)
					throw new OperatorError(`${localFile} does not have the digest ${digest}`, {
						hint: `sha256sum ${localFile}`,
					})
				mark = { putId: randomUUID(), crc64: measured.crc64 }
				const bytesOf = () => readStretch(file, { offsetBytes: 0, sizeBytes })
				await uploadWhole(await connected(), {
					...{ ...common, bytesOf, crc64: measured.crc64 },
					metadata: metadata(mark.putId),
				})
			}
		} catch (error) {
			// 412: something stands there. NoSuchUpload: perhaps it was completed, and the answer was lost. No status: the
			// connection broke. Whether this call stored it, only the object itself can tell.
			const status = statusOf(error)
			if (mark === undefined) throw error
			const open = status === undefined && signal?.aborted !== true && !(error instanceof OperatorError)
			if (!open && ![409, 412].includes(status ?? 0) && !isNoSuchUpload(error)) throw error
			refused = error
		}
		const stored = await findHead(key, signal)
		if (stored === undefined)
			throw refused ?? s3Problem("NotStored", "the store took it, and does not have it")
		if (stored.Metadata?.[putField] !== mark?.putId) return "already-there"
		const shown = `${key} in ${name} (${endpoint}, bucket ${bucket})`
		confirm(stored, { sizeBytes, digest, crc64: mark?.crc64 }, shown)
		// A service that keeps no checksum must show the bytes themselves.
		if (stored.ChecksumCRC64NVME === undefined) await readBack(key, stored, digest, shown, signal)
		return "stored" as const
	}

	const get = async (key: string, getOptions: GetOptions = {}) => {
		checkKey(key, name)
		const signal = signalOf(getOptions.signal)
		return await told(`reading ${key}`, place, signal, async () => {
			const answer = await requestBytes(await connected(), { bucket, key, ...getOptions }, signal)
			const { body, sizeBytes } = expectBytes(answer, getOptions)
			const rename = (error: unknown) => s3Error(error, `reading ${key}`, place, signal)
			return exactly(body, sizeBytes, rename)
		})
	}

	const bytesOf = ({ key, sizeBytes, etag }: ObjectHead): ByteSource => ({
		name,
		place: `${key} in ${name} (${endpoint}, bucket ${bucket})`,
		sizeBytes,
		etag,
		renew: async () => {
			const head = await told(`looking at ${key}`, place, signalOf(), () => findHead(key, signalOf()))
			if (head === undefined) throw s3Error(s3Problem("NoSuchKey", "gone"), `reading ${key}`, place)
			return bytesOf(headOf(key, head))
		},
		access: {
			kind: "http",
			request: ({ first, last }) => {
				const headers = { range: `bytes=${first}-${last}`, "if-match": etag }
				const unsigned = { method: "GET" as const, bucket, key, headers, payloadDigest: emptyDigest }
				return signRequest(signer, unsigned, new Date())
			},
			explain: (failure) => s3Error(asIfSent(failure), `reading ${key}`, place),
			limits: wireLimits,
		},
	})

	return {
		name,
		place: `${endpoint}/${bucket}`,
		probe: () =>
			told("looking into the bucket", place, signalOf(), async () => {
				// Not HeadBucket: some tokens may not, and its refusals carry no code. One key of a list tells all.
				await listPage({ prefix: "", most: 1 }, signalOf())
			}),
		head: async (key) => {
			checkKey(key, name)
			const found = await told(`looking at ${key}`, place, signalOf(), () => findHead(key, signalOf()))
			return found === undefined ? undefined : headOf(key, found)
		},
		async *list(prefix) {
			checkPrefix(prefix, name)
			let after: string | undefined
			do {
				const input = { prefix, ...(after === undefined ? {} : { after }) }
				const page = await told(`listing ${prefix === "" ? "all" : prefix}`, place, signalOf(), () =>
					listPage(input, signalOf()),
				)
				for (const { Key: key, Size: sizeBytes, ETag: etag, LastModified: storedAt } of page.Contents ?? []) {
					if (key === undefined || sizeBytes === undefined || etag === undefined || storedAt === undefined)
						continue
					if (key.startsWith(prefix) && problemOfKey(key) === undefined)
						yield { key, sizeBytes, etag, storedAt }
				}
				after = page.IsTruncated === true ? page.NextContinuationToken : undefined
			} while (after !== undefined)
		},
		get,
		byteSource: (head) => bytesOf(head),
		async *listUnfinished(prefix) {
			checkPrefix(prefix, name)
			const { sdk, client } = await connected()
			let from: { KeyMarker?: string | undefined; UploadIdMarker?: string | undefined } | undefined
			do {
				const input = { Bucket: bucket, Prefix: prefix, ...from }
				const page = await told("listing unfinished uploads", place, signalOf(), () =>
					client.send(new sdk.ListMultipartUploadsCommand(input), sending(signalOf())),
				)
				for (const { Key: key, UploadId: uploadId, Initiated: startedAt } of page.Uploads ?? [])
					if (key !== undefined && uploadId !== undefined && startedAt !== undefined)
						yield { key, uploadId, startedAt }
				from =
					page.IsTruncated === true
						? { KeyMarker: page.NextKeyMarker, UploadIdMarker: page.NextUploadIdMarker }
						: undefined
			} while (from !== undefined)
		},
		put: async (key, localFile, putOptions) => {
			checkNewKey(key, name)
			const signal = signalOf(putOptions.signal)
			return await told(`storing ${key}`, place, signal, async () => {
				signal?.throwIfAborted()
				const file = await open(localFile).catch((error: unknown) => {
					throw systemError(error, `reading ${localFile}`)
				})
				try {
					return await put(key, localFile, file, putOptions)
				} finally {
					await file.close()
				}
			})
		},
		async [Symbol.asyncDispose]() {
			if (connection !== undefined) (await connection).client.destroy()
		},
	}
}

async function told<T>(
	doing: string,
	place: { name: string; endpoint: string; bucket: string },
	signal: AbortSignal | undefined,
	work: () => Promise<T>,
): Promise<T> {
	try {
		return await work()
	} catch (error) {
		throw s3Error(error, doing, place, signal)
	}
}

const isNoSuchUpload = (error: unknown) => error instanceof Error && error.name === "NoSuchUpload"

function headOf(key: string, answer: HeadObjectCommandOutput): ObjectHead {
	const claimedDigest = answer.Metadata?.[digestField]
	return {
		key,
		sizeBytes: answer.ContentLength ?? 0,
		storedAt: answer.LastModified ?? new Date(0),
		etag: answer.ETag ?? "",
		...(claimedDigest === undefined ? {} : { claimedDigest }),
	}
}

async function uploadWhole(
	{ sdk, client }: Connection,
	upload: {
		bucket: string
		key: string
		metadata: Record<string, string>
		sizeBytes: number
		digest: string
		crc64: string
		bytesOf: () => AsyncIterable<Buffer>
		onProgress?: (doneBytes: number) => void
		signal?: AbortSignal
	},
): Promise<void> {
	const command = new sdk.PutObjectCommand({
		Bucket: upload.bucket,
		Key: upload.key,
		Metadata: upload.metadata,
		ContentType: "application/octet-stream",
		ContentLength: upload.sizeBytes,
		ChecksumCRC64NVME: upload.crc64,
		IfNoneMatch: "*",
	})
	sendBytes(command, {
		sizeBytes: upload.sizeBytes,
		digest: upload.digest,
		open: upload.bytesOf,
		...(upload.onProgress === undefined ? {} : { onSent: upload.onProgress }),
	})
	await client.send(command, upload.signal === undefined ? {} : { abortSignal: upload.signal })
}

const damaged = {
	hint: "look at the object; comfyume never deletes, so a damaged one must be removed by hand",
}

/** Holds what the store says of an object against what was sent. */
function confirm(
	stored: HeadObjectCommandOutput,
	sent: { sizeBytes: number; digest: string; crc64: string | undefined },
	shown: string,
): void {
	const differs = (what: string, has: unknown, wanted: unknown) => {
		if (has === wanted) return
		throw new OperatorError(
			`${shown}: after storing, its ${what} is ${has ?? "not told"} instead of ${wanted}`,
			damaged,
		)
	}
	differs("size", stored.ContentLength, sent.sizeBytes)
	if (stored.ChecksumCRC64NVME !== undefined) differs("CRC64NVME", stored.ChecksumCRC64NVME, sent.crc64)
	differs("sha256", stored.Metadata?.[digestField], sent.digest)
}
