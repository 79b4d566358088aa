// The connection to an S3 service: the SDK's client with our retries, our watchdog, and an eye on what answers.
import { Readable } from "node:stream"
import type { S3Client } from "@aws-sdk/client-s3"
import type { Secret } from "../secret.ts"
import { s3Problem } from "./s3-errors.ts"
import { type RetryLimits, retryStrategy } from "./s3-retries.ts"
import { watchdog } from "./watchdog.ts"

export type ConnectionOptions = {
	endpoint: string
	region: string
	accessKeyId: Secret
	secretAccessKey: Secret
	connectTimeoutMs: number
	/** A transfer fails that waits this long for fewer than `leastBytes`. */
	stallMs: number
	leastBytes: number
	retries: RetryLimits
}

type Sdk = typeof import("@aws-sdk/client-s3")
export type Connection = { sdk: Sdk; client: S3Client }

/** What a request carries: bytes that can be sent again when an attempt fails. */
export type Upload = {
	sizeBytes: number
	/** sha256 in hex; goes into the signature, so that the service refuses bytes that changed on the way. */
	digest: string
	/** Gives the bytes anew for each attempt. */
	open: () => AsyncIterable<Buffer>
	/** Bytes of this attempt so far. */
	onSent?: (bytes: number) => void
}

type HttpRequest = Parameters<import("@smithy/node-http-handler").NodeHttpHandler["handle"]>[0]
type HandlerOptions = Parameters<import("@smithy/node-http-handler").NodeHttpHandler["handle"]>[1]

/** Loads the SDK and makes a client; sends nothing yet. */
export async function connect(options: ConnectionOptions): Promise<Connection> {
	const [sdk, { NodeHttpHandler }] = await Promise.all([
		import("@aws-sdk/client-s3"),
		import("@smithy/node-http-handler"),
	])
	const http = new NodeHttpHandler({ connectionTimeout: options.connectTimeoutMs })
	const client = new sdk.S3Client({
		endpoint: options.endpoint,
		region: options.region,
		forcePathStyle: true,
		credentials: {
			accessKeyId: options.accessKeyId.reveal(),
			secretAccessKey: options.secretAccessKey.reveal(),
		},
		requestChecksumCalculation: "WHEN_REQUIRED",
		responseChecksumValidation: "WHEN_REQUIRED",
		followRegionRedirects: false,
		expectContinueHeader: false,
		// The SDK would quietly sign with the server's time. A clock that is off gives snapshots wrong dates: it must be told.
		disableClockSkewCorrection: true,
		maxAttempts: options.retries.attempts,
		retryStrategy: retryStrategy(options.retries),
		requestHandler: {
			metadata: { handlerProtocol: "http/1.1" },
			destroy: () => http.destroy(),
			handle: (request: HttpRequest, handlerOptions: HandlerOptions) =>
				watched(request, handlerOptions, options, (r, o) => http.handle(r, o)),
		},
	})
	return { sdk, client }
}

/** Sends the upload's bytes as the body of a command, anew for each attempt. */
export function sendBytes(command: { middlewareStack: unknown }, upload: Upload): void {
	type Args = { request: HttpRequest }
	type Next = (args: Args) => Promise<unknown>
	const stack = command.middlewareStack as {
		add(middleware: (next: Next) => Next, options: { step: string; name: string }): void
	}
	stack.add(
		(next) => (args) => {
			args.request.headers["x-amz-content-sha256"] = upload.digest
			args.request.headers["content-length"] = String(upload.sizeBytes)
			return next(args)
		},
		{ step: "build", name: "comfyumeDigest" },
	)
	// The innermost step runs once per attempt; outside of it the SDK sees no stream, and so knows that it can retry.
	stack.add(
		(next) => (args) => {
			args.request.body = Readable.from(slices(upload), { objectMode: false })
			return next(args)
		},
		{ step: "deserialize", name: "comfyumeBody" },
	)
}

// Small enough that a slow line shows progress between two of them.
const sliceBytes = 128 * 1024

async function* slices({ open, onSent }: Upload): AsyncGenerator<Buffer> {
	let sent = 0
	onSent?.(0)
	for await (const chunk of open()) {
		for (let at = 0; at < chunk.length; at += sliceBytes) {
			const slice = chunk.subarray(at, at + sliceBytes)
			yield slice
			sent += slice.length
			onSent?.(sent)
		}
	}
}

