// Random schedules of everything that goes wrong: workers die, answers get lost, connections break, Redis is killed and
// comes back from its append-only file, two queue managers' engines work side by side. Afterwards every job has ended exactly
// once. `chaos-processes.test.ts` does it to real processes.
import fc from "fast-check"
import { expect, test } from "vitest"
import { modes, type Priority } from "../../../src/queue-manager/job.ts"
import type { Queue } from "../../../src/queue-manager/queue/queue.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import { openTestEngine, submission } from "../../support/queue-manager-engine.ts"
import { drain, expectInvariants } from "../../support/queue-manager-invariants.ts"
import { startTestRedis, type TestRedis } from "../../support/redis.ts"
import { runs } from "../../support/runs.ts"

const users = ["ann", "bob", "cem", "dan"]
const act = fc.oneof(
	{
		weight: 8,
		arbitrary: fc.record({ do: fc.constant("submit" as const), user: fc.constantFrom(...users) }),
	},
	{ weight: 8, arbitrary: fc.record({ do: fc.constant("claim" as const), worker: fc.nat(5) }) },
	{ weight: 5, arbitrary: fc.record({ do: fc.constant("complete" as const), index: fc.nat(20) }) },
	{ weight: 2, arbitrary: fc.record({ do: fc.constant("fail" as const), index: fc.nat(20) }) },
	{ weight: 2, arbitrary: fc.record({ do: fc.constant("cancel" as const), index: fc.nat(20) }) },
	{ weight: 2, arbitrary: fc.record({ do: fc.constant("move" as const), index: fc.nat(20), to: fc.nat(3) }) },
	{ weight: 2, arbitrary: fc.record({ do: fc.constant("heartbeat" as const), index: fc.nat(20) }) },
	{ weight: 3, arbitrary: fc.record({ do: fc.constant("reap" as const) }) },
	{ weight: 1, arbitrary: fc.record({ do: fc.constant("mode" as const), mode: fc.constantFrom(...modes) }) },
	{ weight: 1, arbitrary: fc.record({ do: fc.constant("break" as const), which: fc.nat(1) }) },
	{ weight: 1, arbitrary: fc.record({ do: fc.constant("restart" as const) }) },
)
// What stands together happens at once, by either of two queue managers.
const schedule = fc.array(fc.array(fc.tuple(act, fc.nat(1)), { minLength: 1, maxLength: 8 }), {
	minLength: 3,
	maxLength: 15,
	size: "max",
})
type Act = typeof act extends fc.Arbitrary<infer T> ? T : never

describeWith("redis", "chaos", () => {
	test(
		"every accepted job ends exactly once, whatever breaks",
		async () => {
			await fc.assert(
				fc.asyncProperty(schedule, async (steps) => {
					// Its own each time: the append-only file of all before would take longer and longer to load.
					await using redis = await startTestRedis({ appendOnly: true })
					await using world = await openWorld(redis)
					for (const step of steps) await Promise.all(step.map(([one, by]) => world.play(one, by)))
					await world.settle()
				}),
				{ numRuns: runs(30), endOnFailure: true },
			)
		},
		120_000 * runs(1),
	)
})

/** Two queue managers' engines on one workshop, and what their clients remember. */
async function openWorld(redis: TestRedis) {
	const workshop = crypto.randomUUID()
	const engines = [await openTestEngine(redis, workshop), await openTestEngine(redis, workshop)]
	const accepted = new Set<string>()
	const held: { id: string; token: string; worker: string }[] = []
	const recorded = new Map<string, string>()
	let restarting: Promise<void> | undefined
	const wrong: string[] = []
	const holder = new Map<string, { token: string; attempt: number }>()
	let results = 0

	async function play(one: Act, by: number): Promise<void> {
		const queue = engines[by]?.queue as Queue
		// Whatever is under way when a connection breaks may or may not have happened: nobody is told.
		await move(one, queue).catch(() => undefined)
	}

	async function move(one: Act, queue: Queue): Promise<void> {
		const ids = [...accepted]
		const at = (index: number) => ids[index % Math.max(1, ids.length)] ?? "none"
		if (one.do === "submit") {
			const answer = await queue.submit(submission(one.user, { priority: (ids.length % 4) as Priority }))
			if ("found" in answer) accepted.add(answer.found.record.id)
		} else if (one.do === "claim") {
			// Half of them promise heartbeats and rarely send any.
			const claimed = await queue.claim(`w${one.worker}`, "", 30, one.worker % 2 === 0)
			if (claimed === undefined) return
			held.push({ id: claimed.id, token: claimed.token, worker: `w${one.worker}` })
			// Answers of two connections may come in another order than the claims were made.
			const known = holder.get(claimed.id)?.attempt ?? 0
			if (claimed.attempt > known) holder.set(claimed.id, claimed)
		} else if (one.do === "complete" || one.do === "fail") {
			const job = held[one.index % Math.max(1, held.length)]
			if (job === undefined) return
			results += 1
			const result = `{"n":${results}}`
			const end = { id: job.id, token: job.token, principal: "", result: Buffer.from(result) }
			const isFailure = one.do === "fail"
			const answer = await queue.settle({
				...end,
				status: isFailure ? "failed" : "completed",
				error: isFailure ? "broken" : "",
				retryable: isFailure && one.index % 2 === 0,
			})
			if (answer.state !== "done") return
			if (recorded.has(job.id)) wrong.push(`${job.id} was ended twice`)
			if (holder.get(job.id)?.token !== job.token)
				wrong.push(`${job.id} was ended by a worker that had lost it`)
			recorded.set(job.id, isFailure && one.index % 2 === 0 ? "" : result)
		} else if (one.do === "heartbeat") {
			const job = held[one.index % Math.max(1, held.length)]
			if (job === undefined) return
			const beat = { leaseMs: 30, timeoutMs: 3_600_000, about: "", progress: "" }
			await queue.heartbeat({ ...beat, worker: job.worker, id: job.id, token: job.token })
		} else if (one.do === "cancel") await queue.cancel(at(one.index))
		else if (one.do === "move") await queue.reprioritise(at(one.index), one.to as Priority, one.to)
		else if (one.do === "mode") await queue.configure({ mode: one.mode })
		else if (one.do === "reap") await queue.reap(3_600_000)
		else if (one.do === "break") {
			// As kill -9 does it: what was sent may arrive, no answer is read.
			const broken = engines[one.which]
			engines[one.which] = await openTestEngine(redis, workshop)
			await broken?.queue.close()
		} else {
			restarting ??= (async () => {
				await redis.kill()
				await redis.start()
			})().finally(() => {
				restarting = undefined
			})
			await restarting
		}
	}

	return {
		play,
		async settle() {
			const queue = engines[0]?.queue as Queue
			await poll(() => queue.isReady(), { what: "the engine is back", deadlineMs: 5000 })
			await drain(queue)
			expect(wrong).toEqual([])
			await expectInvariants(queue, accepted)
			for (const [id, result] of recorded) {
				if (result !== "") expect((await queue.find(id))?.result, `the result of ${id}`).toBe(result)
			}
		},
		async [Symbol.asyncDispose]() {
			for (const engine of engines) await engine.queue.close()
		},
	}
}
