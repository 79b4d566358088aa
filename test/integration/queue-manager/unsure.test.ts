// Answers that are lost on their way, between Redis, the queue manager and those who ask it: nobody is told one thing
// while another happens, and no job suffers for it.
import { Agent, request } from "node:http"
import { connect } from "node:net"
import { afterAll, beforeAll, expect, test } from "vitest"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import { type Ask, clientOf, startQueueManager } from "../../support/queue-manager.ts"
import { openTestEngine, submitted } from "../../support/queue-manager-engine.ts"
import { startTestRedis, type TestRedis } from "../../support/redis.ts"
import { standBetween } from "../../support/redis-between.ts"

const job = (over: object = {}) => ({ user_id: "ann", workflow: { a: 1 }, ...over })
const counters = async (ask: Ask) => {
	const { text } = await ask("GET", "/metrics")
	const of = (name: string) => Number(new RegExp(`^comfyume_queue_${name} (\\d+)$`, "m").exec(text)?.[1] ?? 0)
	return {
		lost: of("leases_lost_total"),
		dead: of("dead_letters_total"),
		unheard: of("claims_unheard_total"),
		created: of("jobs_created_total"),
	}
}
const claimedOver = (agent: Agent, url: string, worker: string) =>
	new Promise<string | undefined>((resolve, reject) => {
		request(`${url}/workers/next-job?worker_id=${worker}`, { agent }, (answer) => {
			let text = ""
			answer.on("data", (chunk) => {
				text += String(chunk)
			})
			answer.on("end", () => resolve((JSON.parse(text) as { job: { id: string } | null }).job?.id))
		})
			.on("error", reject)
			.end()
	})
const harmless = { lost: 0, dead: 0 }
const deadlineMs = 30_000

describeWith("redis", "a claim whose answer is lost", () => {
	let redis: TestRedis

	beforeAll(async () => {
		redis = await startTestRedis()
	})
	afterAll(() => redis[Symbol.asyncDispose]())

	test("is made again three times without a word against the job; what then still isn't heard of becomes a dead letter", async () => {
		await using engine = await openTestEngine(redis)
		const { queue } = engine
		const id = await submitted(queue, "ann")
		const attempts: (number | undefined)[] = []
		const lost = async () => (await queue.status(0)).totals.get("lost") ?? 0
		for (let time = 0; time < 4; time++) {
			const claimed = await queue.claim("python", "", 60_000, false)
			expect(claimed?.id).toBe(id)
			attempts.push(claimed?.attempt)
		}
		expect([attempts, await lost()]).toEqual([[1, 2, 3, 4], 0])
		expect((await queue.claim("python", "", 60_000, false))?.id).toBe(id)
		expect(await lost()).toBe(1)
		expect(await queue.claim("python", "", 60_000, false)).toBeUndefined()
		expect((await queue.dead(10)).map(({ record }) => record.id)).toEqual([id])
	})

	test("is told from one that its worker spoke of: that one counts as lost at once", async () => {
		await using engine = await openTestEngine(redis)
		const { queue } = engine
		const id = await submitted(queue, "ann")
		for (const status of ["running", "failed"]) {
			const claimed = await queue.claim("ours", "", 60_000, true)
			if (status === "running") expect(claimed?.id).toBe(id)
			const beat = { worker: "ours", id, token: claimed?.token ?? "", leaseMs: 60_000, timeoutMs: 3_600_000 }
			expect(await queue.heartbeat({ ...beat, about: "", progress: "" })).toBe("held")
			if (status === "failed") expect(await queue.claim("ours", "", 60_000, true)).toBeUndefined()
			expect((await queue.find(id))?.record.status).toBe(status)
		}
	})

	test("is told from one that its worker has read: that shows when it asks again over the same connection", async () => {
		await using manager = await startQueueManager({ REDIS_HOST: redis.socket })
		const ask = clientOf(manager.url)
		for (const [worker, connection, lost] of [
			["apart", "close", 0],
			["same", "keep-alive", 1],
		] as const) {
			const { id } = (await ask("POST", "/jobs", job())).body
			const agent = new Agent({ keepAlive: connection === "keep-alive", maxSockets: 1 })
			const next = () => claimedOver(agent, manager.url, worker)
			expect([await next(), await next()]).toEqual([id, id])
			expect((await counters(ask)).lost).toBe(lost)
			await ask("DELETE", `/jobs/${id}`)
			agent.destroy()
		}
	})

	test("gives the job back when the worker goes while it is being sent", async () => {
		await using own = await startTestRedis()
		await using manager = await startQueueManager({ REDIS_HOST: own.socket })
		const ask = clientOf(manager.url)
		const { id } = (await ask("POST", "/jobs", job({ workflow: { x: "y".repeat(9_000_000) } }))).body
		const { hostname, port } = new URL(manager.url)
		const worker = connect(Number(port), hostname)
		await new Promise<void>((resolve) => {
			worker.once("data", () => {
				worker.destroy()
				resolve()
			})
			worker.write("GET /workers/next-job?worker_id=w HTTP/1.1\r\nhost: x\r\n\r\n")
		})
		await poll(async () => (await ask("GET", `/jobs/${id}`)).body.status === "pending", {
			what: "the job waits again",
			deadlineMs,
		})
		expect(await counters(ask)).toMatchObject(harmless)
		expect((await ask("GET", "/workers/next-job?worker_id=other")).body.job.id).toBe(id)
	})

	test.each(["while Redis hangs", "on its way from Redis"])(
		"%s leaves the job where it was",
		async (where) => {
			await using own = await startTestRedis()
			await using between = await standBetween(own.socket)
			await using manager = await startQueueManager({ REDIS_HOST: between.socket })
			const ask = clientOf(manager.url)
			// Redis knows the script by then: what is lost is the claim's own answer.
			expect((await ask("GET", "/workers/next-job?worker_id=w")).body.job).toBeNull()
			const { id } = (await ask("POST", "/jobs", job())).body
			if (where === "while Redis hangs") own.freeze()
			else between.holdAnswers()
			expect((await ask("GET", "/workers/next-job?worker_id=w")).status).toBe(503)
			if (where === "while Redis hangs") own.thaw()
			else between.cut()
			await poll(async () => (await ask("GET", `/jobs/${id}`)).body?.status === "pending", {
				what: "the job waits",
				deadlineMs,
			})
			expect((await ask("GET", "/workers/next-job?worker_id=other")).body.job.id).toBe(id)
			expect(await counters(ask)).toMatchObject({ ...harmless, unheard: 0 })
		},
	)
})

