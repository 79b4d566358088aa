// The clients that exist and can't be changed, each behaving as it does, and the order they are served in.
import { expect, test } from "vitest"
import { poll } from "../../support/poll.ts"
import { clientOf, openEvents } from "../../support/queue-manager.ts"
import { claimAll, claimJob, describeContract, submit } from "../../support/queue-manager-subject.ts"

describeContract("the clients", (subject) => {
	const ask: ReturnType<typeof subject>["ask"] = (...args) => subject().ask(...args)

	test("the Python worker polls, never heartbeats, and finishes a job as it is", async () => {
		await claimAll(ask)
		const good = await submit(ask)
		const bad = await submit(ask)
		// It has a slot for one job, and sends bare results and errors in the query.
		const done: string[] = []
		for (;;) {
			const { job } = (await ask("GET", "/workers/next-job?worker_id=python")).body
			if (job === null) break
			done.push(job.id)
			if (job.id === good) {
				const result = { prompt_id: "p", status: "completed", outputs: {}, execution_time: 2, timestamp: "t" }
				expect((await ask("POST", `/workers/complete-job?job_id=${job.id}`, result)).status).toBe(200)
			} else {
				const error = encodeURIComponent("CUDA out of memory")
				expect((await ask("POST", `/workers/fail-job?job_id=${job.id}&error=${error}`)).status).toBe(200)
			}
		}
		expect(done).toEqual([good, bad])
		expect((await ask("GET", `/jobs/${good}`)).body.status).toBe("completed")
		expect((await ask("GET", `/jobs/${bad}`)).body).toMatchObject({
			status: "failed",
			error: "CUDA out of memory",
		})
	})

	test("a worker that polls for another has given up its job: it is handed out again, and given up in the end", async () => {
		await claimAll(ask)
		const id = await submit(ask)
		const poll = async () => (await ask("GET", "/workers/next-job?worker_id=forgetful")).body.job?.id ?? null
		expect(await poll()).toBe(id)
		expect(await poll()).toBe(id)
		// An answer may get lost on its way to a worker: what looks like that is not held against the job at once.
		let times = 2
		while ((await poll()) !== null) times += 1
		expect(times).toBeLessThanOrEqual(5)
		const { body } = await ask("GET", `/jobs/${id}`)
		expect(body.status).toBe("failed")
		expect(body.error).toContain("forgetful")
	})

	test("the frontend's extension submits a batch in its order, with its metadata", async () => {
		await claimAll(ask)
		const ids = []
		for (let index = 0; index < 3; index++) {
			const metadata = { batch_index: index, batch_total: 3 }
			ids.push(await submit(ask, { user_id: "user007", priority: 1, metadata }))
		}
		expect(await claimAll(ask)).toEqual(ids)
	})

	test("the blocking proxy gets its job back when it has ended, with the result it shows", async () => {
		await claimAll(ask)
		const result = {
			prompt_id: "p",
			number: 1,
			node_errors: {},
			outputs: { 9: { images: [{ filename: "a.png", subfolder: "user003", type: "output" }] } },
			execution_status: "success",
		}
		const body = {
			user_id: "user003",
			workflow: { 9: { class_type: "SaveImage" } },
			metadata: { source: "serverless_proxy" },
		}
		const answered = ask("POST", "/api/jobs", body)
		const id = await poll(async () => (await ask("GET", "/workers/next-job?worker_id=gpu")).body.job?.id, {
			what: "the held job is there",
			deadlineMs: 5000,
		})
		await ask("POST", `/workers/complete-job?job_id=${id}`, { result })
		const answer = await answered
		expect(answer.status).toBe(201)
		expect(answer.body).toMatchObject({ id, status: "completed", result })
	})

	test("the blocking proxy hears of a failure with its reason", async () => {
		await claimAll(ask)
		const metadata = { source: "serverless_proxy" }
		const answered = ask("POST", "/jobs", { user_id: "user003", workflow: { a: 1 }, metadata })
		const id = await poll(async () => (await ask("GET", "/workers/next-job?worker_id=gpu2")).body.job?.id, {
			what: "the held job is there",
			deadlineMs: 5000,
		})
		const broken = { execution_error: { node_id: "3", message: "out of memory" } }
		await ask("POST", `/workers/complete-job?job_id=${id}`, { result: broken })
		const { body } = await answered
		expect(body.status).toBe("failed")
		expect(body.result).toEqual(broken)
		expect(body.error).toContain("out of memory")
	})

	test("the monitoring script reads numbers that add up", async () => {
		await claimAll(ask)
		await submit(ask)
		const { body } = await ask("GET", "/queue/status")
		const counters = ["pending_jobs", "running_jobs", "completed_jobs", "failed_jobs", "total_workers"]
		for (const name of counters) expect(Number.isInteger(body[name])).toBe(true)
		expect(body.queue_depth).toBe(body.pending_jobs)
		expect(body.active_workers).toBeLessThanOrEqual(body.total_workers)
	})

	test("two workers that ask at once never get the same job", async () => {
		await claimAll(ask)
		for (let n = 0; n < 20; n++) await submit(ask)
		const answers = await Promise.all(
			Array.from({ length: 30 }, (_, n) => ask("GET", `/workers/next-job?worker_id=crowd-${n}`)),
		)
		const ids = answers.flatMap(({ body }) => (body.job === null ? [] : [body.job.id]))
		expect(ids).toHaveLength(20)
		expect(new Set(ids).size).toBe(20)
	})

	test("fifo is arrival whatever the priority, but the instructor goes first; positions say so", async () => {
		await claimAll(ask)
		const low = await submit(ask, { priority: 3 })
		const high = await submit(ask, { priority: 1 })
		const instructor = await submit(ask, { user_id: "teacher", priority: 0 })
		const order = [instructor, low, high]
		for (const [position, id] of order.entries()) {
			expect((await ask("GET", `/jobs/${id}`)).body.position_in_queue).toBe(position)
		}
		expect(await claimAll(ask)).toEqual(order)
	})

	test("estimates are null until three runs of a kind were seen, and then seconds", async () => {
		await claimAll(ask)
		const workflow = { 1: { class_type: `OnlyHere${Date.now()}` } }
		for (let n = 0; n < 3; n++) {
			const id = await submit(ask, { workflow })
			expect((await ask("GET", `/jobs/${id}`)).body.estimated_wait_time).toBeNull()
			await claimJob(ask, id)
			await ask("POST", `/workers/complete-job?job_id=${id}`, { status: "success" })
		}
		await submit(ask, { workflow })
		const second = await submit(ask, { workflow })
		const wait = await poll(
			async () => (await ask("GET", `/jobs/${second}`)).body.estimated_wait_time ?? undefined,
			{ what: "an estimate", deadlineMs: 5000 },
		)
		expect(wait).toBeGreaterThanOrEqual(0)
	})
})

