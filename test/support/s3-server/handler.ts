// One request: what it asks for, who asks, whether it is meant to break, and the answer.
import { createHash, randomUUID } from "node:crypto"
import type { IncomingMessage, ServerResponse } from "node:http"
import { crc64Of } from "./checksums.ts"
import { type Fault, flipBit, htmlPage, sendBroken } from "./faults.ts"
import type { StoredObjects } from "./objects.ts"
import { type Answer, operations } from "./operations.ts"
import { type PayloadClaim, verifySignature } from "./signature.ts"
import { renderXml, S3Failure } from "./xml.ts"

type Operation = keyof typeof operations | "Unknown"

export type LogEntry = {
	at: Date
	method: string
	operation: Operation
	bucket: string
	key: string
	query: Readonly<Record<string, string>>
	headers: Readonly<Record<string, string | string[] | undefined>>
	bytesIn: number
	bytesOut: number
	/** 0 when the connection was cut instead of an answer. */
	status: number
	/** The code of a refusal, as in `NoSuchKey`. */
	code?: string
}

export type Upload = {
	id: string
	bucket: string
	key: string
	startedAt: Date
	metadata: Record<string, string>
	contentType: string
	fullObjectChecksum: boolean
	parts: Map<number, { content: Buffer; etag: string; crc64?: string }>
}

export type ServerState = {
	objects: StoredObjects
	credentials: Map<string, { accessKeyId: string; secretAccessKey: string; denies?: readonly string[] }>
	region: string
	smallestPartBytes: number
	largestPage: number
	now: () => Date
	allowUnsignedPayload: boolean
	deletes: "denied" | "locked" | "versioned" | "allowed"
	conditionalComplete: "honoured" | "ignored" | "refused"
	uploads: Map<string, Upload>
	log: LogEntry[]
	findFault: (operation: string, key: string) => Fault | undefined
	requests: number
}

/** Answers one request, and notes it in the log. */
export async function handle(
	state: ServerState,
	request: IncomingMessage,
	response: ServerResponse,
): Promise<void> {
	const target = targetOf(request)
	const entry: LogEntry = {
		at: state.now(),
		method: request.method ?? "",
		...target,
		headers: request.headers,
		bytesIn: 0,
		bytesOut: 0,
		status: 0,
	}
	state.requests++
	response.once("close", () => state.log.push(entry))
	const fault = state.findFault(target.operation, target.key)
	const action = fault?.do
	if (action === "reset") return void request.socket.resetAndDestroy()
	if (action === "black-hole") return
	if (typeof action === "object" && "first" in action) await action.first()

	// The whole body is read before any answer: a client that is still sending would see a reset, not the refusal.
	const chunks: Buffer[] = []
	for await (const chunk of request) chunks.push(chunk as Buffer)
	let body: Buffer = Buffer.concat(chunks)
	entry.bytesIn = body.length
	if (action === "flip-bit" && body.length > 0) body = flipBit(body)

	const answer = replacedAnswer(action) ?? (await answerOf(state, request, { ...target, body, action }))
	if (action === "lose-answer") return void request.socket.resetAndDestroy()
	entry.status = answer.status
	if (answer.code !== undefined) entry.code = answer.code
	const headers = {
		date: state.now().toUTCString(),
		server: "strict-s3",
		...(action === "html" ? {} : { "x-amz-request-id": randomUUID().slice(0, 16).toUpperCase() }),
		...answer.headers,
	}
	if (request.method === "HEAD") {
		response.writeHead(answer.status, { "content-length": String(answer.body.length), ...headers })
		response.end()
		return
	}
	const broken = body.length > 0 && action === "flip-bit" ? undefined : action
	entry.bytesOut = await sendBroken(response, broken, { ...answer, headers })
}

function targetOf(request: IncomingMessage) {
	const [path = "/", query = ""] = (request.url ?? "/").split("?")
	const [bucket = "", ...key] = path.slice(1).split("/").map(decodeURIComponent)
	const target = { bucket, key: key.join("/"), query: Object.fromEntries(new URLSearchParams(query)) }
	return { ...target, operation: operationOf(request.method ?? "", target) }
}

function operationOf(
	method: string,
	{ bucket, key, query }: { bucket: string; key: string; query: Record<string, string> },
): Operation {
	const has = (name: string) => name in query
	if (bucket === "") return method === "GET" ? "ListBuckets" : "Unknown"
	if (key === "") {
		if (method === "HEAD") return "HeadBucket"
		if (method === "GET" && has("uploads")) return "ListMultipartUploads"
		if (method === "GET" && query["list-type"] === "2") return "ListObjectsV2"
		if (method === "GET" && has("object-lock")) return "GetObjectLockConfiguration"
		return method === "POST" && has("delete") ? "DeleteObjects" : "Unknown"
	}
	if (method === "HEAD") return "HeadObject"
	if (method === "GET") return has("uploadId") ? "ListParts" : "GetObject"
	if (method === "PUT") return has("partNumber") && has("uploadId") ? "UploadPart" : "PutObject"
	if (method === "DELETE") return has("uploadId") ? "AbortMultipartUpload" : "DeleteObject"
	if (method === "POST" && has("uploads")) return "CreateMultipartUpload"
	return method === "POST" && has("uploadId") ? "CompleteMultipartUpload" : "Unknown"
}

