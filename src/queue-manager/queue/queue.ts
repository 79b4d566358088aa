// The queue as the rest of the queue manager uses it: each move is one script, and answers are unions.
import { randomUUID } from "node:crypto"
import { type JobRecord, type Priority, recordOf, type Status } from "../job.ts"
import { type RingRow, turnsBefore } from "../policy.ts"
import { openConnection, type RedisAddress, type Reply } from "./connection.ts"
import { type EventPage, everybody, followEvents, pageOf } from "./events.ts"
import { intakeMoves, largeBytes } from "./intake.ts"
import { pushMoves } from "./push-moves.ts"
import { mapOf } from "./reply.ts"
import { scripts } from "./scripts.ts"
import { type QueueStatus, readStatus } from "./status.ts"
import { openUndoing, redisClock } from "./unsure.ts"

export type { Submission } from "./intake.ts"

export type Found = {
	record: JobRecord
	position: number | null
	/** JSON text; null when there is none, or it is large. */
	result: string | null
	/** The size of a result that is too large to come along; 0 otherwise. */
	largeBytes: number
}

export type Settlement = {
	id: string
	token: string
	/** Who says so, as authenticated; "" if nobody knows. */
	principal: string
	status: "completed" | "failed"
	error: string
	result?: Buffer
	/** Another attempt may help: it is made, twice at most. */
	retryable: boolean
}

export type Queue = ReturnType<typeof openQueue>

// A crash between payload and record leaves garbage for so long.
const orphanMs = 120_000
const listedResultBytes = 64 * 1024
const mostReports = 500

/**
 * Opens the queue of one workshop. Doesn't wait for Redis: until it answers, every call throws `RedisDownError`.
 * @param onTrouble told of every lost connection
 */
