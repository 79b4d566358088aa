// Where the bytes of one large file can be had in ranges: a bucket, the share, the address that a model was published at.
import type { Readable } from "node:stream"

/** First and last byte, both included, as HTTP counts them. */
export type ByteRange = { first: number; last: number }

export type ByteSource = {
	/** In the operator's words: `r2`, `share`, `huggingface.co`. */
	name: string
	/** Object and place, for errors. Never holds a token or a signature. */
	place: string
	sizeBytes: number
	/**
	 * Identifies this very content. Without it, and without digests of the blocks, an interrupted transfer begins anew.
	 * Over HTTP an answer with another one is refused.
	 */
	etag?: string
	/** The same object as it is now, for when it was replaced while it was read. Without it that is an error. */
	renew?: () => Promise<ByteSource>
	access:
		| /** A file that this machine can open. */ { kind: "file"; path: string }
		/** Read by the transfer's own threads, over HTTP/1.1, with or without TLS. The fastest way over a network. */
		| HttpAccess
		/** Whatever else can be read in ranges. Fails with `ObjectChanged` when it is no longer the same object. */
		| { kind: "stream"; open: (range: ByteRange, signal?: AbortSignal) => Promise<Readable> }
}

export type HttpAccess = {
	kind: "http"
	/**
	 * The request for a range, made anew for each attempt, so that signatures and addresses may expire. Sent as it is, so
	 * its headers hold `Range`; never logged. Redirects are not followed: resolve them here.
	 */
	request: (range: ByteRange) => Promise<HttpRequest> | HttpRequest
	/** Words a failure for the operator. */
	explain: (failure: HttpFailure) => Error
	limits?: Partial<HttpLimits>
}

export type HttpRequest = { url: string; headers: Readonly<Record<string, string>> }

export type HttpFailure = {
	message: string
	/** Of the answer; absent when none came. */
	status?: number
	/** The system's code, an S3 `<Code>`, or `Stalled`, `ConnectTimeout`, `HtmlAnswer`, `Redirect`, `ForeignAnswer`. */
	code?: string
	retryAfterMs?: number
	attempts: number
}

export type HttpLimits = {
	connectTimeoutMs: number
	/** An exchange fails that waits this long for fewer than `leastBytes`. */
	stallMs: number
	leastBytes: number
	/** How often one block is asked for at most, and the pauses in between. */
	attempts: number
	baseDelayMs: number
	longestDelayMs: number
}
