// The queue manager as a process of its own, as it runs in its container, and the clients that talk to it.
import { type ChildProcess, spawn } from "node:child_process"
import { randomUUID } from "node:crypto"
import { fileURLToPath } from "node:url"
import { poll } from "./poll.ts"

const source = fileURLToPath(new URL("../../src/queue-manager/main.ts", import.meta.url))

export type TestQueueManager = {
	/** As `http://127.0.0.1:40000`. */
	url: string
	/** Its WORKSHOP. */
	workshop: string
	/** What it logged. */
	log(): string
	/** Ends it without a goodbye. */
	kill(): Promise<void>
	/** Asks it to end. @returns its exit code and how long it took */
	terminate(): Promise<{ exitCode: number | null; tookMs: number }>
	[Symbol.asyncDispose](): Promise<void>
}

/**
 * Starts a queue manager on a free port, with AUTH_MODE=open and a workshop of its own unless told otherwise, and waits
 * until it listens and, unless told not to, until it has reached Redis.
 */
export async function startQueueManager(
	environment: Readonly<Record<string, string>>,
	{ waitForRedis = true, main = source } = {},
): Promise<TestQueueManager> {
	const workshop = environment["WORKSHOP"] ?? randomUUID()
	const child = spawn(process.execPath, [main], {
		stdio: ["ignore", "pipe", "pipe"],
		env: {
			PATH: process.env["PATH"],
			HOST: "127.0.0.1",
			PORT: "0",
			AUTH_MODE: "open",
			...environment,
			WORKSHOP: workshop,
		},
	})
	let log = ""
	for (const stream of [child.stdout, child.stderr]) {
		stream.on("data", (chunk) => {
			log = (log + chunk).slice(-100_000)
		})
	}
	const url = await poll(
		() => {
			if (child.exitCode !== null) throw new Error(`the queue manager ended:\n${log}`)
			return /"url":"([^"]+)"/.exec(log)?.[1]
		},
		{ what: "the queue manager listens", deadlineMs: 40_000 },
	)
	const ready = async () => {
		const answer = await fetch(`${url}/health`)
		return ((await answer.json()) as { redis_connected: boolean }).redis_connected
	}
	if (waitForRedis) await poll(ready, { what: "the queue manager reaches Redis", deadlineMs: 30_000 })

	return {
		url,
		workshop,
		log: () => log,
		kill: async () => void (await end(child, "SIGKILL")),
		terminate: () => end(child, "SIGTERM"),
		[Symbol.asyncDispose]: async () => void (await end(child, "SIGKILL")),
	}
}

async function end(child: ChildProcess, signal: NodeJS.Signals) {
	const startedAt = performance.now()
	if (child.exitCode === null && child.signalCode === null) {
		const ended = new Promise((resolve) => child.once("exit", resolve))
		child.kill(signal)
		await ended
	}
	return { exitCode: child.exitCode, tookMs: performance.now() - startedAt }
}

export type Answer = {
	status: number
	headers: Headers
	text: string
	/** The body, parsed where it is JSON. */
	// biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
	body: any
}

export type Ask = (
	method: string,
	path: string,
	body?: unknown,
	headers?: Readonly<Record<string, string>>,
) => Promise<Answer>

/**
 * A client of the API: an object is sent as JSON, a text or bytes as they are.
 * @param defaults headers of every request
 */
export function clientOf(url: string, defaults: Readonly<Record<string, string>> = {}): Ask {
	return async (method, path, body, headers = {}) => {
		const isRaw = typeof body === "string" || Buffer.isBuffer(body)
		const answer = await fetch(`${url}${path}`, {
			method,
			headers: {
				...defaults,
				...(body === undefined ? {} : { "content-type": "application/json" }),
				...headers,
			},
			...(body === undefined ? {} : { body: isRaw ? (body as string) : JSON.stringify(body) }),
		})
		const text = await answer.text()
		const isJson = answer.headers.get("content-type")?.includes("json") === true && text !== ""
		return {
			status: answer.status,
			headers: answer.headers,
			text,
			body: isJson ? JSON.parse(text) : undefined,
		}
	}
}

export type EventClient = {
	/** Every text that came, parsed where it is JSON. */
	// biome-ignore lint/suspicious/noExplicitAny: tests look into events of every shape
	received: any[]
	send(text: string): void
	/** The first event that fits, now or later. */
	// biome-ignore lint/suspicious/noExplicitAny: as above
	next(what: string, fits: (event: any) => boolean): Promise<any>
	close(): Promise<void>
}

/** Connects to the events. @throws when it is refused */
export async function openEvents(
	url: string,
	path = "/ws",
	headers: Readonly<Record<string, string>> = {},
): Promise<EventClient> {
	// Node's WebSocket takes headers, which the type of browsers doesn't know.
	const Socket = WebSocket as unknown as new (url: string, options: object) => WebSocket
	const socket = new Socket(`${url.replace("http", "ws")}${path}`, { headers })
	const received: unknown[] = []
	socket.addEventListener("message", ({ data }) => {
		const text = String(data)
		received.push(text.startsWith("{") ? JSON.parse(text) : text)
	})
	await new Promise<void>((resolve, reject) => {
		socket.addEventListener("open", () => resolve())
		socket.addEventListener("error", () => reject(new Error("the WebSocket was refused")))
	})
	return {
		received,
		send: (text) => socket.send(text),
		next: (what, fits) =>
			poll(() => received.find((event) => typeof event === "object" && fits(event)), {
				what,
				deadlineMs: 10_000,
			}),
		close: () =>
			new Promise((resolve) => {
				if (socket.readyState === WebSocket.CLOSED) return resolve()
				socket.addEventListener("close", () => resolve())
				socket.close()
			}),
	}
}
