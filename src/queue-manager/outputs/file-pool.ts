// A few threads for file operations, each operation with a deadline. A hung mount stops these threads and nothing else:
// a thread that is stuck in the kernel can't be ended, so it is left waiting and taken back when it comes to.
import { Worker } from "node:worker_threads"
import { OperatorError } from "../../lib/errors.ts"
import { type Operations, operations } from "./operations.ts"
import type { Answer, Request } from "./serve-operations.ts"

/** The operations of operations.ts, run elsewhere; each rejects with a `FileTrouble`. */
export type Files = {
	readonly [Name in keyof Operations]: (
		given: Parameters<Operations[Name]>[0],
		options?: { deadlineMs?: number },
	) => ReturnType<Operations[Name]>
}

/** An operation that failed, or didn't end in time (code `EHANG`). */
export class FileTrouble extends OperatorError {
	readonly code: string | undefined

	constructor(message: string, code: string | undefined) {
		super(message)
		this.name = "FileTrouble"
		this.code = code
	}
}

export type FilePoolOptions = {
	/** What the messages call it, as in `the share`. */
	name: string
	threads?: number
	/** Of an operation that names none, waiting for a thread included. */
	deadlineMs?: number
	/** What the threads run; another one in tests, and where everything is bundled. */
	threadFile?: URL
	/** Handed to that. */
	threadData?: unknown
}

type Task = Request & { settle(answer: Answer): void; isOver: boolean }
type Thread = { worker: Worker; task: Task | undefined }

/** Starts no thread before there is work. Disposing doesn't wait for threads that are stuck. */
export function openFilePool({
	name,
	threads = 3,
	deadlineMs = 10_000,
	threadFile = new URL(
		import.meta.url.endsWith(".ts") ? "./file-thread.ts" : "./file-thread.js",
		import.meta.url,
	),
	threadData,
}: FilePoolOptions): { files: Files; stuck(): number } & AsyncDisposable {
	const pool: Thread[] = []
	const waiting: Task[] = []
	let lastId = 0
	let isClosed = false

	const next = () => {
		for (;;) {
			if (waiting.length === 0 || isClosed) return
			const thread = pool.find(({ task }) => task === undefined) ?? startThread()
			if (thread === undefined) return
			const task = waiting.shift()
			if (task === undefined) return
			thread.task = task
			thread.worker.postMessage({ id: task.id, name: task.name, given: task.given } satisfies Request)
		}
	}
	const startThread = (): Thread | undefined => {
		if (pool.length >= threads) return undefined
		const thread: Thread = { worker: new Worker(threadFile, { workerData: threadData }), task: undefined }
		const leave = (message: string) => {
			const at = pool.indexOf(thread)
			if (at >= 0) pool.splice(at, 1)
			const { task } = thread
			thread.task = undefined
			task?.settle({ id: task.id, state: "failed", message, code: undefined })
			next()
		}
		thread.worker.on("message", (answer: Answer) => {
			const { task } = thread
			if (task?.id !== answer.id) return
			thread.task = undefined
			task.settle(answer)
			next()
		})
		thread.worker.on("error", (error) => leave(`a thread for files ended: ${error}`))
		thread.worker.on("exit", () => leave("a thread for files ended"))
		thread.worker.unref()
		pool.push(thread)
		return thread
	}
	const stuck = () => pool.filter(({ task }) => task?.isOver === true).length

	const run = (operation: string, given: unknown, limitMs: number) =>
		new Promise<unknown>((resolve, reject) => {
			if (isClosed) return reject(new FileTrouble(`${name}: closed`, undefined))
			const hangs = () => {
				task.isOver = true
				const at = waiting.indexOf(task)
				if (at >= 0) waiting.splice(at, 1)
				const message = `${name} doesn't answer: ${operation} took longer than ${limitMs} ms (${stuck()} of ${threads} threads hang)`
				reject(new FileTrouble(message, "EHANG"))
			}
			const timer = setTimeout(hangs, limitMs)
			const task: Task = {
				id: ++lastId,
				name: operation,
				given,
				isOver: false,
				settle(answer) {
					clearTimeout(timer)
					task.isOver = true
					if (answer.state === "done") resolve(answer.value)
					else reject(new FileTrouble(answer.message, answer.code))
				},
			}
			waiting.push(task)
			next()
		})

	const entries = Object.keys(operations).map((operation) => [
		operation,
		(given: unknown, options: { deadlineMs?: number } = {}) =>
			run(operation, given, options.deadlineMs ?? deadlineMs),
	])
	return {
		files: Object.fromEntries(entries) as Files,
		/** Threads that hang. */
		stuck,
		async [Symbol.asyncDispose]() {
			isClosed = true
			await Promise.all(pool.filter(({ task }) => task === undefined).map(({ worker }) => worker.terminate()))
		},
	}
}
