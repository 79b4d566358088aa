// What each operation does, by R2's rules.
import { createHash, randomUUID } from "node:crypto"
import { crc64Of } from "./checksums.ts"
import type { Call, ServerState, Upload } from "./handler.ts"
import type { StoredObject } from "./objects.ts"
import { parseCompletion, renderXml, S3Failure } from "./xml.ts"

export type Answer = { status: number; headers: Record<string, string>; body: Buffer; code?: string }

type OperationHandler = (state: ServerState, call: Call) => Promise<Answer> | Answer

const xml = (name: string, node: Parameters<typeof renderXml>[1], headers = {}): Answer => ({
	status: 200,
	headers: { "content-type": "application/xml", ...headers },
	body: Buffer.from(renderXml(name, node)),
})

const empty = (headers = {}, status = 200): Answer => ({ status, headers, body: Buffer.alloc(0) })

export const operations = {
	ListBuckets: () => xml("ListAllMyBucketsResult", { Buckets: "" }),
	HeadBucket: () => empty(),
	ListObjectsV2: (state, call) => listObjects(state, call),
	HeadObject: (state, call) => getObject(state, call),
	GetObject: (state, call) => getObject(state, call),
	PutObject: (state, call) => putObject(state, call),
	DeleteObject: (state, call) => deleteObject(state, call),
	DeleteObjects: () => {
		throw new S3Failure(501, "NotImplemented", "This server deletes one object at a time")
	},
	GetObjectLockConfiguration: ({ deletes }) => {
		if (deletes !== "locked")
			throw new S3Failure(
				404,
				"ObjectLockConfigurationNotFoundError",
				"Object Lock configuration does not exist for this bucket",
			)
		return xml("ObjectLockConfiguration", {
			ObjectLockEnabled: "Enabled",
			Rule: { DefaultRetention: { Mode: "COMPLIANCE", Days: 400 } },
		})
	},
	CreateMultipartUpload: (state, call) => createUpload(state, call),
	UploadPart: (state, call) => uploadPart(state, call),
	ListParts: (state, call) => listParts(state, call),
	CompleteMultipartUpload: (state, call) => completeUpload(state, call),
	AbortMultipartUpload: (state, call) => {
		findUpload(state, call)
		state.uploads.delete(call.query.uploadId ?? "")
		return empty({}, 204)
	},
	ListMultipartUploads: (state, { bucket, query }) =>
		xml("ListMultipartUploadsResult", {
			Bucket: bucket,
			IsTruncated: false,
			Upload: [...state.uploads.values()]
				.filter((upload) => upload.bucket === bucket && upload.key.startsWith(query.prefix ?? ""))
				.map(({ key, id, startedAt }) => ({ Key: key, UploadId: id, Initiated: startedAt.toISOString() })),
		}),
} satisfies Record<string, OperationHandler>

// R2's lock says so, to whoever asks and before it looks at any condition.
const locked = () =>
	new S3Failure(409, "ObjectLockedByBucketPolicy", "The object is locked by the bucket policy.")

async function deleteObject(state: ServerState, { bucket, key }: Call): Promise<Answer> {
	const stands = state.objects.find(bucket, key) !== undefined
	if (state.deletes === "locked" && stands) throw locked()
	if (stands) await state.objects.lose(bucket, key)
	return empty(state.deletes === "versioned" ? { "x-amz-delete-marker": "true" } : {}, 204)
}

function findObject(state: ServerState, { bucket, key }: Call): StoredObject {
	const object = state.objects.find(bucket, key)
	if (object === undefined) throw new S3Failure(404, "NoSuchKey", "The specified key does not exist.")
	return object
}

async function getObject(state: ServerState, call: Call): Promise<Answer> {
	const object = findObject(state, call)
	const { headers, action } = call
	const ifMatch = headers["if-match"]
	if (
		ifMatch !== undefined &&
		ifMatch !== "*" &&
		ifMatch.replaceAll('"', "") !== object.etag.replaceAll('"', "")
	)
		throw preconditionFailed()
	if (headers["if-none-match"] === object.etag) return empty({ etag: object.etag }, 304)
	const content = await state.objects.read(call.bucket, call.key)
	const described = {
		"accept-ranges": "bytes",
		"content-type": object.contentType,
		"last-modified": object.storedAt.toUTCString(),
		etag: object.etag,
		...Object.fromEntries(
			Object.entries(object.metadata).map(([name, value]) => [`x-amz-meta-${name}`, value]),
		),
		...(headers["x-amz-checksum-mode"] === "ENABLED" &&
		object.crc64 !== undefined &&
		headers.range === undefined
			? { "x-amz-checksum-crc64nvme": object.crc64, "x-amz-checksum-type": "FULL_OBJECT" }
			: {}),
	}
	const range = rangeOf(headers.range, content.length)
	if (range === undefined || action === "ok-instead-of-partial")
		return { status: 200, headers: described, body: content }
	const shift = action === "wrong-range" && range.first > 0 ? 1 : 0
	const [first, last] = [range.first - shift, range.last - shift]
	return {
		status: 206,
		headers: { ...described, "content-range": `bytes ${first}-${last}/${content.length}` },
		body: content.subarray(first, last + 1),
	}
}

