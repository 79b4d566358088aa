// The engine in a real Redis and the pure policy go through the same random operations, and must always agree on who is
// next and on everybody's position.
import fc from "fast-check"
import { afterAll, beforeAll, expect, test } from "vitest"
import { type Mode, modes, type Priority } from "../../../src/queue-manager/job.ts"
import {
	arrive,
	depart,
	emptyQueue,
	order,
	type Queue as Policy,
	reprioritise,
	take,
} from "../../../src/queue-manager/policy.ts"
import type { Queue } from "../../../src/queue-manager/queue/queue.ts"
import { describeWith } from "../../support/parts.ts"
import { openTestEngine, submitted } from "../../support/queue-manager-engine.ts"
import { startTestRedis, type TestRedis } from "../../support/redis.ts"
import { runs } from "../../support/runs.ts"

const users = ["ann", "bob", "cem", "Zoe", "d-1"]

const operation = fc.oneof(
	{
		weight: 6,
		arbitrary: fc.record({
			do: fc.constant("submit" as const),
			user: fc.constantFrom(...users),
			priority: fc.constantFrom<Priority[]>(0, 1, 2, 2, 2, 3),
		}),
	},
	{ weight: 5, arbitrary: fc.record({ do: fc.constant("claim" as const) }) },
	{ weight: 2, arbitrary: fc.record({ do: fc.constant("end" as const), index: fc.nat(20) }) },
	{ weight: 1, arbitrary: fc.record({ do: fc.constant("cancel" as const), index: fc.nat(20) }) },
	{ weight: 1, arbitrary: fc.record({ do: fc.constant("giveBack" as const), index: fc.nat(20) }) },
	{
		weight: 1,
		arbitrary: fc.record({
			do: fc.constant("patch" as const),
			index: fc.nat(20),
			priority: fc.constantFrom<Priority[]>(0, 1, 2, 3),
		}),
	},
	{ weight: 1, arbitrary: fc.record({ do: fc.constant("mode" as const), mode: fc.constantFrom(...modes) }) },
	{
		weight: 1,
		arbitrary: fc.record({
			do: fc.constant("share" as const),
			what: fc.constantFrom("caps" as const, "weights" as const),
			user: fc.constantFrom(...users),
			value: fc.constantFrom(null, 1, 2),
		}),
	},
)

describeWith("redis", "the engine and the policy", () => {
	let redis: TestRedis

	beforeAll(async () => {
		redis = await startTestRedis()
	})
	afterAll(() => redis[Symbol.asyncDispose]())

	test("agree on who is next and where everybody stands, whatever happens", async () => {
		await fc.assert(
			fc.asyncProperty(
				fc.constantFrom(...modes),
				fc.constantFrom(0, 0, 5),
				fc.array(operation, { maxLength: 60, size: "max" }),
				async (mode, agingMs, operations) => {
					await using engine = await openTestEngine(redis)
					await engine.queue.configure({ mode, aging_ms: String(agingMs) })
					const pair = new Pair(engine.queue, mode, agingMs)
					for (const one of operations) {
						await pair.play(one)
						await pair.compare()
					}
				},
			),
			{ numRuns: runs(60) },
		)
	})

	test("agree on a user who was held back by a cap: served at once, with no credit for the time", async () => {
		await using engine = await openTestEngine(redis)
		await engine.queue.configure({ mode: "round_robin" })
		const pair = new Pair(engine.queue, "round_robin", 0)
		const submits = [..."aaaabbbbbbbbcccccc"].map((user) => ({ do: "submit", user, priority: 2 }) as const)
		const claims = Array.from({ length: 9 }, () => ({ do: "claim" }) as const)
		const cap = (value: null | 1) => ({ do: "share", what: "caps", user: "a", value }) as const
		for (const one of [...submits, cap(1), ...claims, cap(null), ...claims]) {
			await pair.play(one)
			await pair.compare()
		}
	})
})

