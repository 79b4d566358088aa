// What can be made to go wrong, and how an answer goes wrong on the wire.
import type { ServerResponse } from "node:http"

export type FaultAction =
	/** The connection is reset instead of an answer. */
	| "reset"
	/** The request is taken and never answered. */
	| "black-hole"
	/** Half of the body, announced as if that were all. */
	| "truncate"
	/** The right length is announced, half of the body sent, the connection closed. */
	| "truncate-with-right-length"
	/** The body and 16 bytes more, announced as if that were all. */
	| "extend"
	/** One bit of the body is flipped: of the answer's, or for PutObject and UploadPart of the request's. */
	| "flip-bit"
	/** 206 with the bytes one before those asked for. */
	| "wrong-range"
	/** 200 with the whole object to a ranged request. */
	| "ok-instead-of-partial"
	/** A page for people, with status 200. */
	| "html"
	/** The work is done, and the connection reset instead of an answer. */
	| "lose-answer"
	/** The headers, then one byte at a time. */
	| { trickle: { everyMs: number } }
	| { redirect: string }
	| { status: number; code?: string; retryAfter?: string | number; html?: boolean }
	/** Before the request is looked at, for example to replace the object between two ranges. */
	| { first: () => void | Promise<void> }

export type Fault = {
	match?: {
		operation?: string
		key?: RegExp
		/** How many requests are hit; all without it. */
		times?: number
		/** How many matching requests pass before the first is hit. */
		after?: number
	}
	do: FaultAction
}

export type FaultHandle = {
	/** How many requests were hit so far. */
	readonly hits: number
	remove(): void
}

export type PlannedFault = Fault & { hits: number; passed?: number }

/** The first fault that is due for a request; counts it. */
export function findFault(
	faults: readonly PlannedFault[],
	operation: string,
	key: string,
): Fault | undefined {
	for (const fault of faults) {
		const { match = {} } = fault
		if (match.operation !== undefined && match.operation !== operation) continue
		if (match.key !== undefined && !match.key.test(key)) continue
		if (fault.hits >= (match.times ?? Number.POSITIVE_INFINITY)) continue
		fault.passed = (fault.passed ?? 0) + 1
		if (fault.passed <= (match.after ?? 0)) continue
		fault.hits++
		return fault
	}
	return undefined
}

export const htmlPage =
	"<!DOCTYPE html><html><head><title>Welcome</title></head><body>Sign in to go on</body></html>"

/** A copy with one bit in its middle flipped. */
export function flipBit(bytes: Buffer): Buffer {
	const flipped = Buffer.from(bytes)
	const middle = flipped.length >> 1
	if (flipped.length > 0) flipped[middle] = (flipped[middle] ?? 0) ^ 1
	return flipped
}

/** Sends a body as the fault wants it. */
export async function sendBroken(
	response: ServerResponse,
	action: FaultAction | undefined,
	{ status, headers, body }: { status: number; headers: Record<string, string>; body: Buffer },
): Promise<number> {
	const half = body.subarray(0, body.length >> 1)
	const sendAll = (bytes: Buffer) => {
		response.writeHead(status, { ...headers, "content-length": String(bytes.length) })
		response.end(bytes)
		return bytes.length
	}
	if (action === "truncate") return sendAll(half)
	if (action === "extend") return sendAll(Buffer.concat([body, Buffer.alloc(16, 0x5a)]))
	if (action === "flip-bit") return sendAll(flipBit(body))
	if (action === "truncate-with-right-length") {
		response.writeHead(status, { ...headers, "content-length": String(body.length) })
		await new Promise<void>((resolve) => response.write(half, () => resolve()))
		response.destroy()
		return half.length
	}
	if (typeof action === "object" && "trickle" in action) {
		response.writeHead(status, { ...headers, "content-length": String(body.length) })
		let sent = 0
		for (; sent < body.length && !response.destroyed; sent++) {
			response.write(body.subarray(sent, sent + 1))
			await new Promise((resolve) => setTimeout(resolve, action.trickle.everyMs).unref())
		}
		response.end()
		return sent
	}
	return sendAll(body)
}
