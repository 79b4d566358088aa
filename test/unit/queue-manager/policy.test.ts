// Whose turn it is, on the pure policy: the bounds that users are promised, and positions without simulation.
import fc from "fast-check"
import { describe, expect, test } from "vitest"
import {
	arrive,
	depart,
	emptyQueue,
	order,
	type Queue,
	reprioritise,
	take,
	turnsBefore,
	type Waiting,
} from "../../../src/queue-manager/policy.ts"
import { runs } from "../../support/runs.ts"

let sequence = 0
const job = (user: string, level = 2): Waiting => {
	sequence += 1
	return { id: `${user}-${sequence}`, user, level, seq: sequence, createdMs: sequence * 1000 }
}
const queueOf = (...jobs: Waiting[]) => jobs.reduce(arrive, emptyQueue)
const users = (queue: Queue, mode: "fifo" | "round_robin" | "priority") =>
	order(queue, mode).map((id) => id.split("-")[0])

describe("the order", () => {
	const jobs = [job("a"), job("a", 3), job("b", 1), job("a"), job("c", 0), job("b")]
	const queue = queueOf(...jobs)

	test("is arrival in fifo, whatever the level, after the instructor", () => {
		expect(users(queue, "fifo")).toEqual(["c", "a", "a", "b", "a", "b"])
	})

	test("is level and then arrival in priority, after the instructor", () => {
		expect(order(queue, "priority")).toEqual([4, 2, 0, 3, 5, 1].map((index) => jobs[index]?.id))
	})

	test("is turn about in round robin, after the instructor", () => {
		expect(users(queue, "round_robin")).toEqual(["c", "a", "b", "a", "b", "a"])
	})

	test("lets waiting make up for a low level where aging is on, and never beats the instructor", () => {
		const old = { ...job("low", 3), createdMs: 0 }
		const young = { ...job("high", 1), createdMs: 60_000 }
		const instructor = { ...job("instructor", 0), createdMs: 1e9 }
		const aged = { ...queueOf(young, old, instructor), agingMs: 20_000 }
		expect(users(aged, "priority")).toEqual(["instructor", "low", "high"])
	})
})

describe("round robin", () => {
	test("serves each of 19 users with one job within 20 claims beside one with 1000", () => {
		let queue = queueOf(...Array.from({ length: 1000 }, () => job("many")))
		for (let turn = 0; turn < 50; turn++) queue = take(queue, "round_robin")?.queue ?? queue
		for (let index = 0; index < 19; index++) queue = arrive(queue, job(`u${index}`))
		const served = users(queue, "round_robin").slice(0, 20)
		expect(new Set(served).size).toBe(20)
	})

	test("gives no credit for absence and keeps no debt", () => {
		let queue = queueOf(job("a"), job("b"), job("a"), job("a"), job("a"), job("a"))
		for (let turn = 0; turn < 4; turn++) queue = take(queue, "round_robin")?.queue ?? queue
		for (let index = 0; index < 3; index++) queue = arrive(arrive(queue, job("b")), job("new"))
		expect(users(queue, "round_robin").slice(0, 6).sort()).toEqual(["a", "a", "b", "b", "new", "new"])
	})

	test("gives a user of weight 2 two turns for one", () => {
		const weighted = { ...emptyQueue, ring: { ...emptyQueue.ring, weights: new Map([["a", 2]]) } }
		const jobs = Array.from({ length: 12 }, (_, index) => job(index % 2 === 0 ? "a" : "b"))
		const served = users(jobs.reduce(arrive, weighted), "round_robin").slice(0, 6)
		expect(served.filter((user) => user === "a")).toHaveLength(4)
	})

	// Some users arrive, some are served, some cancel: then the bounds must hold from any state.
	const operations = fc.array(
		fc.oneof(
			{ weight: 5, arbitrary: fc.record({ do: fc.constant("arrive" as const), user: fc.nat(5) }) },
			{ weight: 4, arbitrary: fc.record({ do: fc.constant("take" as const), capped: fc.nat(8) }) },
			{ weight: 1, arbitrary: fc.record({ do: fc.constant("depart" as const), index: fc.nat(30) }) },
			{
				weight: 1,
				arbitrary: fc.record({
					do: fc.constant("level" as const),
					index: fc.nat(30),
					level: fc.nat(3),
				}),
			},
		),
		{ maxLength: 60, size: "max" },
	)
	const weights = fc.array(fc.constantFrom(1, 1, 1, 2, 3, 0.5), { minLength: 6, maxLength: 6 })

	function play(
		done: readonly (typeof operations extends fc.Arbitrary<infer T> ? T : never)[number][],
		given: number[],
	) {
		let queue: Queue = {
			...emptyQueue,
			ring: { ...emptyQueue.ring, weights: new Map(given.map((weight, user) => [`u${user}`, weight])) },
		}
		const at = (index: number) => queue.waiting[index % Math.max(1, queue.waiting.length)]?.id ?? ""
		for (const one of done) {
			if (one.do === "arrive") queue = arrive(queue, job(`u${one.user}`))
			else if (one.do === "depart") queue = depart(queue, at(one.index))
			else if (one.do === "level") queue = reprioritise(queue, at(one.index), one.level)
			else queue = take(queue, "round_robin", (user) => user !== `u${one.capped}`)?.queue ?? queue
		}
		return queue
	}

	test("lets nobody wait more than k turns between two of their own, with k users waiting", () => {
		fc.assert(
			fc.property(operations, (done) => {
				let queue = play(done, [1, 1, 1, 1, 1, 1])
				const ordinary = queue.waiting.filter(({ level }) => level > 0)
				queue = { ...queue, waiting: ordinary }
				const k = queue.ring.seats.size
				const lastTurn = new Map<string, number>()
				for (const [turn, user] of users(queue, "round_robin").entries()) {
					const before = lastTurn.get(user ?? "") ?? -1
					expect(turn - before).toBeLessThanOrEqual(k)
					lastTurn.set(user ?? "", turn)
				}
			}),
			{ numRuns: runs(300) },
		)
	})

	test("gives the place of every waiting job without going through those before it", () => {
		fc.assert(
			fc.property(operations, weights, (done, given) => {
				const queue = play(done, given)
				const whole = order(queue, "round_robin")
				const level0 = queue.waiting.filter(({ level }) => level === 0).length
				const rows = [...queue.ring.seats]
					.sort(([, a], [, b]) => a.time - b.time || a.turn - b.turn)
					.map(([user, { time }]) => ({
						user,
						time,
						stride: Math.floor(1e6 / (queue.ring.weights.get(user) ?? 1) + 0.5),
						waiting: queue.waiting.filter((one) => one.user === user && one.level > 0).length,
					}))
				for (const { user } of rows) {
					const own = whole.filter((id) =>
						queue.waiting.some((one) => one.id === id && one.user === user && one.level > 0),
					)
					for (const [rank, id] of own.entries()) {
						const position = level0 + turnsBefore(rows, queue.ring.time, user, rank)
						expect({ user, rank, position }).toEqual({ user, rank, position: whole.indexOf(id) })
					}
				}
			}),
			{ numRuns: runs(500) },
		)
	})
})
