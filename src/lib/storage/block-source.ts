// Getting one block from its source: whichever way the source is read, with the retries that this way deserves.
import { once } from "node:events"
import type { Readable } from "node:stream"
import { setTimeout as wait } from "node:timers/promises"
import { MessageChannel } from "node:worker_threads"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import type { ByteSource, HttpAccess, HttpLimits } from "./byte-source.ts"
import { type Control, countBytes } from "./control.ts"
import { ObjectChanged } from "./object-store.ts"
import { JobFailed, type Jobs, type WorkerPool } from "./worker-pool.ts"

export type Lane = {
	source: ByteSource
	pool: WorkerPool
	thread: number
	lane: number
	target: string
	control: Control
	signal: AbortSignal
	budget: RetryBudget
	limitBytesPerSecond?: number
}

export type WantedBlock = { block: number; first: number; last: number; known?: string }

/** Keeps a service that is down from being asked for every block anew. */
export type RetryBudget = {
	/** @returns whether one more retry may be made */
	take(): boolean
}

/** Enough for a bad moment, and for one block in eight. */
export function retryBudget(blocks: number): RetryBudget {
	let left = 16 + Math.ceil(blocks / 8)
	return { take: () => left-- > 0 }
}

export const usualLimits: HttpLimits = {
	connectTimeoutMs: 10_000,
	stallMs: 30_000,
	leastBytes: 16 * 1024,
	attempts: 4,
	baseDelayMs: 500,
	longestDelayMs: 20_000,
}

// The same bytes wrong three times are wrong at the source.
const mostBadBlocks = 3

/**
 * Brings one block into the target file.
 * @returns its sha256, which is the known one where one is known
 */
export async function fetchOnce(lane: Lane, wanted: WantedBlock): Promise<string> {
	const { source, budget, signal } = lane
	const limits = { ...usualLimits, ...(source.access.kind === "http" ? source.access.limits : {}) }
	for (let attempt = 1, bad = 0; ; attempt++) {
		let digest: string
		try {
			digest = await attemptOf(lane, wanted, limits)
		} catch (error) {
			signal.throwIfAborted()
			const delayMs = retryDelayMs(error, attempt, limits)
			if (delayMs === undefined || !budget.take()) throw explained(error, source, attempt)
			await wait(delayMs, undefined, { signal })
			continue
		}
		if (wanted.known === undefined || digest === wanted.known) return digest
		countBytes(lane.control, wanted.first - wanted.last - 1)
		if (++bad < mostBadBlocks && budget.take()) continue
		throw new OperatorError(
			`${source.place}: block ${wanted.block} (bytes ${wanted.first} to ${wanted.last}) has the digest ${digest} instead of ${wanted.known}, ${bad} times`,
			{ hint: "the copy there is damaged: try another source" },
		)
	}
}

function attemptOf(lane: Lane, wanted: WantedBlock, limits: HttpLimits): Promise<string> {
	const { access } = lane.source
	if (access.kind === "stream") return fromStream(lane, access.open, wanted)
	if (access.kind === "file") return inWorker(lane, wanted, access)
	return fromHttp(lane, access, wanted, limits)
}

async function fromHttp(
	lane: Lane,
	access: HttpAccess,
	wanted: WantedBlock,
	limits: HttpLimits,
): Promise<string> {
	const { first, last } = wanted
	const { etag } = lane.source
	const { connectTimeoutMs, stallMs, leastBytes } = limits
	const request = await access.request({ first, last })
	return await inWorker(lane, wanted, {
		kind: "http",
		request,
		limits: { connectTimeoutMs, stallMs, leastBytes },
		...(etag !== undefined && { etag }),
	})
}

async function inWorker(
	lane: Lane,
	{ first, last }: WantedBlock,
	from: Jobs["block"]["input"]["from"],
): Promise<string> {
	const { pool, thread, target, control, limitBytesPerSecond } = lane
	const limit = limitBytesPerSecond === undefined ? {} : { limitBytesPerSecond }
	const input = { lane: lane.lane, from, first, last, target, counted: true, control, ...limit }
	const { digest } = await pool.run(thread, "block", input, from.kind === "port" ? [from.port] : [])
	return digest
}

/** Read here, hashed and written there. */
async function fromStream(
	lane: Lane,
	openRange: (range: { first: number; last: number }, signal?: AbortSignal) => Promise<Readable>,
	wanted: WantedBlock,
): Promise<string> {
	const bytes = await openRange({ first: wanted.first, last: wanted.last }, lane.signal)
	const { port1: ours, port2: theirs } = new MessageChannel()
	const working = inWorker(lane, wanted, { kind: "port", port: theirs })
	working.catch(() => bytes.destroy())
	try {
		for await (const chunk of megabytes(bytes)) {
			const taken = once(ours, "message", { signal: lane.signal })
			ours.postMessage(chunk, [chunk.buffer as ArrayBuffer])
			await Promise.race([taken, working])
		}
		ours.postMessage(undefined)
		return await working
	} catch (error) {
		ours.close()
		// The worker's own failure is the reason, where it has one of its own.
		const theirs = await working.then(
			() => undefined,
			(failure: unknown) => failure,
		)
		throw codeOf(theirs) === undefined || codeOf(theirs) === "ABORT_ERR" ? error : theirs
	} finally {
		ours.close()
		bytes.destroy()
	}
}

const chunkBytes = 1024 * 1024

// Copied together: a message costs the same for 64 KiB as for a megabyte.
async function* megabytes(bytes: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
	let filling = Buffer.allocUnsafeSlow(chunkBytes)
	let filled = 0
	for await (const chunk of bytes)
		for (let at = 0; at < chunk.length; ) {
			const count = chunk.copy(filling, filled, at)
			at += count
			filled += count
			if (filled < chunkBytes) continue
			yield filling
			filling = Buffer.allocUnsafeSlow(chunkBytes)
			filled = 0
		}
	if (filled > 0) yield filling.subarray(0, filled)
}

/** How long to wait before the next attempt; undefined when there should be none. */
export function retryDelayMs(error: unknown, attempt: number, limits: HttpLimits): number | undefined {
	if (attempt >= limits.attempts || error instanceof ObjectChanged) return undefined
	const { longestDelayMs, baseDelayMs } = limits
	const jitterMs = Math.random() * Math.min(longestDelayMs, baseDelayMs * 2 ** (attempt - 1))
	// A store's own retries are behind a stream that fails before it begins; one that breaks in its middle is asked again.
	if (error instanceof OperatorError) return error.exitCode === exitCodes.incomplete ? jitterMs : undefined
	if (!(error instanceof JobFailed) || error.exchange !== true) return undefined
	const { status, retryAfterMs = 0, code } = error
	const passes =
		status === undefined ? code !== "Redirect" : status >= 500 || status === 429 || status === 408
	if (!passes || retryAfterMs > longestDelayMs) return undefined
	return Math.max(jitterMs, retryAfterMs)
}

function explained(error: unknown, source: ByteSource, attempts: number): unknown {
	if (!(error instanceof JobFailed) || error.target === true || error.code === "ABORT_ERR") return error
	if (error.exchange !== true) return systemError(error, `reading ${source.place}`)
	if (error.status === 412) return new ObjectChanged(source.place, error)
	if (source.access.kind !== "http")
		return new OperatorError(`${source.place}: ${error.message}`, { cause: error })
	const { message, status, code, retryAfterMs } = error
	return source.access.explain({
		message,
		attempts,
		...(status !== undefined && { status }),
		...(code !== undefined && { code }),
		...(retryAfterMs !== undefined && { retryAfterMs }),
	})
}