function rangeOf(header: string | undefined, size: number): { first: number; last: number } | undefined {
	const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? "")
	if (match === null || (match[1] === "" && match[2] === "")) return undefined
	const first = match[1] === "" ? Math.max(0, size - Number(match[2])) : Number(match[1])
	const last = match[1] === "" || match[2] === "" ? size - 1 : Math.min(Number(match[2]), size - 1)
	if (first >= size || last < first)
		throw new S3Failure(416, "InvalidRange", "The requested range is not satisfiable")
	return { first, last }
}

async function putObject(state: ServerState, call: Call): Promise<Answer> {
	const { headers, bucket, key, body } = call
	if (!["", "aws-chunked"].includes(headers["content-encoding"] ?? ""))
		throw new S3Failure(400, "InvalidArgument", "This server takes no Content-Encoding")
	if (state.deletes === "locked" && state.objects.find(bucket, key) !== undefined) throw locked()
	refuseExisting(state, call)
	const etag = `"${createHash("md5").update(body).digest("hex")}"`
	const crc64 = crc64Of(body)
	await state.objects.write(
		bucket,
		{
			key,
			etag,
			crc64,
			storedAt: wholeSeconds(state),
			metadata: metadataOf(headers),
			contentType: typeOf(headers),
		},
		body,
	)
	return empty({ etag, "x-amz-checksum-crc64nvme": crc64, "x-amz-checksum-type": "FULL_OBJECT" })
}

function refuseExisting(state: ServerState, { headers, bucket, key }: Call): void {
	const condition = headers["if-none-match"]
	if (condition === undefined) return
	if (condition !== "*") throw new S3Failure(501, "NotImplemented", "Only If-None-Match: * is known here")
	if (state.objects.find(bucket, key) !== undefined) throw preconditionFailed()
}

function createUpload(state: ServerState, { bucket, key, headers }: Call): Answer {
	const algorithm = headers["x-amz-checksum-algorithm"]
	if (algorithm !== undefined && algorithm !== "CRC64NVME")
		throw new S3Failure(400, "InvalidRequest", `Checksum algorithm ${algorithm} is not supported here`)
	const upload: Upload = {
		id: randomUUID(),
		bucket,
		key,
		startedAt: state.now(),
		metadata: metadataOf(headers),
		contentType: typeOf(headers),
		fullObjectChecksum: algorithm !== undefined,
		parts: new Map(),
	}
	state.uploads.set(upload.id, upload)
	return xml("InitiateMultipartUploadResult", { Bucket: bucket, Key: key, UploadId: upload.id })
}

function uploadPart(state: ServerState, call: Call): Answer {
	const upload = findUpload(state, call)
	const number = Number(call.query.partNumber)
	if (!Number.isInteger(number) || number < 1 || number > 10_000)
		throw new S3Failure(400, "InvalidArgument", "Part number must be an integer between 1 and 10000")
	const crc64 = crc64Of(call.body)
	if (upload.fullObjectChecksum && call.headers["x-amz-checksum-crc64nvme"] === undefined)
		throw new S3Failure(400, "InvalidRequest", "The upload was created with CRC64NVME; the part carries none")
	const etag = `"${createHash("sha256").update(call.body).update(upload.id).digest("hex").slice(0, 32)}"`
	upload.parts.set(number, { content: Buffer.from(call.body), etag, crc64 })
	return empty({ etag, "x-amz-checksum-crc64nvme": crc64 })
}

function listParts(state: ServerState, call: Call): Answer {
	const { id, bucket, key, parts } = findUpload(state, call)
	const after = Number(call.query["part-number-marker"] ?? 0)
	const later = [...parts].sort(([a], [b]) => a - b).filter(([number]) => number > after)
	const page = later.slice(0, state.largestPage)
	const truncated = later.length > page.length
	return xml("ListPartsResult", {
		Bucket: bucket,
		Key: key,
		UploadId: id,
		IsTruncated: truncated,
		...(truncated ? { NextPartNumberMarker: page.at(-1)?.[0] } : {}),
		Part: page.map(([number, { content, etag, crc64 }]) => ({
			PartNumber: number,
			ETag: etag,
			Size: content.length,
			ChecksumCRC64NVME: crc64,
		})),
	})
}