type Handled = Awaited<ReturnType<import("@smithy/node-http-handler").NodeHttpHandler["handle"]>>

async function watched(
	request: HttpRequest,
	handlerOptions: HandlerOptions,
	{ stallMs, leastBytes }: ConnectionOptions,
	send: (request: HttpRequest, options: HandlerOptions) => Promise<Handled>,
): Promise<Handled> {
	const stop = new AbortController()
	const outer = handlerOptions?.abortSignal as AbortSignal | undefined
	let fail: (error: Error) => void = () => {}
	const failed = new Promise<never>((_, reject) => {
		fail = reject
	})
	// A failure after the answer began reaches the reader through the body.
	failed.catch(() => {})
	// Joining many parts can take a service longer than any transfer stands still.
	const patience = request.method === "POST" && request.query?.uploadId !== undefined ? 4 : 1
	const dog = watchdog({
		stallMs: stallMs * patience,
		leastBytes,
		onStall: () => {
			// Named so that the SDK takes it for what it is: worth another attempt.
			fail(
				Object.assign(s3Problem("TimeoutError", `fewer than ${leastBytes} bytes in ${stallMs} ms`), {
					code: "Stalled",
				}),
			)
			stop.abort()
		},
	})
	const onAbort = () => {
		fail(s3Problem("AbortError", "stopped"))
		stop.abort()
	}
	if (outer?.aborted === true) onAbort()
	outer?.addEventListener("abort", onAbort, { once: true })
	const over = () => {
		dog.pause()
		outer?.removeEventListener("abort", onAbort)
	}
	const body = request.body instanceof Readable ? request.body : undefined
	if (body !== undefined) {
		const sent = Readable.from(counted(body, dog), { objectMode: false })
		// A pipe doesn't pass on its source's failure: without this, a file that can't be read would look like a stall.
		const onError = (error: Error) => {
			fail(error)
			stop.abort()
		}
		body.on("error", onError)
		sent.on("error", onError)
		request.body = sent
	}
	dog.resume()
	try {
		const handled = await Promise.race([
			send(request, { ...handlerOptions, abortSignal: stop.signal }),
			failed,
		])
		lookAt(handled)
		const answer = handled.response.body as Readable
		handled.response.body = watchedAnswer(answer, dog, failed, over)
		return handled
	} catch (error) {
		over()
		stop.abort()
		body?.destroy()
		throw error
	}
}

async function* counted(body: Readable, dog: ReturnType<typeof watchdog>): AsyncGenerator<Buffer> {
	for await (const chunk of body as AsyncIterable<Buffer>) {
		yield chunk
		dog.moved(chunk.length)
	}
}

function watchedAnswer(
	answer: Readable,
	dog: ReturnType<typeof watchdog>,
	failed: Promise<never>,
	over: () => void,
): Readable {
	async function* chunks() {
		for await (const chunk of answer as AsyncIterable<Buffer>) {
			dog.moved(chunk.length)
			// While the reader is busy with the chunk, nobody waits for the service.
			dog.pause()
			yield chunk
			dog.resume()
		}
	}
	const stream = Readable.from(chunks(), { objectMode: false, highWaterMark: 1024 * 1024 })
	failed.catch((error: Error) => stream.destroy(error))
	stream.once("close", () => {
		over()
		if (!answer.readableEnded) answer.destroy()
	})
	return stream
}

// A proxy's or a provider's page can come with any status; taken for S3 it would look like an empty bucket.
function lookAt({ response }: Handled): void {
	const { statusCode, headers } = response
	if (statusCode >= 300 && statusCode < 400 && statusCode !== 304) {
		response.body?.destroy()
		throw s3Problem("Redirect", `${statusCode} to ${hostOf(headers.location)}`)
	}
	const isHtml = /^text\/html/i.test(headers["content-type"] ?? "")
	const fromS3 = Object.keys(headers).some((name) => name.startsWith("x-amz-"))
	if (isHtml && !fromS3 && statusCode < 500 && statusCode !== 429) {
		response.body?.destroy()
		throw s3Problem("HtmlAnswer", `status ${statusCode}`)
	}
}

const hostOf = (location: string | undefined) =>
	location !== undefined && URL.canParse(location) ? new URL(location).host : "nowhere"
