// A real Redis on a socket of its own, with or without an append-only file.
import { type ChildProcess, spawn } from "node:child_process"
import { mkdtemp, rm } from "node:fs/promises"
import { connect } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { poll } from "./poll.ts"

export type TestRedis = {
	/** Path of its socket: `REDIS_HOST` of the queue manager takes it. */
	socket: string
	/** Ends it without a goodbye. What was written to the append-only file stays. */
	kill(): Promise<void>
	/** Starts it again on the same socket and files. */
	start(): Promise<void>
	/** Stops it from answering, as a hung disk would, and lets it go on. */
	freeze(): void
	thaw(): void
	[Symbol.asyncDispose](): Promise<void>
}

/** Starts Redis and waits until it answers. @param appendOnly every write is on the disk before it is answered */
export async function startTestRedis({ appendOnly = false } = {}): Promise<TestRedis> {
	const directory = await mkdtemp(join(tmpdir(), "comfyume-redis-"))
	const socket = join(directory, "redis.sock")
	let server: ChildProcess | undefined

	async function start(): Promise<void> {
		const persistence = appendOnly
			? ["--appendonly", "yes", "--appendfsync", "always"]
			: ["--appendonly", "no"]
		const started = spawn(
			"redis-server",
			["--port", "0", "--unixsocket", socket, "--dir", directory, "--save", "", ...persistence],
			{ stdio: ["ignore", "pipe", "pipe"] },
		)
		let log = ""
		for (const stream of [started.stdout, started.stderr]) {
			stream.on("data", (chunk) => {
				log = (log + chunk).slice(-4000)
			})
		}
		started.on("error", (error) => {
			log += error.message
		})
		server = started
		await poll(() => pong(socket), { what: "Redis answers", deadlineMs: 30_000 }).catch((error) => {
			throw new Error(`${error.message}\n${log}`)
		})
	}

	async function kill(): Promise<void> {
		const ending = server
		server = undefined
		if (ending === undefined || ending.exitCode !== null || ending.signalCode !== null) return
		const ended = new Promise((resolve) => ending.once("exit", resolve))
		ending.kill("SIGKILL")
		await ended
	}

	await start()
	return {
		socket,
		kill,
		start,
		freeze: () => server?.kill("SIGSTOP"),
		thaw: () => server?.kill("SIGCONT"),
		async [Symbol.asyncDispose]() {
			await kill()
			await rm(directory, { recursive: true, force: true })
		},
	}
}

function pong(path: string): Promise<boolean> {
	return new Promise((resolve) => {
		const socket = connect(path)
		const answer = (is: boolean) => {
			socket.destroy()
			resolve(is)
		}
		socket.once("connect", () => socket.write("PING\r\n"))
		// While it reads its files it answers -LOADING.
		socket.once("data", (data) => answer(data.toString().startsWith("+PONG")))
		socket.once("error", () => answer(false))
	})
}
