// The engine's guarantees, each by itself, on a real Redis.
import { afterAll, beforeAll, expect, test } from "vitest"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import { clientOf, openEvents, startQueueManager } from "../../support/queue-manager.ts"
import { completed, openTestEngine, submission, submitted } from "../../support/queue-manager-engine.ts"
import { startTestRedis, type TestRedis } from "../../support/redis.ts"
import { run } from "../../support/run.ts"

const timeoutMs = 3_600_000

describeWith("redis", "the engine", () => {
	let redis: TestRedis

	beforeAll(async () => {
		redis = await startTestRedis()
	})
	afterAll(() => redis[Symbol.asyncDispose]())

	const cli = async (...args: string[]) =>
		(await run("redis-cli", ["-s", redis.socket, ...args])).stdout.trim()

	test("takes a dead worker's job back by Redis' clock, and gives it up after two dead workers", async () => {
		await using engine = await openTestEngine(redis)
		const { queue } = engine
		const id = await submitted(queue, "ann")
		for (const [worker, status] of [
			["w1", "pending"],
			["w2", "failed"],
		] as const) {
			expect((await queue.claim(worker, "", 1, true))?.id).toBe(id)
			await poll(async () => (await queue.reap(timeoutMs)) > 0, {
				what: "the lease runs out",
				deadlineMs: 2000,
			})
			expect((await queue.find(id))?.record.status).toBe(status)
		}
		const [letter] = await queue.dead(10)
		expect(letter?.record.dead).toContain("w2")
		expect((await queue.retry(id)).state).toBe("done")
		expect((await queue.claim("w3", "", 1000, true))?.attempt).toBe(3)
	})

	test("ends a job that runs too long under a living worker, without another attempt", async () => {
		await using engine = await openTestEngine(redis)
		const { queue } = engine
		const id = await submitted(queue, "ann")
		const claimed = await queue.claim("w1", "", 60_000, true)
		const beat = { worker: "w1", id, token: claimed?.token ?? "", leaseMs: 60_000, about: "", progress: "" }
		expect(await queue.heartbeat({ ...beat, timeoutMs: 0 })).toBe("held")
		expect(await queue.reap(0)).toBe(1)
		const found = await queue.find(id)
		expect([found?.record.status, found?.record.error]).toEqual(["failed", "it ran longer than 0 s"])
	})

	test("takes no job from a worker when another one polls or heartbeats under its name", async () => {
		await using engine = await openTestEngine(redis)
		const { queue } = engine
		const id = await submitted(queue, "ann")
		await queue.claim("gpu-1", "worker:gpu-1", 60_000, false)
		expect(await queue.claim("gpu-1", "worker:gpu-2", 60_000, false)).toBeUndefined()
		expect((await queue.find(id))?.record.status).toBe("running")
		const beat = { worker: "gpu-1", id, token: "", leaseMs: 60_000, timeoutMs, about: "", progress: "" }
		expect(await queue.heartbeat({ ...beat, principal: "worker:gpu-2" })).toBe("lost")
		expect(await queue.heartbeat({ ...beat, principal: "worker:gpu-1" })).toBe("held")
		const again = await queue.claim("gpu-1", "worker:gpu-1", 60_000, false)
		expect([again?.id, again?.attempt]).toEqual([id, 2])
	})

	test("lets a late result of a lost lease change nothing", async () => {
		await using engine = await openTestEngine(redis)
		const { queue } = engine
		const id = await submitted(queue, "ann")
		const first = await queue.claim("w1", "", 1, true)
		await poll(async () => (await queue.reap(timeoutMs)) > 0, {
			what: "the lease runs out",
			deadlineMs: 2000,
		})
		expect(await completed(queue, id, first?.token ?? "")).toEqual({ state: "waiting" })
		const second = await queue.claim("w2", "", 60_000, true)
		expect(await completed(queue, id, first?.token ?? "")).toEqual({ state: "lost" })
		expect((await queue.find(id))?.record.status).toBe("running")
		expect(await completed(queue, id, second?.token ?? "")).toEqual({ state: "done" })
		// Its answer may have been lost: who says the same once more is told the same.
		expect(await completed(queue, id, second?.token ?? "")).toEqual({ state: "repeated" })
		expect(await completed(queue, id, first?.token ?? "")).toEqual({ state: "ended", status: "completed" })
	})

	test("keeps a retried job's place, and a returned one counts as nobody's fault", async () => {
		await using engine = await openTestEngine(redis)
		const { queue } = engine
		const first = await submitted(queue, "ann")
		await submitted(queue, "bob")
		for (let time = 0; time < 5; time++) {
			const claimed = await queue.claim("w1", "", 60_000, true)
			expect([claimed?.id, claimed?.attempt]).toEqual([first, time + 1])
			expect(await queue.giveBack(first, claimed?.token ?? "")).toBe("released")
		}
		expect(await queue.dead(10)).toEqual([])
	})

	test("leaves only garbage that expires when it is cut off between payload and record", async () => {
		await using engine = await openTestEngine(redis, "cut-off")
		const key = "cq:{cut-off}:payload:lonely"
		await cli("HSET", key, "workflow", "{}")
		await cli("PEXPIRE", key, "120000")
		expect((await engine.queue.status(0)).waiting).toBe(0)
		expect(Number(await cli("PTTL", key))).toBeGreaterThan(0)
		const id = await submitted(engine.queue, "ann")
		expect(await cli("PTTL", `cq:{cut-off}:payload:${id}`)).toBe("-1")
		const answer = await engine.queue.submit(submission("ann", { mostWaiting: 1 }))
		expect(answer.state).toBe("full")
		expect((await cli("KEYS", "cq:{cut-off}:payload:*")).split("\n")).toHaveLength(2)
	})

	test("says so when a workflow was deleted from under it, and hands out the next one", async () => {
		await using engine = await openTestEngine(redis, "emptied")
		const { queue } = engine
		const lost = await submitted(queue, "ann")
		const next = await submitted(queue, "ann")
		await cli("DEL", `cq:{emptied}:payload:${lost}`)
		expect((await queue.claim("w1", "", 60_000, false))?.id).toBe(next)
		expect((await queue.find(lost))?.record).toMatchObject({ status: "failed" })
	})

	test("keeps payloads for a day, and forgets records without a trace when their time has come", async () => {
		await using engine = await openTestEngine(redis, "kept")
		const { queue } = engine
		const id = await submitted(queue, "ann", { kind: "kept" })
		const claimed = await queue.claim("w1", "", 60_000, false)
		await completed(queue, id, claimed?.token ?? "")
		const ttl = Number(await cli("PTTL", `cq:{kept}:payload:${id}`))
		expect(ttl).toBeGreaterThan(86_000_000)
		expect(ttl).toBeLessThanOrEqual(86_400_000)
		const kept = { records: timeoutMs, dead: timeoutMs, workers: timeoutMs }
		expect(await queue.retain(kept)).toBe(0)
		expect(await queue.retain({ ...kept, records: -1 })).toBe(1)
		expect(await queue.find(id)).toBeUndefined()
		expect(await queue.list("", "", 10)).toEqual([])
		expect((await cli("KEYS", `*${id}*`)).trim()).toBe("")
	})

	test("bounds its event stream", async () => {
		await using engine = await openTestEngine(redis, "bounded")
		await engine.queue.configure({ events_kept: "100" })
		for (let n = 0; n < 500; n++) await submitted(engine.queue, "ann")
		expect(Number(await cli("XLEN", "cq:{bounded}:events"))).toBeLessThan(320)
	})

	test("follows events across a broken connection without a gap", async () => {
		await using engine = await openTestEngine(redis)
		const seen: string[] = []
		const following = engine.queue.follow((events) => {
			for (const { fields } of events) seen.push(fields.get("id") ?? "")
		})
		await following.started
		const ids = []
		for (let n = 0; n < 30; n++) {
			if (n % 10 === 5) await cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
			await poll(() => engine.queue.isReady(), { what: "the engine is back", deadlineMs: 5000 })
			ids.push(await submitted(engine.queue, "ann"))
		}
		await poll(() => seen.length >= ids.length, { what: "all events", deadlineMs: 5000 })
		expect(seen).toEqual(ids)
		await following.close()
	})

	test("takes the environment's mode as a default, and an instructor's choice before it", async () => {
		await using engine = await openTestEngine(redis)
		const { queue } = engine
		const mode = async (settings: Record<string, string>) => (await queue.configure(settings)).get("mode")
		expect(await mode({ "default:mode": "fifo" })).toBe("fifo")
		expect(await mode({ mode: "priority" })).toBe("priority")
		// A restart changes nothing; a changed environment does.
		expect(await mode({ "default:mode": "fifo" })).toBe("priority")
		expect(await mode({ "default:mode": "round_robin" })).toBe("round_robin")
	})
})

