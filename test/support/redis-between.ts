// Stands between a queue manager and Redis, and loses answers: what is asked arrives and takes effect, and nobody hears.
import { mkdtemp, rm } from "node:fs/promises"
import { connect, createServer, type Socket } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"

export type RedisBetween = {
	/** `REDIS_HOST` for the queue manager. */
	socket: string
	/** How many bytes were passed on to Redis. */
	asked(): number
	/** From now on no answer comes through. */
	holdAnswers(): void
	/** Breaks all connections: the answers that were held are lost, and later ones come through. */
	cut(): void
	[Symbol.asyncDispose](): Promise<void>
}

/**
 * @param redis the path of its socket
 * @param late what is asked with this word in it reaches Redis so much later
 */
export async function standBetween(
	redis: string,
	late: { word: string; ms: number } | undefined = undefined,
): Promise<RedisBetween> {
	const directory = await mkdtemp(join(tmpdir(), "comfyume-between-"))
	const socket = join(directory, "redis.sock")
	const pairs = new Set<Socket>()
	let isHolding = false
	let asked = 0
	const server = createServer((client) => {
		const upstream = connect(redis)
		for (const one of [client, upstream]) {
			pairs.add(one)
			one.on("error", () => undefined)
			one.on("close", () => {
				pairs.delete(one)
				client.destroy()
				upstream.destroy()
			})
		}
		client.on("data", (chunk) => {
			asked += chunk.length
			if (late === undefined || !chunk.includes(late.word)) upstream.write(chunk)
			else setTimeout(() => upstream.write(chunk), late.ms)
		})
		upstream.on("data", (chunk) => {
			if (!isHolding) client.write(chunk)
		})
	})
	await new Promise<void>((resolve) => server.listen(socket, resolve))
	const cut = () => {
		isHolding = false
		for (const one of pairs) one.destroy()
	}
	return {
		socket,
		asked: () => asked,
		holdAnswers() {
			isHolding = true
		},
		cut,
		async [Symbol.asyncDispose]() {
			cut()
			await new Promise((resolve) => server.close(resolve))
			await rm(directory, { recursive: true, force: true })
		},
	}
}
