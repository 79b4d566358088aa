// INFERENCE_MODE=serverless in the running service, from a request to files in the user's directory.
import { execFileSync } from "node:child_process"
import { mkdirSync, readdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { expect, test } from "vitest"
import { buildQueueManager } from "../../../scripts/build.ts"
import { promptIdOf } from "../../../src/lib/formats/prompt-id.ts"
import { makePng } from "../../support/comfyui-files.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import { openEvents } from "../../support/queue-manager.ts"
import { createServerlessWorld, jobWhen, submitTo } from "../../support/serverless-world.ts"
import { imageWorkflow } from "../../support/share-world.ts"

const file = (filename: string, subfolder = "user001") => ({ filename, subfolder, type: "output" })
/** Runs so long that something can happen meanwhile. */
const slowWorkflow = (ms: number) => ({
	"0": { class_type: "StandInSleep", inputs: { ms } },
	"9": { class_type: "SaveImage", inputs: { images: ["0", 0], filename_prefix: "Slow" } },
})

describeWith("redis", "serverless", () => {
	test("the blocking client gets its result, the files are there, and progress and files are told", async () => {
		await using world = await createServerlessWorld()
		const { ask, url } = await world.manager()
		const events = await openEvents(url)
		const { body } = await ask("POST", "/api/jobs", {
			user_id: "user001",
			workflow: imageWorkflow(2),
			metadata: { source: "serverless_proxy" },
		})
		expect(body).toMatchObject({ status: "completed", error: null, worker_id: "serverless/1" })
		expect(body.result).toEqual({
			prompt_id: promptIdOf(body.id, 1),
			number: 0,
			node_errors: {},
			outputs: { "9": { images: [file("Film_00001_.png"), file("Film_00002_.png")] } },
			execution_status: "success",
		})
		expect(world.list("user001")).toEqual(["Film_00001_.png", "Film_00002_.png"])
		await events.next("its end", (event) => event.type === "job_updated" && event.data.status === "completed")
		const told = events.received.filter((event) => event.type === "comfyume_progress")
		expect(told.map(({ data }) => data.phase)).toEqual(["submitting", "polling", "complete"])
		expect(told.every(({ data }) => data.prompt_id === body.id)).toBe(true)
		const outputs = events.received.filter((event) => event.type === "output_delivered")
		expect(outputs.map(({ data }) => data)).toEqual(
			["Film_00001_.png", "Film_00002_.png"].map((name) => ({
				prompt_id: body.id,
				node: "9",
				file: file(name),
			})),
		)
		const health = (await ask("GET", "/health")).body
		expect(health).toMatchObject({
			serverless_preflight: "passed",
			workers_active: 4,
			active_gpu: "serverless",
		})
		const metrics = (await ask("GET", "/metrics")).text
		expect(metrics).toMatch(/comfyume_queue_endpoint_ready\{endpoint="default"\} 1/)
		expect(metrics).toMatch(/comfyume_queue_delivery_lag_seconds_count 2/)
		expect(metrics).toMatch(/comfyume_queue_delivered_files_total 2/)
		expect(metrics).not.toContain("user001")
		await events.close()
	})

	test("a workflow whose files could not be found is refused before it costs a GPU", async () => {
		await using world = await createServerlessWorld()
		const { ask } = await world.manager()
		for (const workflow of [{ test: "workflow" }, { "5": { class_type: "EmptyImage", inputs: {} } }]) {
			const answer = await ask("POST", "/api/jobs", { user_id: "user001", workflow })
			expect(answer.status, answer.text).toBe(422)
			expect(answer.body.detail[0].loc).toEqual(["body", "workflow"])
		}
		expect((await ask("GET", "/queue/status")).body).toMatchObject({ pending_jobs: 0, failed_jobs: 0 })
		expect(world.prompts()).toBe(0)
	})

	test("what ComfyUI refuses fails once, with its words; 502 and 503 do not fail a job", async () => {
		await using world = await createServerlessWorld()
		const { ask } = await world.manager()
		const bad = { "9": { class_type: "SaveImage", inputs: { filename_prefix: "x" } } }
		const failed = await jobWhen(ask, await submitTo(ask, bad), "failed")
		expect(failed.error).toMatch(/ComfyUI refuses the workflow/)
		expect(failed.result).toMatchObject({ execution_status: "error", node_errors: { "9": {} } })
		expect(world.prompts()).toBe(1)
		world.balancer.failNext("/prompt", { answer: 503, retryAfter: 0 }, { answer: 502 })
		const done = await jobWhen(ask, await submitTo(ask, imageWorkflow()), "completed")
		expect(done.result.outputs).toEqual({ "9": { images: [file("Film_00001_.png")] } })
	})

	test("cancelling reaches ComfyUI, and the job stays cancelled with nothing delivered", async () => {
		await using world = await createServerlessWorld()
		const { ask } = await world.manager()
		const id = await submitTo(ask, slowWorkflow(60_000))
		const running = () => world.replicas.map((replica) => replica.runningId())
		await poll(() => running().includes(promptIdOf(id, 1)), { what: "it runs", deadlineMs: 15_000 })
		expect((await ask("DELETE", `/api/jobs/${id}`)).status).toBe(204)
		await poll(() => !running().includes(promptIdOf(id, 1)), { what: "the interrupt", deadlineMs: 5_000 })
		const next = await jobWhen(ask, await submitTo(ask, imageWorkflow()), "completed")
		expect(next.result.outputs["9"].images).toHaveLength(1)
		expect((await ask("GET", `/api/jobs/${id}`)).body).toMatchObject({ status: "cancelled", result: null })
		expect(world.list("user001")).toEqual(["Film_00001_.png"])
	})

	test("killed while a GPU works, the next one goes on observing; the GPU works once", async () => {
		await using world = await createServerlessWorld()
		const first = await world.manager()
		const id = await submitTo(first.ask, slowWorkflow(2_000))
		const running = () => world.replicas.map((replica) => replica.runningId())
		await poll(() => running().includes(promptIdOf(id, 1)), { what: "it runs", deadlineMs: 15_000 })
		// Until that lies there nobody could know that it was accepted.
		await poll(() => world.find(".accepted.json").length > 0, { what: "the note of it", deadlineMs: 5_000 })
		await first.process.kill()
		const { ask } = await world.manager()
		const job = await jobWhen(ask, id, "completed")
		expect(job.result.prompt_id).toBe(promptIdOf(id, 1))
		expect(world.list("user001")).toEqual(["Slow_00001_.png"])
		expect(world.prompts()).toBe(1)
	})

	test("killed while it submits, it begins anew in a directory of its own, and the job ends once", async () => {
		await using world = await createServerlessWorld()
		const first = await world.manager()
		await poll(async () => (await first.ask("GET", "/health")).body.serverless_preflight === "passed", {
			what: "the preflight passes",
			deadlineMs: 15_000,
		})
		world.balancer.delay(4_000)
		const before = world.prompts()
		const id = await submitTo(first.ask, imageWorkflow())
		await poll(() => world.prompts() > before, { what: "the prompt is on its way", deadlineMs: 10_000 })
		await first.process.kill()
		world.balancer.delay(0)
		const { ask } = await world.manager()
		const job = await jobWhen(ask, id, "completed")
		expect(job.result.prompt_id).toBe(promptIdOf(id, 2))
		expect(world.list("user001")).toEqual(["Film_00001_.png"])
		expect((await ask("GET", "/queue/status")).body).toMatchObject({ completed_jobs: 1, failed_jobs: 0 })
	})

	test("stopped while a GPU works, it lets go in time, and the next one goes on at once", async () => {
		await using world = await createServerlessWorld()
		const first = await world.manager({ WORKER_HEARTBEAT_TIMEOUT: "60" })
		const id = await submitTo(first.ask, slowWorkflow(1_500))
		const running = () => world.replicas.map((replica) => replica.runningId())
		await poll(() => running().includes(promptIdOf(id, 1)), { what: "it runs", deadlineMs: 15_000 })
		expect(await first.process.terminate()).toMatchObject({ exitCode: 0 })
		const { ask } = await world.manager({ WORKER_HEARTBEAT_TIMEOUT: "60" })
		await jobWhen(ask, id, "completed")
		expect(world.prompts()).toBe(1)
		expect(world.list("user001")).toEqual(["Slow_00001_.png"])
	})

	test("two beside each other run each job once, deliver each file once, and share the slots", async () => {
		await using world = await createServerlessWorld()
		const one = await world.manager({ SERVERLESS_SLOTS: "3" })
		const other = await world.manager({ SERVERLESS_SLOTS: "3" })
		const ids: string[] = []
		for (let count = 0; count < 10; count++)
			ids.push(await submitTo(count % 2 === 0 ? one.ask : other.ask, imageWorkflow()))
		let most = 0
		await poll(
			async () => {
				const { body } = await one.ask("GET", "/queue/status")
				most = Math.max(most, body.running_jobs)
				return body.completed_jobs === 10
			},
			{ what: "all are done", deadlineMs: 50_000 },
		)
		expect(most).toBe(3)
		expect(world.prompts()).toBe(10)
		expect(world.list("user001")).toEqual(
			ids.map((_, index) => `Film_${String(index + 1).padStart(5, "0")}_.png`),
		)
		const named = await Promise.all(
			ids.map(
				async (id) => (await other.ask("GET", `/api/jobs/${id}`)).body.result.outputs["9"].images[0].filename,
			),
		)
		expect(new Set(named).size).toBe(10)
	})

	test("a file that comes late is delivered, added to the result once and told", async () => {
		await using world = await createServerlessWorld()
		const { ask, url, process } = await world.manager()
		const id = await submitTo(ask, imageWorkflow())
		const { result } = await jobWhen(ask, id, "completed")
		const events = await openEvents(url)
		const [path = ""] = world.find("9~Film_00001_.png")
		const prefix = `${path.slice(world.share.length + 1).replace(/_00001_\.png$/, "")}`
		const prompt = { "9": { class_type: "SaveImage", inputs: { filename_prefix: prefix } } }
		writeFileSync(join(path, "../9~Film_00002_.png"), makePng("late", { prompt }))
		// Another one comes to it after this one is gone.
		await process.kill()
		const next = await world.manager()
		const amended = await poll(
			async () => {
				const { body } = await next.ask("GET", `/api/jobs/${id}`)
				return body.result.outputs["9"].images.length > 1 ? body : undefined
			},
			{ what: "the amendment", deadlineMs: 30_000 },
		)
		expect(amended.result).toEqual({
			...result,
			outputs: { "9": { images: [file("Film_00001_.png"), file("Film_00002_.png")] } },
		})
		expect(world.list("user001")).toEqual(["Film_00001_.png", "Film_00002_.png"])
		await events.close()
	})

	test("an instructor switches where new jobs go, for all queue managers; what isn't configured is refused", async () => {
		await using world = await createServerlessWorld()
		const one = await world.manager()
		const other = await world.manager()
		expect((await one.ask("PUT", "/api/endpoint", { endpoint: "h200-spot" })).status).toBe(422)
		const switched = await one.ask("PUT", "/api/endpoint", { endpoint: "b300-spot" })
		expect(switched.body).toMatchObject({
			active: "b300-spot",
			endpoints: [
				{ name: "default", active: false, running: 0, slots: 4 },
				{ name: "b300-spot", active: true },
			],
		})
		expect(switched.text).not.toContain("127.0.0.1")
		await poll(async () => (await other.ask("GET", "/health")).body.active_gpu === "B300-288GB-SPOT", {
			what: "the other knows",
			deadlineMs: 5_000,
		})
		const id = await submitTo(one.ask, slowWorkflow(1_000))
		await poll(async () => (await other.ask("GET", "/api/endpoint")).body.endpoints[1].running === 1, {
			what: "it runs there",
			deadlineMs: 10_000,
		})
		await jobWhen(one.ask, id, "completed")
		expect((await other.ask("GET", "/api/endpoint")).body.endpoints[1].running).toBe(0)
	})

	test("another volume is said before a job goes there, and jobs wait instead of failing one after the other", async () => {
		await using world = await createServerlessWorld({ otherVolume: true })
		const { ask, process } = await world.manager()
		const id = await submitTo(ask, imageWorkflow())
		await poll(async () => (await ask("GET", "/health")).body.serverless_preflight === "failed", {
			what: "the preflight fails",
			deadlineMs: 20_000,
		})
		expect(process.log()).toMatch(/doesn't see what is written here/)
		expect((await ask("GET", "/metrics")).text).toMatch(/endpoint_ready\{endpoint="default"\} -1/)
		expect((await ask("GET", "/api/endpoint")).body.endpoints[0]).toMatchObject({ blocked: true })
		expect((await ask("GET", `/api/jobs/${id}`)).body.status).toBe("pending")
		expect(world.prompts()).toBe(0)
	})

	test("the bundle does it too, without node_modules", async () => {
		await using world = await createServerlessWorld()
		const bundle = join(world.directory, "bundle")
		await buildQueueManager(bundle)
		const { ask } = await world.manager({}, join(bundle, "main.js"))
		await jobWhen(ask, await submitTo(ask, imageWorkflow()), "completed")
		expect(world.list("user001")).toEqual(["Film_00001_.png"])
	})

	test("an address that is none ends it at the start, and is not shown", async () => {
		await using world = await createServerlessWorld()
		const wrong = world.manager({ SERVERLESS_ENDPOINT: "hunter2@nowhere" })
		await expect(wrong).rejects.toThrow(/INFERENCE_MODE=serverless lacks an address or OUTPUTS_PATH/)
		await expect(wrong).rejects.not.toThrow(/hunter2/)
	})

	test("with a share that hangs for good it still ends within 10 s of being asked to", async () => {
		await using world = await createServerlessWorld()
		// Every listing in its threads opens a pipe that nobody ever writes to: stuck in the kernel, as on a dead mount.
		const pipe = join(world.directory, "pipe")
		execFileSync("mkfifo", [pipe])
		const preload = join(world.directory, "hang.mjs")
		writeFileSync(
			preload,
			`import fs from "node:fs"
import { syncBuiltinESMExports } from "node:module"
import { isMainThread } from "node:worker_threads"
const list = fs.readdirSync
if (!isMainThread) fs.readdirSync = (path, ...rest) => {
	if (fs.existsSync(${JSON.stringify(join(world.directory, "hangs"))})) fs.openSync(${JSON.stringify(pipe)}, "r")
	return list(path, ...rest)
}
syncBuiltinESMExports()
`,
		)
		const { ask, process } = await world.manager({ NODE_OPTIONS: `--import=${preload}` })
		await poll(async () => (await ask("GET", "/health")).body.serverless_preflight === "passed", {
			what: "the preflight passes",
			deadlineMs: 20_000,
		})
		mkdirSync(join(world.directory, "hangs"))
		await submitTo(ask, imageWorkflow())
		await poll(() => process.log().includes("EHANG"), { what: "it hangs", deadlineMs: 30_000 })
		expect((await ask("GET", "/health")).status).toBe(200)
		const { tookMs } = await process.terminate()
		expect(tookMs).toBeLessThan(10_000)
		expect(process.log()).toContain("ending by force")
		expect(readdirSync(world.share)).toContain("cq")
	})
})