describeWith("redis", "the queue manager while Redis", () => {
	const job = { user_id: "ann", workflow: { a: 1 } }

	test("is away says so, invents nothing, and goes on when it is back", async () => {
		await using redis = await startTestRedis({ appendOnly: true })
		await using manager = await startQueueManager({ REDIS_HOST: redis.socket })
		const ask = clientOf(manager.url)
		const { id } = (await ask("POST", "/jobs", job)).body
		await redis.kill()
		const submit = await poll(
			async () => {
				const answer = await ask("POST", "/jobs", job)
				return answer.status !== 201 && answer
			},
			{ what: "the outage is noticed", deadlineMs: 5000 },
		)
		expect([submit.status, typeof submit.body.detail]).toEqual([503, "string"])
		expect(Number(submit.headers.get("retry-after"))).toBeGreaterThan(0)
		const status = await ask("GET", "/queue/status")
		expect([status.status, typeof status.body.detail]).toEqual([500, "string"])
		const health = await ask("GET", "/health")
		expect(health.status).toBe(200)
		expect(health.body).toMatchObject({ status: "unhealthy", redis_connected: false })
		for (const [method, path] of [
			["GET", "/jobs"],
			["GET", `/jobs/${id}`],
			["DELETE", `/jobs/${id}`],
			["GET", "/workers/next-job?worker_id=w"],
		] as const) {
			expect([path, (await ask(method, path)).status]).toEqual([path, 503])
		}
		expect((await ask("GET", "/metrics")).text).toMatch(/^comfyume_queue_redis_up 0$/m)
		await redis.start()
		await poll(async () => (await ask("GET", `/jobs/${id}`)).status === 200, {
			what: "it goes on",
			deadlineMs: 10_000,
		})
		expect((await ask("GET", "/workers/next-job?worker_id=w")).body.job.id).toBe(id)
	})

	test("lost its data tells who comes back so, and goes on with what happens", async () => {
		await using redis = await startTestRedis()
		await using manager = await startQueueManager({ REDIS_HOST: redis.socket })
		const ask = clientOf(manager.url)
		const live = await openEvents(manager.url, "/ws?after=")
		const { id } = (await ask("POST", "/jobs", job)).body
		await live.next("the first event", ({ data }) => data.id === id)
		await run("redis-cli", ["-s", redis.socket, "FLUSHALL"])
		const clients = [await openEvents(manager.url, "/ws?after=1")]
		clients.push(await openEvents(manager.url, "/ws?after=9999999999999-0"))
		for (const client of clients) await client.next("word of the gap", ({ type }) => type === "resync")
		const reads = async () =>
			Number(
				/cmdstat_xrange:calls=(\d+)/.exec(
					(await run("redis-cli", ["-s", redis.socket, "INFO", "commandstats"])).stdout,
				)?.[1],
			)
		expect(await reads()).toBeLessThan(20)
		const next = (await ask("POST", "/jobs", job)).body.id
		for (const client of [...clients, live]) {
			await client.next("the live event", ({ data }) => data.id === next)
			await client.close()
		}
		expect(await reads()).toBeLessThan(20)
	})

	test("hangs is told within seconds, by health at once", async () => {
		await using redis = await startTestRedis()
		await using manager = await startQueueManager({ REDIS_HOST: redis.socket })
		const ask = clientOf(manager.url)
		redis.freeze()
		try {
			const startedAt = performance.now()
			expect((await ask("GET", "/health")).body.status).toBe("unhealthy")
			expect(performance.now() - startedAt).toBeLessThan(2500)
			expect((await ask("POST", "/jobs", job)).status).toBe(503)
			expect(performance.now() - startedAt).toBeLessThan(10_000)
		} finally {
			redis.thaw()
		}
	})

	test("isn't there at the start, it starts all the same and connects when it can", async () => {
		await using redis = await startTestRedis()
		await redis.kill()
		await using manager = await startQueueManager({ REDIS_HOST: redis.socket }, { waitForRedis: false })
		const ask = clientOf(manager.url)
		expect((await ask("GET", "/health")).body.status).toBe("unhealthy")
		await redis.start()
		await poll(async () => (await ask("POST", "/jobs", job)).status === 201, {
			what: "it takes jobs",
			deadlineMs: 10_000,
		})
	})
})

describeWith("redis", "SIGTERM", () => {
	test("answers what is held with the job as it is, and ends within 10 s", async () => {
		await using redis = await startTestRedis()
		await using manager = await startQueueManager({ REDIS_HOST: redis.socket })
		const ask = clientOf(manager.url)
		const held = ask("POST", "/jobs", {
			user_id: "ann",
			workflow: { a: 1 },
			metadata: { source: "serverless_proxy" },
		})
		await poll(async () => (await ask("GET", "/workers/next-job?worker_id=w")).body.job !== null, {
			what: "the held job is claimed",
			deadlineMs: 5000,
		})
		const ended = manager.terminate()
		const answer = await held
		expect([answer.status, answer.body.status]).toEqual([201, "running"])
		const { exitCode, tookMs } = await ended
		expect(exitCode).toBe(0)
		expect(tookMs).toBeLessThan(10_000)
	})
})
