// The one door to Redis: connections that never queue what can't be sent, and scripts by their digest.
import { createClient } from "@redis/client"
import { messageOf } from "../../lib/errors.ts"
import type { Secret } from "../../lib/secret.ts"
import type { Script } from "./script-prelude.ts"

export type RedisAddress = {
	host: string
	port: number
	database: number
	password: Secret | undefined
}

/** Redis is away or doesn't answer. */
export class RedisDownError extends Error {
	/** The command was sent, and nobody knows whether it took effect or will. */
	readonly isUnsure: boolean

	constructor(cause: unknown, { isUnsure = false } = {}) {
		super(`Redis doesn't answer: ${messageOf(cause)}`, { cause })
		this.name = "RedisDownError"
		this.isUnsure = isUnsure
	}
}

/** What Redis gives back: strings, whole numbers, nothing, and lists of them. */
export type Reply = string | number | null | Reply[]

export type Connection = {
	/** Whether commands can be sent at this moment. */
	isReady(): boolean
	/** How often it was made: what was learned of an earlier server may not hold for this one. */
	generation(): number
	/** @throws {RedisDownError} when Redis is away, or silent longer than `timeoutMs` (without it: 5 s; 0: no limit) */
	send(args: readonly (string | Buffer)[], timeoutMs?: number): Promise<Reply>
	/** Runs a script on the workshop's keys. @throws {RedisDownError} */
	run(script: Script, base: string, args: readonly (string | number)[]): Promise<Reply>
	/** What a command gives, as bytes: it may be megabytes. @throws {RedisDownError} */
	bytes(args: readonly string[]): Promise<Buffer | null>
	close(): Promise<void>
}

/** A silence that is taken for an outage. */
export const silenceMs = 5000
// Errors that Redis itself answers: it is there, and the caller or the script is wrong.
const isAnswer = (error: unknown) => error instanceof Error && /^[A-Z]+ /.test(error.message)
// …but these mean that it can't serve at the moment.
const isUnable = (error: unknown) =>
	error instanceof Error && /^(LOADING|READONLY|OOM|MISCONF|MASTERDOWN|NOAUTH|WRONGPASS) /.test(error.message)

/** Opens a connection that comes back by itself whenever Redis does. Doesn't wait for it. */
export function openConnection(
	{ host, port, database, password }: RedisAddress,
	onTrouble: (error: unknown) => void,
): Connection {
	const client = createClient({
		socket: {
			...(host.startsWith("/") ? { path: host, tls: false as const } : { host, port }),
			connectTimeout: silenceMs,
			reconnectStrategy: (retries) => Math.min(50 * 2 ** Math.min(retries, 6), 1000),
		},
		database,
		...(password === undefined ? {} : { password: password.reveal() }),
		disableOfflineQueue: true,
		commandsQueueMaxLength: 20_000,
	})
	let generation = 0
	client.on("error", onTrouble)
	client.on("ready", () => {
		generation += 1
	})
	client.connect().catch(onTrouble)

	async function send(args: readonly (string | Buffer)[], timeoutMs = silenceMs): Promise<Reply> {
		// The client gives up by itself what it couldn't send in 5 s: megabytes stand in line for longer.
		const options = timeoutMs > silenceMs ? { timeout: timeoutMs } : {}
		return guarded(client.sendCommand([...args], options), timeoutMs) as Promise<Reply>
	}

	async function guarded<T>(sent: Promise<T>, timeoutMs: number): Promise<T> {
		if (!client.isReady) {
			sent.catch(() => undefined)
			throw new RedisDownError("no connection")
		}
		let timer: NodeJS.Timeout | undefined
		const silence = new Promise<never>((_, reject) => {
			if (timeoutMs > 0) timer = setTimeout(() => reject(new Error("no answer in time")), timeoutMs)
		})
		try {
			return await Promise.race([sent, silence])
		} catch (error) {
			if (isAnswer(error) && !isUnable(error)) throw error
			// What Redis refused had no effect; all else may have been on its way.
			throw new RedisDownError(error, { isUnsure: !isAnswer(error) })
		} finally {
			clearTimeout(timer)
		}
	}

	return {
		isReady: () => client.isReady,
		generation: () => generation,
		send,
		async run(script, base, args) {
			const rest = ["1", base, ...args.map(String)]
			try {
				return await send(["EVALSHA", script.sha, ...rest])
			} catch (error) {
				// Redis forgets its scripts when it restarts.
				if (!(error instanceof Error && error.message.startsWith("NOSCRIPT"))) throw error
				return await send(["EVAL", script.text, ...rest])
			}
		},
		async bytes(args) {
			// 36 is `$`, the type of Redis' strings: as bytes, so that megabytes are not decoded and encoded again.
			const typeMapping = { 36: Buffer }
			const sent = client.sendCommand([...args], { typeMapping })
			return (await guarded(sent, silenceMs * 6)) as unknown as Buffer | null
		},
		async close() {
			try {
				client.destroy()
			} catch {
				// It was never open.
			}
		},
	}
}