async function completeUpload(state: ServerState, call: Call): Promise<Answer> {
	const upload = findUpload(state, call)
	const { headers, bucket, key } = call
	if (headers["if-none-match"] !== undefined && state.conditionalComplete === "refused")
		throw new S3Failure(
			501,
			"NotImplemented",
			"A header you provided implies functionality that is not implemented",
		)
	if (state.conditionalComplete === "honoured") refuseExisting(state, call)
	const named = parseCompletion(call.body.toString("utf8"))
	if (named.length === 0) throw new S3Failure(400, "MalformedXML", "No parts")
	let before = 0
	const parts = named.map(({ number, etag, crc64 }) => {
		const part = upload.parts.get(number)
		if (part === undefined || part.etag !== etag || (crc64 !== undefined && crc64 !== part.crc64))
			throw new S3Failure(400, "InvalidPart", `Part ${number} could not be found or its ETag differs`)
		if (number <= before) throw new S3Failure(400, "InvalidPartOrder", "The parts are not in ascending order")
		before = number
		return part.content
	})
	const [first = Buffer.alloc(0)] = parts
	for (const part of parts.slice(0, -1)) {
		if (part.length !== first.length)
			throw new S3Failure(400, "InvalidPart", "All non-trailing parts must have the same length.")
		if (part.length < state.smallestPartBytes)
			throw new S3Failure(
				400,
				"EntityTooSmall",
				"Your proposed upload is smaller than the minimum part size.",
			)
	}
	if ((parts.at(-1)?.length ?? 0) > first.length)
		throw new S3Failure(400, "InvalidPart", "The last part must not be larger than the others.")
	const content = Buffer.concat(parts)
	const crc64 = upload.fullObjectChecksum ? crc64Of(content) : undefined
	const claimed = headers["x-amz-checksum-crc64nvme"]
	if (claimed !== undefined && claimed !== crc64)
		throw new S3Failure(400, "BadDigest", "The CRC64NVME you specified did not match that of the object.")
	const size = headers["x-amz-mp-object-size"]
	if (size !== undefined && Number(size) !== content.length)
		throw new S3Failure(400, "InvalidRequest", "The size you specified is not that of the object.")
	// Not the MD5 of anything, as on R2.
	const etag = `"${createHash("sha256").update(upload.id).digest("hex").slice(0, 32)}-${parts.length}"`
	state.uploads.delete(upload.id)
	const { metadata, contentType } = upload
	await state.objects.write(
		bucket,
		{
			key,
			etag,
			storedAt: wholeSeconds(state),
			metadata,
			contentType,
			...(crc64 === undefined ? {} : { crc64 }),
		},
		content,
	)
	return xml("CompleteMultipartUploadResult", {
		Bucket: bucket,
		Key: key,
		ETag: etag,
		...(crc64 === undefined ? {} : { ChecksumCRC64NVME: crc64, ChecksumType: "FULL_OBJECT" }),
	})
}

function findUpload(state: ServerState, { bucket, key, query }: Call): Upload {
	const upload = state.uploads.get(query.uploadId ?? "")
	if (upload === undefined || upload.bucket !== bucket || upload.key !== key)
		throw new S3Failure(404, "NoSuchUpload", "The specified multipart upload does not exist.")
	return upload
}

function listObjects(state: ServerState, { bucket, query }: Call): Answer {
	const { prefix = "", delimiter = "" } = query
	const after = query["continuation-token"] ?? query["start-after"] ?? ""
	const max = Math.min(Number(query["max-keys"] ?? 1000), state.largestPage)
	const shown = (text: string) =>
		query["encoding-type"] === "url" ? encodeURIComponent(text).replaceAll("%2F", "/") : text
	const later = (key: string) => Buffer.compare(Buffer.from(key), Buffer.from(after)) > 0
	const groups = new Set<string>()
	const objects: StoredObject[] = []
	let last = ""
	let truncated = false
	for (const key of state.objects.keys(bucket)) {
		if (!key.startsWith(prefix) || !later(key)) continue
		const cut = delimiter === "" ? -1 : key.indexOf(delimiter, prefix.length)
		const group = cut < 0 ? undefined : key.slice(0, cut + delimiter.length)
		if (group !== undefined && (groups.has(group) || group === after)) continue
		if (groups.size + objects.length >= max) {
			truncated = true
			break
		}
		last = group === undefined ? key : `${group}\u{10ffff}`
		const object = state.objects.find(bucket, key)
		if (group !== undefined) groups.add(group)
		else if (object !== undefined) objects.push(object)
	}
	return xml("ListBucketResult", {
		Name: bucket,
		Prefix: shown(prefix),
		EncodingType: query["encoding-type"],
		MaxKeys: max,
		KeyCount: groups.size + objects.length,
		IsTruncated: truncated,
		...(truncated ? { NextContinuationToken: last } : {}),
		Contents: objects.map(({ key, sizeBytes, etag, storedAt }) => ({
			Key: shown(key),
			Size: sizeBytes,
			ETag: etag,
			LastModified: storedAt.toISOString(),
			StorageClass: "STANDARD",
		})),
		CommonPrefixes: [...groups].map((group) => ({ Prefix: shown(group) })),
	})
}

const preconditionFailed = () =>
	new S3Failure(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")

const typeOf = (headers: Call["headers"]) => headers["content-type"] ?? "binary/octet-stream"

// HTTP dates have no fractions; the listing must say the same time as the head.
const wholeSeconds = (state: ServerState) => new Date(Math.floor(state.now().getTime() / 1000) * 1000)

function metadataOf(headers: Call["headers"]): Record<string, string> {
	const entries = Object.entries(headers).filter(([name]) => name.startsWith("x-amz-meta-"))
	return Object.fromEntries(entries.map(([name, value]) => [name.slice("x-amz-meta-".length), String(value)]))
}
