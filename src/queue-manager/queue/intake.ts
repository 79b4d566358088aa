// The queue's two ends: jobs come in from clients, and go out to workers. Either may be asked while Redis falls silent,
// and then nobody may be told one thing while Redis does another.
import { randomUUID } from "node:crypto"
import type { Priority } from "../job.ts"
import { type Connection, RedisDownError, type Reply } from "./connection.ts"
import type { Found } from "./queue.ts"
import { scripts } from "./scripts.ts"
import type { openUndoing, redisClock } from "./unsure.ts"

export type Submission = {
	user: string
	priority: Priority
	/** What the order goes by; the same as the priority, unless priorities are switched off. */
	level: number
	kind: string
	/** JSON text, as the client sent it. */
	workflow: Buffer
	metadata: Buffer
	/** Refused when so many wait already; 0 for any number. */
	mostWaiting: number
	/** Refused when so many of the user's own wait already; 0 for any number. */
	mostOwn: number
	idempotencyKey: string | undefined
}

/** A job in a worker's hands. */
export type Claimed = {
	id: string
	user: string
	attempt: number
	createdMs: number
	/** What proves that it is this worker's. */
	token: string
	metadata: Buffer
	workflow: Buffer
}

const idempotencyMs = 86_400_000
/** What is larger goes over a connection of its own, so that nobody waits behind it. */
export const largeBytes = 64 * 1024

/**
 * @param upload puts fields into a key that expires unless a script makes it last
 * @param find a job as it is now
 */
export function intakeMoves(
	{ main, bulk, base }: { main: Connection; bulk: Connection; base: string },
	upload: (key: string, ...fields: (string | Buffer)[]) => Promise<void>,
	find: (id: string) => Promise<Found | undefined>,
	undoing: ReturnType<typeof openUndoing>,
	clock: ReturnType<typeof redisClock>,
) {
	/**
	 * Makes a move that refuses itself when Redis runs it after we have given up, and undoes it when its answer doesn't
	 * come: it may have been made before that.
	 * @param make sends it, with the last time at Redis at which it may run
	 * @param undo called when its effect is unknown
	 */
	async function bounded(make: (lastCall: number) => Promise<Reply>, undo: () => void): Promise<Reply> {
		// What was told to have failed must be gone before a worker can be handed it.
		await undoing.done()
		for (let time = 0; ; time++) {
			const lastCall = await clock.lastCall()
			try {
				const reply = await make(lastCall)
				if (!Array.isArray(reply) || reply[0] !== "late") return reply
			} catch (error) {
				if (error instanceof RedisDownError && error.isUnsure) undo()
				throw error
			}
			// We still listen: Redis' clock was set, or is another's.
			clock.forget()
			if (time > 0) throw new RedisDownError(new Error("its clock runs away"))
		}
	}

	return {
		/** Takes a job in, and gives it as it stands then; an earlier one when its idempotency key was used before. */
		async submit(
			job: Submission,
		): Promise<{ state: "created" | "repeated"; found: Found } | { state: "full" } | { state: "crowded" }> {
			const id = randomUUID()
			const large = job.workflow.length + job.metadata.length > largeBytes
			const key = `${base}:payload:${id}`
			const promise = job.idempotencyKey ?? ""
			const store = () => upload(key, "workflow", job.workflow, "metadata", job.metadata)
			let stored: Promise<void> = Promise.resolve()
			let sentMs = performance.now()
			const args = [id, job.user, job.priority, job.level, job.kind, job.mostWaiting, promise, idempotencyMs]
			if (large) await store()
			const reply = await bounded(
				(lastCall) => {
					sentMs = performance.now()
					if (!large) {
						stored = store()
						stored.catch(() => undefined)
					}
					return main.run(scripts.create, base, [...args, lastCall, job.mostOwn])
				},
				() => undoing.undo(scripts.withdraw, [id, job.user, promise]),
			)
			const [state, second, created, rank] = reply as [string, string | number, string, number]
			if (state === "full" || state === "crowded") return { state }
			await stored
			if (state === "payload") throw new Error("the payload was gone before its record was written")
			if (state === "repeated") {
				const found = await find(String(second))
				if (found === undefined) throw new Error(`${id} is gone right after it was found`)
				return { state, found }
			}
			const { user, priority, kind } = job
			const createdMs = Number(created)
			clock.learn(createdMs, sentMs)
			const times = { createdMs, startedMs: null, completedMs: null }
			const none = { worker: null, error: null, dead: null, attempt: 0, revision: Number(second) }
			const record = { id, user, priority, kind, status: "pending" as const, ...times, ...none }
			if (rank >= 0)
				return { state: "created", found: { record, position: rank, result: null, largeBytes: 0 } }
			// It is accepted, whether its place can be told or not.
			const found = await find(id).catch(() => undefined)
			return { state: "created", found: found ?? { record, position: null, result: null, largeBytes: 0 } }
		},

		/**
		 * The next job for a worker, by the mode of this moment.
		 * @param read the token of an earlier claim whose answer the worker is known to have read
		 */
		async claim(
			worker: string,
			principal: string,
			leaseMs: number,
			heartbeats: boolean,
			{ endpoint, read = "" }: { endpoint?: { name: string; slots: number }; read?: string | undefined } = {},
		) {
			const token = randomUUID()
			const on = [endpoint?.name ?? "", endpoint?.slots ?? 0]
			const args = [worker, principal, token, leaseMs, heartbeats ? 1 : 0, largeBytes, ...on]
			const takeBack = () => undoing.undo(scripts.unclaim, [worker, token])
			const reply = await bounded(
				(lastCall) => main.run(scripts.claim, base, [...args, lastCall, read]),
				takeBack,
			)
			if (reply === null) return undefined
			const [id, user, attempt, metadata, small, created] = reply as [
				string,
				string,
				number,
				string,
				string | null,
				string,
			]
			const createdMs = Number(created)
			try {
				const workflow =
					small === null
						? await bulk.bytes(["HGET", `${base}:payload:${id}`, "workflow"])
						: Buffer.from(small)
				if (workflow === null) throw new Error(`the workflow of ${id} is gone`)
				const claimed = { id, user, attempt, createdMs, token, metadata: Buffer.from(metadata), workflow }
				return claimed satisfies Claimed
			} catch (error) {
				takeBack()
				throw error
			}
		},

		/** A claimed job could not be passed on: nobody has it, and nobody is at fault. Doesn't wait for Redis. */
		unclaim(worker: string, { token }: Pick<Claimed, "token">): void {
			undoing.undo(scripts.unclaim, [worker, token])
		},
	}
}
