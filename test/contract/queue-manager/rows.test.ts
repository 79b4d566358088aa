// The contract's rows over HTTP, each with its traps. COMFYUME_QUEUE_MANAGER_URL runs them against another implementation.
import { expect, test } from "vitest"
import { claimAll, claimJob, describeContract, jobKeys, submit } from "../../support/queue-manager-subject.ts"

const unknown = "00000000-0000-4000-8000-000000000000"
const isIso = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$/

describeContract("the contract", (subject) => {
	const ask: ReturnType<typeof subject>["ask"] = (...args) => subject().ask(...args)

	test("row 1: health tells all that its readers look for", async () => {
		const { status, body } = await ask("GET", "/health")
		expect(status).toBe(200)
		expect(body).toMatchObject({ status: "healthy", redis_connected: true, active_gpu: "local" })
		expect(["local", "redis", "serverless"]).toContain(body.inference_mode)
		expect(body.serverless_endpoint).toBeNull()
		for (const name of ["workers_active", "queue_depth", "uptime_seconds"]) {
			expect(body[name]).toEqual(expect.any(Number))
		}
		expect(body.version).toEqual(expect.any(String))
	})

	test("row 2: the counters follow a job from submit to its end, and count it once", async () => {
		await claimAll(ask)
		const before = (await ask("GET", "/queue/status")).body
		const id = await submit(ask)
		const waiting = (await ask("GET", "/queue/status")).body
		expect(waiting.pending_jobs).toBe(before.pending_jobs + 1)
		expect(waiting.queue_depth).toBe(waiting.pending_jobs)
		expect(["fifo", "round_robin", "priority"]).toContain(waiting.mode)
		await claimJob(ask, id)
		const running = (await ask("GET", "/queue/status")).body
		expect(running.running_jobs).toBe(before.running_jobs + 1)
		expect(running.active_workers).toBeGreaterThan(0)
		expect(running.total_workers).toBeGreaterThan(0)
		for (let time = 0; time < 3; time++) {
			await ask("POST", `/workers/complete-job?job_id=${id}`, { status: "success" })
		}
		const after = (await ask("GET", "/queue/status")).body
		expect(after.completed_jobs).toBe(before.completed_jobs + 1)
		expect(after.failed_jobs).toBe(before.failed_jobs)
	})

	test("row 3: a submitted job comes back with every key", async () => {
		const { status, body } = await ask("POST", "/api/jobs", {
			user_id: "user_1-A",
			workflow: { test: "workflow" },
		})
		expect(status).toBe(201)
		expect(Object.keys(body).sort()).toEqual(jobKeys)
		expect(body).toMatchObject({
			user_id: "user_1-A",
			status: "pending",
			priority: 2,
			result: null,
			error: null,
		})
		expect(body.created_at).toMatch(isIso)
		expect([body.started_at, body.completed_at, body.worker_id]).toEqual([null, null, null])
		expect(body.position_in_queue).toEqual(expect.any(Number))
	})

	const workflow = { 1: { class_type: "KSampler" } }
	const refused: [string, unknown][] = [
		["a user id with a space", { user_id: "a b", workflow }],
		["a user id that climbs", { user_id: "../x", workflow }],
		["an empty user id", { user_id: "", workflow }],
		["a user id of 101 letters", { user_id: "a".repeat(101), workflow }],
		["a user id that is a number", { user_id: 7, workflow }],
		["no user id", { workflow }],
		["no workflow", { user_id: "user001" }],
		["an empty workflow", { user_id: "user001", workflow: {} }],
		["a workflow that is a list", { user_id: "user001", workflow: [1] }],
		["a workflow that is a text", { user_id: "user001", workflow: "x" }],
		["a workflow that is null", { user_id: "user001", workflow: null }],
		["priority 4", { user_id: "user001", workflow, priority: 4 }],
		["priority -1", { user_id: "user001", workflow, priority: -1 }],
		["priority 1.5", { user_id: "user001", workflow, priority: 1.5 }],
		["priority high", { user_id: "user001", workflow, priority: "high" }],
		["metadata that is a list", { user_id: "user001", workflow, metadata: [1] }],
		["a body that is a list", [1]],
		["a body that is no JSON", "{"],
		["an empty body", ""],
		["metadata over 1 MiB", { user_id: "user001", workflow, metadata: { x: "y".repeat(1024 * 1024) } }],
		["a workflow over 10 MiB", { user_id: "user001", workflow: { x: "y".repeat(10 * 1024 * 1024) } }],
		[
			"a body nested a thousand deep",
			`{"user_id":"user001","workflow":{"a":${"[".repeat(1000)}${"]".repeat(1000)}}}`,
		],
	]
	test.each(refused)("row 3: %s is refused with 422 and a detail, and leaves no job", async (_what, body) => {
		const before = (await ask("GET", "/queue/status")).body.pending_jobs
		const answer = await ask("POST", "/api/jobs", body)
		expect(answer.status).toBe(422)
		// A sentence, or a list with one for each problem.
		expect(answer.body.detail.length).toBeGreaterThan(0)
		if (Array.isArray(answer.body.detail)) {
			expect(Object.keys(answer.body.detail[0]).sort()).toEqual(["loc", "msg", "type"])
		}
		expect((await ask("GET", "/queue/status")).body.pending_jobs).toBe(before)
	})

	test("row 3: a workflow of just under 10 MiB reaches the worker byte for byte", async () => {
		const large = { x: "é".repeat(5 * 1024 * 1024 - 100), n: 1.0e10, __proto__x: 1 }
		const id = await submit(ask, { user_id: "large", workflow: large })
		let job: { id: string; workflow: unknown } | undefined
		for (let n = 0; job?.id !== id; n++) {
			job = (await ask("GET", `/workers/next-job?worker_id=large-${n}`)).body.job
			expect(job).not.toBeNull()
		}
		expect(job?.workflow).toEqual(large)
	})

	test("row 3: names that mean something in JavaScript are only names", async () => {
		await claimAll(ask)
		const text =
			'{"user_id":"proto","workflow":{"__proto__":{"a":1},"constructor":{}},"__proto__":{"user_id":"x"}}'
		const { status, body } = await ask("POST", "/jobs", text)
		expect([status, body.user_id]).toEqual([201, "proto"])
		const claimed = await ask("GET", "/workers/next-job?worker_id=proto")
		expect(claimed.text).toContain('"__proto__":{"a":1}')
		expect((await ask("GET", "/health")).body.status).toBe("healthy")
	})

	test("row 4: /queue/submit answers with id and job_id", async () => {
		const { status, body } = await ask("POST", "/api/queue/submit", {
			user_id: "user001",
			workflow,
			priority: 1,
		})
		expect(status).toBe(201)
		expect(body.job_id).toBe(body.id)
		expect(body.priority).toBe(1)
		expect((await ask("GET", `/jobs/${body.id}`)).status).toBe(200)
	})

	test("row 5: a job is found by its id, another one is 404", async () => {
		const id = await submit(ask)
		const { status, body } = await ask("GET", `/api/jobs/${id}`)
		expect([status, body.id]).toEqual([200, id])
		expect(Object.keys(body).sort()).toEqual(jobKeys)
		const missing = await ask("GET", `/api/jobs/${unknown}`)
		expect([missing.status, typeof missing.body.detail]).toEqual([404, "string"])
	})

	test("row 6: the list has jobs of all states, filters before it limits, and never shows a workflow", async () => {
		const user_id = "lister"
		const ids = []
		for (let n = 0; n < 4; n++) ids.push(await submit(ask, { user_id }))
		for (let n = 0; n < 4; n++) await submit(ask, { user_id: "somebody-else" })
		await ask("DELETE", `/jobs/${ids[0]}`)
		const all = (await ask("GET", `/jobs?user_id=${user_id}&limit=100`)).body
		expect(all.map((job: { id: string }) => job.id).sort()).toEqual([...ids].sort())
		const cancelled = (await ask("GET", `/jobs?user_id=${user_id}&status=cancelled&limit=1`)).body
		expect(cancelled.map((job: { id: string }) => job.id)).toEqual([ids[0]])
		const two = await ask("GET", `/jobs?user_id=${user_id}&status=pending&limit=2`)
		expect(two.body).toHaveLength(2)
		expect(two.body.every((job: object) => Object.keys(job).sort().join() === jobKeys.join())).toBe(true)
		expect(two.text).not.toContain("class_type")
	})

	test.each(["status=unheard", "limit=0", "limit=many", "user_id=a%20b"])(
		"row 6: a list with %s is refused with 422",
		async (query) => {
			expect((await ask("GET", `/jobs?${query}`)).status).toBe(422)
		},
	)

	test("row 6: however much is asked for, one answer is bounded", async () => {
		const { status, body } = await ask("GET", "/jobs?limit=1000000000")
		expect(status === 422 || body.length <= 10_000).toBe(true)
	})

	test("row 7: a pending and a running job can be cancelled, and stay on record", async () => {
		const pending = await submit(ask)
		const running = await submit(ask)
		await claimJob(ask, running)
		const again = await submit(ask)
		for (const id of [running, again]) {
			const { status, text } = await ask("DELETE", `/api/jobs/${id}`)
			expect([status, text]).toEqual([204, ""])
			const { body } = await ask("GET", `/jobs/${id}`)
			expect([body.status, body.position_in_queue]).toEqual(["cancelled", null])
			expect(body.completed_at).toMatch(isIso)
		}
		expect((await ask("DELETE", `/jobs/${again}`)).status).toBe(400)
		expect((await ask("DELETE", `/jobs/${unknown}`)).status).toBe(404)
		await ask("DELETE", `/jobs/${pending}`)
	})

	test("row 7: what the worker says of a cancelled job changes nothing", async () => {
		const id = await submit(ask)
		await claimJob(ask, id)
		await ask("DELETE", `/jobs/${id}`)
		await ask("POST", `/workers/complete-job?job_id=${id}`, { result: { status: "success" } })
		await ask("POST", `/workers/fail-job?job_id=${id}`, { error: "late" })
		const { body } = await ask("GET", `/jobs/${id}`)
		expect([body.status, body.result, body.error]).toEqual(["cancelled", null, null])
	})

	const priorities: [string, string, unknown][] = [
		["a bare number", "", 1],
		["a bare string", "", '"1"'],
		["an object with a number", "", { priority: 1 }],
		["an object with a string", "", { priority: "1" }],
		["the query", "?priority=1", undefined],
	]
	test.each(priorities)("row 8: a priority is taken as %s", async (_how, query, body) => {
		const id = await submit(ask)
		const given = typeof body === "number" ? JSON.stringify(body) : body
		const answer = await ask("PATCH", `/api/jobs/${id}/priority${query}`, given)
		expect(answer.status).toBe(200)
		expect(answer.body).toEqual({ status: "success", job_id: id, priority: 1 })
		expect((await ask("GET", `/jobs/${id}`)).body.priority).toBe(1)
	})

	test("row 8: only a pending job moves, and only to a priority there is", async () => {
		const id = await submit(ask)
		for (const bad of ["4", "-1", '"x"', "{}", "null", "[1]"]) {
			expect([bad, (await ask("PATCH", `/jobs/${id}/priority`, bad)).status]).toEqual([bad, 422])
		}
		expect((await ask("PATCH", `/jobs/${id}/priority`)).status).toBe(422)
		expect((await ask("PATCH", `/jobs/${id}/priority?priority=9`)).status).toBe(422)
		expect((await ask("PATCH", `/jobs/${unknown}/priority`, "1")).status).toBe(404)
		await claimJob(ask, id)
		expect((await ask("PATCH", `/jobs/${id}/priority`, "1")).status).toBe(400)
	})

	test("row 9: an idle queue answers null; a job comes with its workflow and metadata that is an object", async () => {
		await claimAll(ask)
		expect((await ask("GET", "/workers/next-job?worker_id=idle")).body).toEqual({ job: null })
		const id = await submit(ask, { workflow: { test: "workflow" } })
		const { status, body } = await ask("GET", "/workers/next-job?worker_id=eager")
		expect(status).toBe(200)
		expect(body).toEqual({ job: { id, workflow: { test: "workflow" }, user_id: "user001", metadata: {} } })
		expect((await ask("GET", `/jobs/${id}`)).body).toMatchObject({ status: "running", worker_id: "eager" })
		const metadata = { batch_index: 1, batch_total: 4 }
		await submit(ask, { metadata })
		expect((await ask("GET", "/workers/next-job?worker_id=eager2")).body.job.metadata).toEqual(metadata)
		expect((await ask("GET", "/workers/next-job")).status).toBe(422)
	})

	const bare = {
		prompt_id: "p",
		status: "completed",
		outputs: { 9: { images: [{ filename: "a.png", subfolder: "", type: "output" }] } },
		execution_time: 1.5,
		output_path: "/outputs",
		timestamp: "2026-01-01T00:00:00",
	}
	const results: [string, unknown, unknown][] = [
		["wrapped", { result: { status: "success", n: 1 } }, { status: "success", n: 1 }],
		["bare", bare, bare],
		["bare with a member called result", { ...bare, result: { x: 1 } }, { ...bare, result: { x: 1 } }],
	]
	test.each(results)("row 10: a result that is %s ends the job", async (_how, sent, kept) => {
		const id = await submit(ask)
		await claimJob(ask, id)
		const answer = await ask("POST", `/api/workers/complete-job?job_id=${id}`, sent)
		expect([answer.status, answer.body]).toEqual([200, { status: "success", job_id: id }])
		const { body } = await ask("GET", `/jobs/${id}`)
		expect(body).toMatchObject({ status: "completed", result: kept, error: null })
		expect(body.completed_at).toMatch(isIso)
	})

	test("row 10: an unknown job is 404, a missing id or result 422", async () => {
		expect((await ask("POST", `/workers/complete-job?job_id=${unknown}`, bare)).status).toBe(404)
		expect((await ask("POST", "/workers/complete-job", bare)).status).toBe(422)
		const id = await submit(ask)
		await claimJob(ask, id)
		for (const body of ["", "[]", '"x"', '{"result":1}']) {
			expect((await ask("POST", `/workers/complete-job?job_id=${id}`, body)).status).toBe(422)
		}
		expect((await ask("GET", `/jobs/${id}`)).body.status).toBe("running")
	})

	test("row 10: a result of 50 MiB is refused from there on, and what fits is kept whole", async () => {
		const id = await submit(ask)
		await claimJob(ask, id)
		const over = { result: { x: "y".repeat(50 * 1024 * 1024) } }
		expect((await ask("POST", `/workers/complete-job?job_id=${id}`, over)).status).toBe(422)
		const fits = { result: { x: "y".repeat(20 * 1024 * 1024) } }
		expect((await ask("POST", `/workers/complete-job?job_id=${id}`, fits)).status).toBe(200)
		expect((await ask("GET", `/jobs/${id}`)).body.result.x).toHaveLength(20 * 1024 * 1024)
	})

	test("row 11: a failure is told in the body or in the query, trimmed", async () => {
		for (const [query, body] of [
			["", { error: "  out of memory  " }],
			["&error=%20out%20of%20memory%20", undefined],
		] as const) {
			const id = await submit(ask)
			await claimJob(ask, id)
			const answer = await ask("POST", `/api/workers/fail-job?job_id=${id}${query}`, body)
			expect([answer.status, answer.body]).toEqual([200, { status: "success", job_id: id }])
			const job = (await ask("GET", `/jobs/${id}`)).body
			expect([job.status, job.error]).toEqual(["failed", "out of memory"])
		}
	})

	test("row 11: too long an error is refused in the body and cut in the query; none at all is refused", async () => {
		const id = await submit(ask)
		await claimJob(ask, id)
		const fail = (query: string, body?: unknown) =>
			ask("POST", `/workers/fail-job?job_id=${id}${query}`, body)
		expect((await fail("", { error: "x".repeat(10_001) })).status).toBe(422)
		expect((await fail("", { error: "   " })).status).toBe(422)
		expect((await fail("", {})).status).toBe(422)
		expect((await fail("")).status).toBe(422)
		expect((await fail("&error=%20")).status).toBe(422)
		expect((await ask("POST", `/workers/fail-job?job_id=${unknown}&error=x`)).status).toBe(404)
		expect((await fail(`&error=${"x".repeat(30_000)}`)).status).toBe(200)
		expect((await ask("GET", `/jobs/${id}`)).body.error).toHaveLength(10_000)
	})

	test("row 12: the time clients wait is clamped to what makes sense", async () => {
		for (const [sent, kept] of [
			[10, 60],
			[700, 700],
			[99_999, 1800],
		]) {
			expect((await ask("POST", "/api/admin/timeout", { max_wait: sent })).status).toBe(200)
			expect((await ask("GET", "/api/admin/timeout")).body.max_wait).toBe(kept)
		}
		for (const bad of [{ max_wait: "long" }, { max_wait: null }, { max_wait: 1.5 }, {}, []]) {
			expect((await ask("POST", "/admin/timeout", bad)).status).toBe(422)
		}
	})

	test("row 14: another method is 405, an unknown path 404, a preflight is answered", async () => {
		const put = await ask("PUT", "/jobs", {})
		expect([put.status, typeof put.body.detail]).toEqual([405, "string"])
		expect((await ask("PUT", "/api/jobs", {})).status).toBe(405)
		const nowhere = await ask("GET", "/api/nowhere")
		expect([nowhere.status, typeof nowhere.body.detail]).toEqual([404, "string"])
		expect([200, 204]).toContain((await ask("OPTIONS", "/api/jobs")).status)
	})

	test("row 14: a stranger's page is not told that it may read", async () => {
		const { headers } = await ask("OPTIONS", "/api/jobs", undefined, {
			origin: "https://stranger.example.test",
		})
		expect(headers.get("access-control-allow-origin")).toBeNull()
		expect(headers.get("access-control-allow-credentials")).toBeNull()
	})

	test("every route answers with and without its prefix", async () => {
		const id = await submit(ask)
		for (const path of ["/health", "/queue/status", `/jobs/${id}`, "/jobs", "/admin/timeout"]) {
			expect([path, (await ask("GET", path)).status]).toEqual([path, 200])
			expect([path, (await ask("GET", `/api${path}`)).status]).toEqual([path, 200])
		}
	})
})

describeContract(
	"a queue of two places",
	(subject) => {
		test("row 3: refuses a third with 429 and its depth, and takes one again when there is room", async () => {
			const { ask } = subject()
			const first = await submit(ask)
			await submit(ask)
			const answer = await ask("POST", "/jobs", { user_id: "user001", workflow: { a: 1 } })
			expect([answer.status, answer.body]).toEqual([429, { detail: "Queue is full (max depth: 2)" }])
			await ask("DELETE", `/jobs/${first}`)
			await submit(ask)
		})

		test("row 3: never takes more than fits, however many come at once", async () => {
			const { ask } = subject()
			await claimAll(ask)
			const body = { user_id: "user001", workflow: { a: 1 } }
			const answers = await Promise.all(Array.from({ length: 20 }, () => ask("POST", "/jobs", body)))
			expect(answers.filter(({ status }) => status === 201)).toHaveLength(2)
			expect((await ask("GET", "/queue/status")).body.pending_jobs).toBe(2)
		})
	},
	{ MAX_QUEUE_DEPTH: "2" },
)