type Operation = typeof operation extends fc.Arbitrary<infer T> ? T : never

/** The engine and the policy side by side. */
class Pair {
	readonly #queue: Queue
	#mode: Mode
	#policy: Policy
	#sequence = 0
	#running = new Map<string, { token: string; job: Policy["waiting"][number]; worker: number }>()
	#caps = new Map<string, number>()
	#workers = 0

	constructor(queue: Queue, mode: Mode, agingMs: number) {
		this.#queue = queue
		this.#mode = mode
		this.#policy = { ...emptyQueue, agingMs }
	}

	async play(one: Operation): Promise<void> {
		const waiting = this.#policy.waiting
		if (one.do === "submit") {
			const id = await submitted(this.#queue, one.user, { priority: one.priority })
			const found = await this.#queue.find(id)
			this.#sequence += 1
			const createdMs = found?.record.createdMs ?? 0
			const job = { id, user: one.user, level: one.priority, seq: this.#sequence, createdMs }
			this.#policy = arrive(this.#policy, job)
		} else if (one.do === "claim") {
			this.#workers += 1
			const claimed = await this.#queue.claim(`w${this.#workers}`, "", 60_000, false)
			const next = take(this.#policy, this.#mode, (user) => this.#mayRun(user))
			expect(claimed?.id).toBe(next?.job.id)
			if (claimed === undefined || next === undefined) return
			this.#policy = next.queue
			this.#running.set(claimed.id, { token: claimed.token, job: next.job, worker: this.#workers })
		} else if (one.do === "end" || one.do === "giveBack") {
			const [id, held] = [...this.#running][one.index % Math.max(1, this.#running.size)] ?? []
			if (id === undefined || held === undefined) return
			this.#running.delete(id)
			if (one.do === "giveBack") {
				expect(await this.#queue.giveBack(id, held.token)).toBe("released")
				this.#policy = arrive(this.#policy, held.job)
			} else {
				const end = { id, token: held.token, principal: "", error: "", retryable: false }
				expect(await this.#queue.settle({ ...end, status: "completed" })).toEqual({ state: "done" })
			}
		} else if (one.do === "cancel" || one.do === "patch") {
			const job = waiting[one.index % Math.max(1, waiting.length)]
			if (job === undefined) return
			const answer =
				one.do === "cancel"
					? await this.#queue.cancel(job.id)
					: await this.#queue.reprioritise(job.id, one.priority, one.priority)
			expect(answer).toEqual({ state: "done" })
			this.#policy =
				one.do === "cancel" ? depart(this.#policy, job.id) : reprioritise(this.#policy, job.id, one.priority)
		} else if (one.do === "mode") {
			this.#mode = one.mode
			await this.#queue.configure({ mode: one.mode })
		} else {
			await this.#queue.setShare(one.what, one.user, one.value)
			const weights = new Map(this.#policy.ring.weights)
			const changed = one.what === "caps" ? this.#caps : weights
			if (one.value === null) changed.delete(one.user)
			else changed.set(one.user, one.value)
			this.#policy = { ...this.#policy, ring: { ...this.#policy.ring, weights } }
		}
	}

	async compare(): Promise<void> {
		const listed = await this.#queue.list("", "pending", 1000)
		const theirs = listed.map(({ record, position }) => [record.id, position]).sort(byId)
		const ours = order(this.#policy, this.#mode).map((id, position) => [id, position])
		expect(theirs).toEqual(ours.sort(byId))
		const status = await this.#queue.status(60_000)
		expect([status.waiting, status.running.length]).toEqual([ours.length, this.#running.size])
	}

	#mayRun(user: string): boolean {
		const cap = this.#caps.get(user)
		const running = [...this.#running.values()].filter(({ job }) => job.user === user).length
		return cap === undefined || running < cap
	}
}

const byId = ([a]: readonly unknown[], [b]: readonly unknown[]) => (String(a) < String(b) ? -1 : 1)
