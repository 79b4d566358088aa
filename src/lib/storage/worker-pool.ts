// Threads for what would hold up the event loop: hashing, and the bytes of transfers.
import { type MessagePort, type Transferable, Worker } from "node:worker_threads"
import { codeOf, messageOf, OperatorError } from "../errors.ts"
import type { HttpLimits, HttpRequest } from "./byte-source.ts"
import type { Control } from "./control.ts"
import { ExchangeFailed } from "./exchange-failed.ts"

/** What a worker can be asked for; `transfer-worker.ts` does it. */
export type Jobs = {
	/** sha256 of a whole file, and of every block where a block's size is named. */
	hash: {
		input: { path: string; blockBytes?: number; control: Control }
		output: { digest: string; sizeBytes: number; blocks?: string[] }
	}
	/** One block: from a file, over HTTP, or from the other end of a port. */
	block: {
		input: {
			/** Each lane has its own connection, and one block at a time. */
			lane: number
			from:
				| { kind: "file"; path: string }
				| { kind: "http"; request: HttpRequest; etag?: string; limits: WireLimits }
				| { kind: "port"; port: MessagePort }
			first: number
			last: number
			/** Written there, at the same place. Without it the block is hashed only. */
			target?: string
			/** Whether its bytes come from the source, and so count and are held against the limit. */
			counted: boolean
			limitBytesPerSecond?: number
			control: Control
		}
		output: { digest: string }
	}
	/** Goes on with a hash that is fed in stretches. */
	extend: {
		input: { hash: number; path: string; first: number; last: number; control: Control }
		output: undefined
	}
	finish: { input: { hash: number }; output: string }
	/** The checksums of a stretch of a file. */
	measure: {
		input: { path: string; first: number; last: number; control: Control }
		output: { digest: string; crc64: string }
	}
	/** Sends a stretch of a file as the body of a request. */
	send: {
		input: {
			lane: number
			path: string
			first: number
			last: number
			request: HttpRequest
			limits: WireLimits
			limitBytesPerSecond?: number
			control: Control
		}
		output: { etag?: string }
	}
}

export type WireLimits = Pick<HttpLimits, "connectTimeoutMs" | "stallMs" | "leastBytes">

export type JobName = keyof Jobs
export type Request = { id: number; name: JobName; input: unknown }
export type Answer = { id: number; output: unknown } | { id: number; failure: Failure }
export type Failure = {
	message: string
	code?: string
	status?: number
	retryAfterMs?: number
	exchange?: true
	target?: true
}

/** A job that failed; with the system's code, or the answer's status, where it had one. */
export class JobFailed extends Error {
	readonly code?: string
	readonly status?: number
	readonly retryAfterMs?: number
	/** It was the source or the way to it that failed, and not this machine. */
	readonly exchange?: true
	/** It was the file that is written to. */
	readonly target?: true
	constructor({ message, ...more }: Failure) {
		super(message)
		this.name = "JobFailed"
		Object.assign(this, more)
	}
}

/** For the other side of the thread's border. */
export function failureOf(error: unknown): Failure {
	const code = codeOf(error)
	const { status, retryAfterMs, target } = error as Partial<Failure>
	return {
		message: messageOf(error),
		...(code !== undefined && { code }),
		...(status !== undefined && { status }),
		...(retryAfterMs !== undefined && { retryAfterMs }),
		...(error instanceof ExchangeFailed && { exchange: true as const }),
		...(target && { target }),
	}
}

export type WorkerPool = AsyncDisposable & {
	readonly threads: number
	/**
	 * Has a worker do a job. Several can be under way in one worker.
	 * @param thread which worker, from 0
	 * @throws {JobFailed} as the worker failed; {OperatorError} when the worker itself broke
	 */
	run<N extends JobName>(
		thread: number,
		name: N,
		input: Jobs[N]["input"],
		transferred?: readonly Transferable[],
	): Promise<Jobs[N]["output"]>
}

// The source runs as it is, the bundle has the worker beside its chunks.
const program = () =>
	new URL(import.meta.url.endsWith(".ts") ? "./transfer-worker.ts" : "./transfer-worker.js", import.meta.url)

/** Workers start with their first job. Disposing ends them, whatever they are at, and closes their files. */
export function openWorkerPool(threads: number): WorkerPool {
	type Waiting = { resolve: (output: unknown) => void; reject: (error: Error) => void }
	type Member = { worker: Worker; waiting: Map<number, Waiting> }
	const members = new Map<number, Member>()
	let lastId = 0

	const start = (thread: number): Member => {
		const worker = new Worker(program(), { execArgv: [], name: "comfyume-transfer" })
		const waiting = new Map<number, Waiting>()
		const member = { worker, waiting }
		const fail = (error: Error) => {
			members.delete(thread)
			for (const { reject } of waiting.values()) reject(error)
			waiting.clear()
		}
		worker.on("message", (answer: Answer) => {
			const waiter = waiting.get(answer.id)
			waiting.delete(answer.id)
			if (waiting.size === 0) worker.unref()
			if ("failure" in answer) waiter?.reject(new JobFailed(answer.failure))
			else waiter?.resolve(answer.output)
		})
		worker.on("error", (cause) =>
			fail(new OperatorError(`a worker thread broke: ${messageOf(cause)}`, { cause, exitCode: 1 })),
		)
		worker.on("exit", () => fail(new Error("the worker thread was ended")))
		members.set(thread, member)
		return member
	}

	return {
		threads,
		run: (thread, name, input, transferred = []) =>
			new Promise((resolve, reject) => {
				const { worker, waiting } = members.get(thread) ?? start(thread)
				const id = ++lastId
				waiting.set(id, { resolve: resolve as (output: unknown) => void, reject })
				worker.ref()
				worker.postMessage({ id, name, input } satisfies Request, transferred)
			}),
		async [Symbol.asyncDispose]() {
			await Promise.all([...members.values()].map(({ worker }) => worker.terminate()))
		},
	}
}