describeWith("redis", "a submit that was answered with 503", () => {
	test.each([
		["while Redis hangs", "hang"],
		["when the answer never comes, and the connection stands", "hold"],
		["when the answer is lost with its connection", "cut"],
	])("leaves no job %s", async (_, how) => {
		await using redis = await startTestRedis()
		await using between = await standBetween(redis.socket)
		await using manager = await startQueueManager({ REDIS_HOST: between.socket })
		const ask = clientOf(manager.url)
		const kept = (await ask("POST", "/jobs", job())).body.id
		const key = { "idempotency-key": "once" }
		if (how === "hang") redis.freeze()
		else between.holdAnswers()
		const answers = await Promise.all([
			ask("POST", "/jobs", job(), key),
			ask("POST", "/jobs", job({ metadata: { source: "serverless_proxy" } })),
		])
		expect(answers.map(({ status }) => status)).toEqual([503, 503])
		if (how === "hang") redis.thaw()
		if (how === "cut") between.cut()
		// Seen past the queue manager, which may still hear nothing.
		await using seen = await openTestEngine(redis, manager.workshop)
		await poll(async () => (await seen.queue.status(0)).waiting === 1, { what: "one job waits", deadlineMs })
		expect((await seen.queue.list("", "", 10)).map(({ record }) => record.id)).toEqual([kept])
		if (how === "hold") between.cut()
		const again = await poll(
			async () => {
				const answer = await ask("POST", "/jobs", job(), key)
				return answer.status === 201 && answer
			},
			{ what: "jobs are taken again", deadlineMs },
		)
		expect(again.body.id).not.toBe(kept)
		expect((await ask("POST", "/jobs", job(), key)).body.id).toBe(again.body.id)
		expect((await ask("GET", "/queue/status")).body).toMatchObject({ pending_jobs: 2, failed_jobs: 0 })
		expect((await counters(ask)).created).toBe(2)
	})

	test("leaves none when nobody is left to undo it and Redis comes to it too late", async () => {
		await using redis = await startTestRedis()
		await using between = await standBetween(redis.socket)
		await using manager = await startQueueManager({ REDIS_HOST: between.socket })
		const ask = clientOf(manager.url)
		await ask("POST", "/jobs", job())
		redis.freeze()
		const asked = between.asked()
		const startedAt = performance.now()
		const answer = ask("POST", "/jobs", job({ metadata: { note: "z".repeat(10_000) } }))
		await poll(() => between.asked() > asked + 10_000, { what: "it is on its way", deadlineMs })
		between.cut()
		expect((await answer).status).toBe(503)
		await manager.kill()
		await poll(() => performance.now() - startedAt > 5_000, { what: "the last call is over", deadlineMs })
		redis.thaw()
		await using seen = await openTestEngine(redis, manager.workshop)
		// What the dead one had sent was there first.
		await seen.queue.status(0)
		expect((await seen.queue.status(0)).totals.get("created")).toBe(1)
	})
})