function replacedAnswer(action: Fault["do"] | undefined): Answer | undefined {
	const html = { "content-type": "text/html; charset=utf-8" }
	if (action === "html") return { status: 200, headers: html, body: Buffer.from(htmlPage) }
	if (typeof action !== "object") return undefined
	if ("redirect" in action)
		return { status: 307, headers: { location: action.redirect }, body: Buffer.alloc(0) }
	if (!("status" in action)) return undefined
	const retry = action.retryAfter === undefined ? {} : { "retry-after": String(action.retryAfter) }
	if (action.html === true)
		return { status: action.status, headers: { ...html, ...retry }, body: Buffer.from(htmlPage) }
	const code = action.code ?? { 429: "TooManyRequests", 500: "InternalError" }[action.status] ?? "SlowDown"
	const answer = refusal(new S3Failure(action.status, code, "Injected by the test."))
	return { ...answer, headers: { ...answer.headers, ...retry } }
}

export type Call = {
	operation: Operation
	bucket: string
	key: string
	query: Readonly<Record<string, string>>
	headers: IncomingMessage["headers"]
	body: Buffer
	action: Fault["do"] | undefined
}

async function answerOf(
	state: ServerState,
	request: IncomingMessage,
	call: Omit<Call, "headers">,
): Promise<Answer> {
	try {
		const { credential, payload } = verifySignature(request, {
			credentials: state.credentials,
			region: state.region,
			now: state.now(),
			allowUnsigned: state.allowUnsignedPayload,
		})
		const body = checkPayload(call.body, payload, request.headers)
		const deletes = /^DeleteObject/.test(call.operation)
		if ((deletes && state.deletes === "denied") || credential.denies?.includes(call.operation) === true)
			throw new S3Failure(403, "AccessDenied", "Access Denied")
		if (call.operation === "Unknown")
			throw new S3Failure(501, "NotImplemented", "This server does not know this operation")
		if (call.bucket !== "" && !state.objects.hasBucket(call.bucket))
			throw new S3Failure(404, "NoSuchBucket", "The specified bucket does not exist.")
		return await operations[call.operation](state, { ...call, body, headers: request.headers })
	} catch (error) {
		if (error instanceof S3Failure) return refusal(error)
		throw error
	}
}

function checkPayload(sent: Buffer, claim: PayloadClaim, headers: IncomingMessage["headers"]): Buffer {
	const { body, trailer } = claim.kind === "unsigned-trailer" ? unchunk(sent) : { body: sent, trailer: {} }
	if (claim.kind === "digest" && createHash("sha256").update(body).digest("hex") !== claim.sha256)
		throw new S3Failure(
			400,
			"XAmzContentSHA256Mismatch",
			"The provided 'x-amz-content-sha256' header does not match what was computed.",
		)
	const md5 = headers["content-md5"]
	if (md5 !== undefined && createHash("md5").update(body).digest("base64") !== md5)
		throw new S3Failure(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")
	// On CompleteMultipartUpload the header speaks of the object, not of the body.
	const completes = headers["x-amz-checksum-type"] !== undefined
	const crc64 = headers["x-amz-checksum-crc64nvme"] ?? trailer["x-amz-checksum-crc64nvme"]
	if (!completes && crc64 !== undefined && crc64 !== crc64Of(body))
		throw new S3Failure(
			400,
			"BadDigest",
			"The CRC64NVME you specified did not match the calculated checksum.",
		)
	return body
}

// `aws-chunked` without signatures: hexadecimal length, CRLF, bytes, CRLF; then the trailer.
function unchunk(sent: Buffer): { body: Buffer; trailer: Record<string, string> } {
	const pieces: Buffer[] = []
	for (let at = 0; ; ) {
		const lineEnd = sent.indexOf("\r\n", at)
		const size = Number.parseInt(sent.toString("latin1", at, lineEnd), 16)
		if (lineEnd < 0 || Number.isNaN(size))
			throw new S3Failure(400, "IncompleteBody", "The chunked body is malformed")
		at = lineEnd + 2
		if (size === 0) {
			const lines = sent
				.toString("latin1", at)
				.split("\r\n")
				.filter((line) => line !== "")
			const trailer = lines
				.map((line) => line.split(":"))
				.map(([name = "", value = ""]) => [name, value.trim()])
			return { body: Buffer.concat(pieces), trailer: Object.fromEntries(trailer) }
		}
		pieces.push(sent.subarray(at, at + size))
		at += size + 2
	}
}

function refusal(failure: S3Failure): Answer {
	return {
		status: failure.status,
		code: failure.code,
		headers: { "content-type": "application/xml" },
		body: Buffer.from(renderXml("Error", { Code: failure.code, Message: failure.message })),
	}
}