export function openQueue(address: RedisAddress, workshop: string, onTrouble: (error: unknown) => void) {
	const base = `cq:{${workshop}}`
	const main = openConnection(address, onTrouble)
	const bulk = openConnection(address, onTrouble)
	const undoing = openUndoing(main, base)
	const clock = redisClock(main, () => performance.now())

	/** Puts bytes into a key that expires unless a script makes it last. */
	async function upload(key: string, ...fields: (string | Buffer)[]): Promise<void> {
		const [first = ""] = fields
		const size = fields.reduce((sum, field) => sum + field.length, 0)
		const connection = size > largeBytes ? bulk : main
		// Megabytes may stand in line behind other megabytes.
		const timeoutMs = size > largeBytes ? 30_000 : undefined
		const write = fields.length === 1 ? ["SET", key, first] : ["HSET", key, ...fields]
		const written = connection.send(write, timeoutMs)
		const bounded = connection.send(["PEXPIRE", key, String(orphanMs)], timeoutMs)
		// On one connection commands keep their order: nobody has to wait for the first.
		await Promise.all([written, bounded])
	}

	async function read(withResults: boolean, mostBytes: number, what: readonly (string | number)[]) {
		const reply = await main.run(scripts.read, base, [withResults ? 1 : 0, mostBytes, ...what])
		const [mode, present, first, rows, records] = reply as [string, string, number, Reply[], Reply[]]
		const ring = rows.map((row): RingRow => {
			const [user, time, stride, waiting] = row as [string, string, number, number]
			return { user, time: Number(time), stride, waiting }
		})
		return records.map((one): Found => {
			const [id, flat, rank, result, size] = one as [string, string[], number | null, string | null, number]
			const fields = mapOf(flat)
			const record = recordOf(id, fields)
			const inRing = mode === "round_robin" && fields.get("level") !== "0" && rank !== null
			const position = inRing ? first + turnsBefore(ring, Number(present), record.user, rank) : rank
			return { record, position, result, largeBytes: size }
		})
	}

	/** One job, with its result where that is small. */
	async function find(id: string): Promise<Found | undefined> {
		const [found] = await read(true, largeBytes, [id])
		return found
	}

	return {
		isReady: () => main.isReady() && bulk.isReady(),

		/** A worker is alive, and perhaps at work. @returns what became of its job */
		async heartbeat(beat: {
			worker: string
			id: string
			token: string
			/** Who says so, as authenticated; "" if nobody knows. */
			principal?: string
			leaseMs: number
			timeoutMs: number
			about: string
			progress: string
		}): Promise<"seen" | "held" | "cancelled" | "lost"> {
			const { worker, id, token, principal = "", leaseMs, timeoutMs, about, progress } = beat
			const args = [worker, id, token, leaseMs, timeoutMs, about, progress, principal]
			const [state] = (await main.run(scripts.heartbeat, base, args)) as string[]
			return state as "seen" | "held" | "cancelled" | "lost"
		},

		/** A job's end. Only the holder of its lease decides; everybody else is told what became of it. */
		async settle(
			end: Settlement,
		): Promise<
			| { state: "done" | "retried" | "repeated" | "waiting" | "lost" | "missing" }
			| { state: "ended"; status: Status }
		> {
			const name = end.result === undefined ? "" : randomUUID()
			if (end.result !== undefined) await upload(`${base}:upload:${name}`, end.result)
			const args = [end.id, end.token, end.principal, end.status, end.error, name, end.retryable ? 1 : 0]
			const [state, status] = (await main.run(scripts.settle, base, args)) as string[]
			if (state === "ended") return { state, status: status as Status }
			if (state === "upload") throw new Error("the result was gone before it was recorded")
			return { state: state as "done" | "retried" | "repeated" | "waiting" | "lost" | "missing" }
		},

		/** A worker can't take the job after all. */
		async giveBack(id: string, token: string): Promise<"released" | "lost"> {
			const [state] = (await main.run(scripts.giveBack, base, [id, token])) as string[]
			return state as "released" | "lost"
		},

		async cancel(id: string) {
			return ending(await main.run(scripts.cancel, base, [id]))
		},

		async reprioritise(id: string, priority: Priority, level: number) {
			return ending(await main.run(scripts.reprioritise, base, [id, priority, level]))
		},

		/** Tries a failed job again. */
		async retry(id: string) {
			return ending(await main.run(scripts.retry, base, [id]))
		},

		/** Changes settings, and gives all of them. A name that begins with `default:` counts only when it is new. */
		async configure(settings: Readonly<Record<string, string>>): Promise<Map<string, string>> {
			return mapOf((await main.run(scripts.configure, base, Object.entries(settings).flat())) as string[])
		},

		/** Tells everybody something that is no job's. It is kept as long as other events are. */
		async announce(type: string, data: string, nowMs: number): Promise<void> {
			const fields = ["type", type, "user", everybody, "data", data, "at", String(nowMs)]
			await main.send(["XADD", `${base}:events`, "MAXLEN", "~", "10000", "*", ...fields])
		},

		/** Keeps what a browser reported, and the newest of those before it. */
		async keepReport(report: string): Promise<void> {
			const key = `${base}:reports`
			await Promise.all([
				main.send(["LPUSH", key, report]),
				main.send(["LTRIM", key, "0", String(mostReports - 1)]),
			])
		},

		/** What browsers reported, the newest first. */
		async reports(most: number): Promise<string[]> {
			return (await main.send(["LRANGE", `${base}:reports`, "0", String(most - 1)])) as string[]
		},

		/** A user's cap on jobs run at once (`*`: everybody's), or weight in round robin; null takes it away. */
		async setShare(what: "caps" | "weights", user: string, value: number | null) {
			return mapOf((await main.run(scripts.setShare, base, [what, user, value ?? ""])) as string[])
		},

		/**
		 * Takes jobs from workers whose lease ran out.
		 * @param adoptMs for which a job that an endpoint has may yet be taken over
		 * @returns how many
		 */
		async reap(timeoutMs: number, adoptMs = 0): Promise<number> {
			return Number(await main.run(scripts.reap, base, [timeoutMs, 50, adoptMs]))
		},

		/** Forgets what was kept long enough. @returns how many records went */
		async retain(keptMs: { records: number; dead: number; workers: number }): Promise<number> {
			const args = [keptMs.records, keptMs.dead, 100, keptMs.workers]
			return Number(await main.run(scripts.retain, base, args))
		},

		find,
		/** A result of any size; undefined when it isn't kept any more. */
		resultOf: async (id: string) => (await bulk.bytes(["GET", `${base}:result:${id}`])) ?? undefined,
		...intakeMoves({ main, bulk, base }, upload, find, undoing, clock),
		...pushMoves({ main, bulk, base }, upload),

		/** Records of several jobs as they are now, without results; those that are gone are left out. */
		findMany: (ids: readonly string[]) => read(false, 0, ids),

		/** The newest first; results only where they are small. */
		list: (user: string, status: string, most: number) =>
			read(true, listedResultBytes, ["list", user, status, most]),

		async dead(most: number): Promise<Found[]> {
			const ids = (await main.run(scripts.dead, base, [most])) as string[]
			return ids.length === 0 ? [] : read(false, 0, ids)
		},

		async status(activeMs: number): Promise<QueueStatus> {
			return readStatus(await main.run(scripts.status, base, [activeMs]))
		},

		/** Events after one, at most so many. */
		async eventsAfter(id: string, most: number): Promise<EventPage> {
			const range = ["XRANGE", `${base}:events`, `(${id}`, "+", "COUNT", String(most)]
			return pageOf(await main.send(range))
		},

		/** The id of the oldest event that is kept, and of the newest; undefined when there is none. */
		async eventBounds(): Promise<{ oldest: string; newest: string } | undefined> {
			const ends = await Promise.all([
				main.send(["XRANGE", `${base}:events`, "-", "+", "COUNT", "1"]),
				main.send(["XREVRANGE", `${base}:events`, "+", "-", "COUNT", "1"]),
			])
			const [oldest, newest] = ends.map((end) => pageOf(end)[0]?.id)
			return oldest === undefined || newest === undefined ? undefined : { oldest, newest }
		},

		/** Every event from now on, in order and none twice, across outages of Redis. Ends with `close()` on it. */
		follow: (onEvents: (events: EventPage) => void) =>
			followEvents(() => openConnection(address, onTrouble), `${base}:events`, onEvents),

		async close() {
			undoing.close()
			await Promise.all([main.close(), bulk.close()])
		},
	}
}

function ending(
	reply: Reply,
): { state: "done" | "missing" | "payload" } | { state: "ended"; status: Status } {
	const [state, status] = reply as string[]
	if (state === "ended") return { state, status: status as Status }
	return { state: state === "missing" || state === "payload" ? state : "done" }
}
