// Moves whose answer never came. Whether they took effect is unknown, and their client is told that they failed: so they
// must not take effect later, and what they did is undone as soon as Redis can be asked, before anything else.
import { setTimeout as pause } from "node:timers/promises"
import { type Connection, RedisDownError, silenceMs } from "./connection.ts"
import type { Script } from "./script-prelude.ts"

// A script that Redis runs later than this refuses itself: a second before we stop listening for its answer.
const graceMs = silenceMs - 1000
// Clocks drift by little in such a time; a clock that was set shows by scripts that call themselves late.
const learnEveryMs = 10_000
// What was learned from a slow answer is worth little.
const slowMs = 1000
const lookMs = 50

/**
 * How late it is at Redis, at the earliest.
 * @param nowMs a clock of ours that never goes back
 */
export function redisClock(connection: Pick<Connection, "send" | "generation">, nowMs: () => number) {
	let known: { aheadMs: number; atMs: number; generation: number } | undefined

	/** Notes what Redis' clock showed between sending and hearing. */
	function learn(redisMs: number, sentMs: number): void {
		const heardMs = nowMs()
		// When the answer was heard it was at least so late there.
		if (heardMs - sentMs <= slowMs) {
			known = { aheadMs: redisMs - heardMs, atMs: heardMs, generation: connection.generation() }
		} else known = undefined
	}

	async function ask(): Promise<{ aheadMs: number }> {
		const sentMs = nowMs()
		const [seconds, micros] = (await connection.send(["TIME"])) as [string, string]
		const redisMs = Number(seconds) * 1000 + Math.floor(Number(micros) / 1000)
		learn(redisMs, sentMs)
		return known ?? { aheadMs: redisMs - nowMs() }
	}

	return {
		learn,
		/** Forgets it: a script called itself late, so Redis' clock was set. */
		forget(): void {
			known = undefined
		},
		/** The time at Redis, in ms, after which a script that is sent now must not run. @throws {RedisDownError} */
		async lastCall(): Promise<number> {
			const isGood =
				known !== undefined &&
				nowMs() - known.atMs < learnEveryMs &&
				known.generation === connection.generation()
			const { aheadMs } = isGood && known !== undefined ? known : await ask()
			return Math.floor(nowMs() + aheadMs + graceMs)
		},
	}
}

/** Undoes moves of unknown effect over one connection. */
export function openUndoing(connection: Connection, base: string) {
	const open = new Set<Promise<void>>()
	let isClosed = false

	async function persist(script: Script, args: readonly (string | number)[]): Promise<void> {
		while (!isClosed) {
			try {
				// On a connection that is silent this stands right behind what it undoes; with the script's text, as nobody
				// would hear that Redis doesn't know it by its digest.
				await connection.send(["EVAL", script.text, "1", base, ...args.map(String)], 0)
				return
			} catch (error) {
				if (!(error instanceof RedisDownError)) throw error
				while (!isClosed && !connection.isReady()) await pause(lookMs)
			}
		}
	}

	return {
		/** Runs a script that undoes, until Redis has answered it. */
		undo(script: Script, args: readonly (string | number)[]): void {
			const undone = persist(script, args)
				.catch(() => undefined)
				.finally(() => open.delete(undone))
			open.add(undone)
		},
		/** Until nothing is unknown any more. @throws {RedisDownError} when that takes too long */
		async done(): Promise<void> {
			if (open.size === 0) return
			const all = Promise.all(open).then(() => true)
			const isDone = await Promise.race([all, pause(silenceMs, false, { ref: false })])
			if (!isDone) throw new RedisDownError(new Error("no answer in time"))
		},
		close(): void {
			isClosed = true
		},
	}
}