describeContract("what goes beyond the contract", (subject) => {
	const ask: ReturnType<typeof subject>["ask"] = (...args) => subject().ask(...args)

	test("a change of the mode reorders what waits at once, and positions with it", async () => {
		await claimAll(ask)
		const jobs: Record<string, string> = {}
		for (const [name, user, priority] of [
			["a1", "ann", 3],
			["a2", "ann", 2],
			["b1", "bob", 2],
			["b2", "bob", 1],
		] as const) {
			jobs[name] = await submit(ask, { user_id: user, priority })
		}
		const orders = {
			priority: ["b2", "a2", "b1", "a1"],
			round_robin: ["a2", "b2", "a1", "b1"],
			fifo: ["a1", "a2", "b1", "b2"],
		}
		for (const [mode, order] of Object.entries(orders)) {
			expect((await ask("PUT", "/api/queue/mode", { mode })).status).toBe(200)
			expect((await ask("GET", "/queue/status")).body.mode).toBe(mode)
			for (const [position, name] of order.entries()) {
				const { body } = await ask("GET", `/jobs/${jobs[name]}`)
				expect([mode, name, body.position_in_queue]).toEqual([mode, name, position])
			}
		}
		await ask("PUT", "/queue/mode", { mode: "priority" })
		expect(await claimAll(ask)).toEqual(orders.priority.map((name) => jobs[name]))
		expect((await ask("PUT", "/queue/mode", { mode: "lifo" })).status).toBe(422)
		await ask("PUT", "/queue/mode", { mode: "fifo" })
	})

	test("round robin serves 19 users within 20 claims beside one with hundreds", async () => {
		await claimAll(ask)
		await ask("PUT", "/queue/mode", { mode: "round_robin" })
		await Promise.all(Array.from({ length: 300 }, () => submit(ask, { user_id: "many" })))
		for (let n = 0; n < 30; n++) await ask("GET", `/workers/next-job?worker_id=early-${n}`)
		for (let n = 0; n < 19; n++) await submit(ask, { user_id: `single-${n}` })
		const users = new Set<string>()
		for (let n = 0; n < 20; n++) {
			users.add((await ask("GET", `/workers/next-job?worker_id=fair-${n}`)).body.job.user_id)
		}
		expect(users.size).toBe(20)
		await ask("PUT", "/queue/mode", { mode: "fifo" })
	})

	test("a paused queue hands nothing out and still takes jobs in", async () => {
		await claimAll(ask)
		await ask("PUT", "/queue/paused", { paused: true })
		const id = await submit(ask)
		expect(await claimAll(ask)).toEqual([])
		await ask("PUT", "/queue/paused", { paused: false })
		expect(await claimAll(ask)).toEqual([id])
	})

	test("a capped user doesn't hold up others", async () => {
		await claimAll(ask)
		await ask("PUT", "/queue/caps", { user_id: "greedy", value: 1 })
		const [first, , other] = [
			await submit(ask, { user_id: "greedy" }),
			await submit(ask, { user_id: "greedy" }),
			await submit(ask, { user_id: "modest" }),
		]
		expect(await claimAll(ask)).toEqual([first, other])
		await ask("PUT", "/queue/caps", { user_id: "greedy", value: null })
		expect(await claimAll(ask)).toHaveLength(1)
	})

	test("an idempotency key gives the same job, for its user only", async () => {
		const body = { user_id: "twice", workflow: { a: 1 } }
		const headers = { "idempotency-key": "batch-1/3" }
		const first = (await ask("POST", "/jobs", body, headers)).body.id
		const again = await ask("POST", "/jobs", body, headers)
		expect([again.status, again.body.id]).toEqual([201, first])
		const other = (await ask("POST", "/jobs", { ...body, user_id: "other" }, headers)).body.id
		expect(other).not.toBe(first)
		expect((await ask("GET", "/jobs?user_id=twice")).body).toHaveLength(1)
	})

	test("our worker keeps its lease by heartbeats, and hears that its job was cancelled", async () => {
		await claimAll(ask)
		const id = await submit(ask)
		const claimed = await ask("GET", "/workers/next-job?worker_id=ours&heartbeat=true")
		const lease = { "x-comfyume-lease": claimed.headers.get("x-comfyume-lease") ?? "" }
		const beat = { worker_id: "ours", job_id: id, progress: { phase: "polling", value: 3, max: 20 } }
		expect((await ask("POST", "/workers/heartbeat", beat, lease)).body).toEqual({ state: "held" })
		expect((await ask("POST", "/workers/heartbeat", beat)).body).toEqual({ state: "lost" })
		const workers = (await ask("GET", "/workers")).body
		expect(workers.find((one: { worker_id: string }) => one.worker_id === "ours")).toMatchObject({
			active: true,
			job_id: id,
			progress: beat.progress,
		})
		await ask("DELETE", `/jobs/${id}`)
		expect((await ask("POST", "/workers/heartbeat", beat, lease)).body).toEqual({ state: "cancelled" })
		expect((await ask("POST", `/workers/complete-job?job_id=${id}`, { result: {} }, lease)).status).toBe(409)
	})

	test("a lease of another worker decides nothing", async () => {
		await claimAll(ask)
		const id = await submit(ask)
		await ask("GET", "/workers/next-job?worker_id=holder&heartbeat=true")
		const forged = { "x-comfyume-lease": "00000000-0000-4000-8000-000000000000" }
		for (const headers of [forged, {}]) {
			expect((await ask("POST", `/workers/complete-job?job_id=${id}`, { result: {} }, headers)).status).toBe(
				409,
			)
			expect((await ask("POST", `/workers/fail-job?job_id=${id}&error=x`, undefined, headers)).status).toBe(
				409,
			)
		}
		expect((await ask("GET", `/jobs/${id}`)).body.status).toBe("running")
	})

	test("a failure that may pass is tried three times, then it is a dead letter that an admin can try again", async () => {
		await claimAll(ask)
		const id = await submit(ask, { user_id: "unlucky" })
		for (let attempt = 1; attempt <= 3; attempt++) {
			const claimed = await ask("GET", "/workers/next-job?worker_id=flaky&heartbeat=true")
			expect(claimed.headers.get("x-comfyume-attempt")).toBe(String(attempt))
			const lease = { "x-comfyume-lease": claimed.headers.get("x-comfyume-lease") ?? "" }
			const failure = { error: "502 from the endpoint", retryable: true }
			await ask("POST", `/workers/fail-job?job_id=${id}`, failure, lease)
		}
		expect((await ask("GET", `/jobs/${id}`)).body.status).toBe("failed")
		const [letter] = (await ask("GET", "/dead")).body
		expect(letter).toMatchObject({ id, attempts: 3 })
		expect(letter.reason).toContain("502")
		expect((await ask("POST", `/jobs/${id}/retry`)).body).toMatchObject({ status: "pending", error: null })
		expect((await ask("POST", `/jobs/${id}/retry`)).status).toBe(400)
		expect(await claimAll(ask)).toEqual([id])
		expect((await ask("GET", "/dead")).body).toEqual([])
	})

	test("the banner is shown and told to all, and pages' reports are kept and limited", async () => {
		const banner = { text: "Back at two", level: "warning" }
		const events = await openEvents(subject().url, "/ws?user_id=ann")
		expect((await ask("PUT", "/api/banner", banner)).status).toBe(200)
		expect((await ask("GET", "/api/banner")).body).toEqual(banner)
		expect(await events.next("the banner", ({ type }) => type === "banner")).toMatchObject({ data: banner })
		await events.close()
		for (const message of ["first", "second"])
			await ask("POST", "/api/client-log", { level: "error", message, context: { count: 1 } })
		const reports = (await ask("GET", "/api/client-log?limit=2")).body
		expect(reports.map(({ message }: { message: string }) => message)).toEqual(["second", "first"])
		expect(reports[0]).toMatchObject({ level: "error", context: { count: 1 } })
		const context = Object.fromEntries(Array.from({ length: 11 }, (_, n) => [`fact-${n}`, n]))
		expect((await ask("POST", "/api/client-log", { message: "m", context })).status).toBe(422)
		const statuses = []
		for (let n = 0; n < 40; n++) {
			statuses.push((await ask("POST", "/api/client-log", { message: "TypeError" })).status)
		}
		expect(statuses[0]).toBe(204)
		expect(statuses.at(-1)).toBe(429)
	})

	test("metrics are Prometheus' text without users, and the API describes itself", async () => {
		await submit(ask, { user_id: "secretive" })
		const { text } = await clientOf(subject().url)("GET", "/metrics")
		expect(text).toMatch(/^comfyume_queue_redis_up 1$/m)
		expect(text).toMatch(/^comfyume_queue_jobs\{state="pending"\} \d+$/m)
		for (const name of ["fairness_jain", "event_loop_lag_seconds", "eta_error_seconds_count"])
			expect(text, name).toMatch(new RegExp(`^comfyume_queue_${name} [0-9.e-]+$`, "m"))
		for (const name of ["cold_start_seconds", "delivery_lag_seconds", "quarantined_files_total"])
			expect(text, name).toContain(`comfyume_queue_${name}`)
		expect(text).not.toContain("secretive")
		const { body } = await ask("GET", "/api/openapi.json")
		expect(body.paths["/api/jobs"].post.requestBody.content["application/json"].schema.required).toEqual([
			"user_id",
			"workflow",
		])
		expect(Object.keys(body.paths)).toContain("/api/jobs/{id}/priority")
	})
})
