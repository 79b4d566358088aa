// Whose turn it is, as pure functions. The engine's scripts do the same in Redis; tests hold the two together.
import type { Mode } from "./job.ts"

/** A waiting job, as far as its turn depends on it. */
export type Waiting = { id: string; user: string; level: number; seq: number; createdMs: number }

/** A user in the ring: virtual time, and the turn that settles ties (who stood there first goes first). */
export type Seat = { time: number; turn: number }

/** Who has had how much, in round robin. Not changed by looking. */
export type Ring = {
	/** Virtual time of the one served last; never goes back. */
	time: number
	turn: number
	/** Users who have jobs waiting. */
	seats: ReadonlyMap<string, Seat>
	/** Virtual time of users who were served once, kept while they have nothing waiting. */
	past: ReadonlyMap<string, number>
	weights: ReadonlyMap<string, number>
}

export type Queue = { waiting: readonly Waiting[]; ring: Ring; agingMs: number }

/** One turn of a user of weight 1. Whole numbers, so that sums are exact here and in Redis. */
const stride = 1_000_000

export const emptyQueue: Queue = {
	waiting: [],
	ring: { time: 0, turn: 0, seats: new Map(), past: new Map(), weights: new Map() },
	agingMs: 0,
}

/** The queue with one more job in it. A newcomer gets a seat at the present time: no credit for absence. */
export function arrive(queue: Queue, job: Waiting): Queue {
	const ring = job.level === 0 ? queue.ring : sit(queue.ring, job.user)
	return { ...queue, waiting: [...queue.waiting, job], ring }
}

/** The queue without a job that is cancelled. */
export function depart(queue: Queue, id: string): Queue {
	const job = queue.waiting.find((one) => one.id === id)
	if (job === undefined) return queue
	return leaveWhenDone({ ...queue, waiting: queue.waiting.filter((one) => one !== job) }, job.user)
}

/** The queue with another level for a job. */
export function reprioritise(queue: Queue, id: string, level: number): Queue {
	const job = queue.waiting.find((one) => one.id === id)
	if (job === undefined) return queue
	const changed = { ...job, level }
	if ((job.level === 0) !== (level === 0)) return arrive(depart(queue, id), changed)
	return { ...queue, waiting: queue.waiting.map((one) => (one === job ? changed : one)) }
}

/**
 * Who is next, and the queue afterwards.
 * @param mayRun false for users who run as many jobs as they may; level 0 is never held back
 */
export function take(
	queue: Queue,
	mode: Mode,
	mayRun: (user: string) => boolean = () => true,
): { job: Waiting; queue: Queue } | undefined {
	const [instructor] = sorted(queue, "fifo").filter(({ level }) => level === 0)
	if (instructor !== undefined) return { job: instructor, queue: depart(queue, instructor.id) }
	if (mode !== "round_robin") {
		const job = sorted(queue, mode).find(({ user }) => mayRun(user))
		return job && { job, queue: depart(queue, job.id) }
	}
	const [user] =
		[...queue.ring.seats]
			.filter(([name]) => mayRun(name))
			.sort(([, a], [, b]) => a.time - b.time || a.turn - b.turn)[0] ?? []
	if (user === undefined) return undefined
	const job = sorted(queue, "round_robin").find((one) => one.user === user)
	return job && { job, queue: depart({ ...queue, ring: serve(queue.ring, user) }, job.id) }
}

/** The ids of all that waits, in the order in which they are taken if nothing else comes. */
export function order(queue: Queue, mode: Mode): string[] {
	const ids: string[] = []
	for (let rest = queue; ; ) {
		const next = take(rest, mode)
		if (next === undefined) return ids
		ids.push(next.job.id)
		rest = next.queue
	}
}

/** One user's row of the ring as the engine hands it out, in the ring's order. */
export type RingRow = { user: string; time: number; stride: number; waiting: number }

/**
 * How many jobs go before a user's job in round robin, level 0 aside: exact, without going through them.
 * @param rank the job's place among its user's own, from 0
 * @param present the ring's virtual time
 */
export function turnsBefore(rows: readonly RingRow[], present: number, user: string, rank: number): number {
	const own = rows.findIndex((row) => row.user === user)
	const ownRow = rows[own]
	if (ownRow === undefined) return rank
	// A user who was held back by a cap is served at once, and then goes on from the present: no credit.
	const tag = (row: RingRow, turn: number) =>
		turn === 0 ? row.time : Math.max(row.time, present) + turn * row.stride
	let before = rank
	for (const [index, row] of rows.entries()) {
		if (index === own) continue
		const until = tag(ownRow, rank)
		const from = Math.max(row.time, present)
		// Turns certainly before: their tag is smaller. The one that is equal is looked at by itself.
		let turns = row.time < until ? 1 + Math.max(0, Math.ceil((until - from) / row.stride) - 1) : 0
		if (turns < row.waiting && tag(row, turns) === until && goesFirst(row, turns, index)) turns += 1
		before += Math.min(turns, row.waiting)
	}
	return before

	// Equal tags: who got there first. That is who was served earlier the time before, and so on backwards.
	function goesFirst(row: RingRow, turn: number, index: number): boolean {
		let [theirs, mine] = [turn, rank]
		while (theirs > 0 && mine > 0) {
			theirs -= 1
			mine -= 1
			const difference = tag(row, theirs) - tag(ownRow as RingRow, mine)
			if (difference !== 0) return difference < 0
		}
		return theirs === mine ? index < own : theirs < mine
	}
}

function sorted({ waiting, agingMs }: Queue, mode: Mode): Waiting[] {
	const score = ({ level, seq, createdMs }: Waiting): [number, number] => {
		if (level === 0) return [-Infinity, seq]
		if (mode === "fifo") return [0, seq]
		// Waiting makes up for a lower level.
		if (mode === "priority" && agingMs > 0) return [createdMs + level * agingMs, 0]
		return [level, seq]
	}
	return waiting
		.map((job) => ({ job, by: score(job) }))
		.sort((a, b) => a.by[0] - b.by[0] || a.by[1] - b.by[1] || (a.job.id < b.job.id ? -1 : 1))
		.map(({ job }) => job)
}

function sit(ring: Ring, user: string): Ring {
	if (ring.seats.has(user)) return ring
	const turn = ring.turn + 1
	const seat = { time: Math.max(ring.past.get(user) ?? 0, ring.time), turn }
	return { ...ring, turn, seats: new Map(ring.seats).set(user, seat) }
}

function serve(ring: Ring, user: string): Ring {
	const time = Math.max(ring.seats.get(user)?.time ?? 0, ring.time)
	const step = Math.floor(stride / (ring.weights.get(user) ?? 1) + 0.5)
	const seats = new Map(ring.seats)
	seats.delete(user)
	return sit({ ...ring, time, seats, past: new Map(ring.past).set(user, time + step) }, user)
}

function leaveWhenDone(queue: Queue, user: string): Queue {
	if (queue.waiting.some((one) => one.user === user && one.level > 0)) return queue
	const seats = new Map(queue.ring.seats)
	seats.delete(user)
	return { ...queue, ring: { ...queue.ring, seats } }
}
