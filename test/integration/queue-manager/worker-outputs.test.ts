// What workers that fetch their jobs made, brought to their users: our agent beside a ComfyUI stand-in, and a worker in
// the manner of the Python one, which names paths as it likes.
import { execFileSync } from "node:child_process"
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, test } from "vitest"
import { startComfyui } from "../../support/comfyui.ts"
import { makePng } from "../../support/comfyui-files.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import { clientOf, startQueueManager } from "../../support/queue-manager.ts"
import { startTestRedis } from "../../support/redis.ts"
import { run } from "../../support/run.ts"
import { jobWhen, submitTo } from "../../support/serverless-world.ts"
import { imageWorkflow, quickTiming } from "../../support/share-world.ts"
import { startAgentProcess } from "../worker-agent/support/agent-process.ts"

async function world() {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-worker-outputs-"))
	const [share, outputs] = [join(directory, "share"), join(directory, "outputs")]
	for (const path of [share, outputs]) mkdirSync(path)
	const redis = await startTestRedis()
	const manager = await startQueueManager({
		REDIS_HOST: redis.socket,
		OUTPUTS_PATH: outputs,
		SFS_OUTPUT_DIR: share,
		WORKER_HEARTBEAT_TIMEOUT: "5",
	})
	const ask = clientOf(manager.url)
	return {
		...{ directory, share, outputs, manager, ask },
		until: (what: string, ask: () => Promise<boolean>) => poll(ask, { what, deadlineMs: 20_000 }),
		/** The fields of a job's record as Redis has them. */
		async record(id: string): Promise<ReadonlySet<string>> {
			const key = `cq:{${manager.workshop}}:job:${id}`
			return new Set((await run("redis-cli", ["-s", redis.socket, "HKEYS", key])).stdout.split("\n"))
		},
		list: (user: string) => (existsSync(join(outputs, user)) ? readdirSync(join(outputs, user)).sort() : []),
		/** A worker that claims a job and says what it made. */
		async finish(outputsOf: (job: { id: string }) => Record<string, unknown>) {
			const id = await submitTo(ask, imageWorkflow())
			const { body } = await ask("GET", "/api/workers/next-job?worker_id=python")
			expect(body.job.id).toBe(id)
			const result = {
				...{ prompt_id: "p", status: "completed", execution_time: 2, timestamp: "t" },
				...outputsOf({ id }),
			}
			const answer = await ask("POST", `/api/workers/complete-job?job_id=${id}`, result)
			return { id, answer, job: (await ask("GET", `/api/jobs/${id}`)).body }
		},
		async [Symbol.asyncDispose]() {
			await manager[Symbol.asyncDispose]()
			await redis[Symbol.asyncDispose]()
			rmSync(directory, { recursive: true, force: true })
		},
	}
}
const image = (filename: string, subfolder = "") => ({ filename, subfolder, type: "output" })
const day = () => new Date().toISOString().slice(0, 10).replaceAll("-", "")

describeWith("redis", "what workers made", () => {
	test("our agent's pictures come to their user under names of their own, and its directory goes", async () => {
		await using place = await world()
		await using comfyui = await startComfyui({
			outputDirectory: place.share,
			timing: quickTiming,
			wantsUuids: true,
		})
		await using _agent = await startAgentProcess({
			WORKER_ID: "gpu-1",
			WORKER_HEARTBEAT_TIMEOUT: "5",
			WORKER_STATE_PATH: join(place.directory, "state"),
			OUTPUTS_PATH: place.share,
			QUEUE_MANAGER_URL: place.manager.url,
			COMFYUI_URL: comfyui.url,
		})
		const ids = [await submitTo(place.ask, imageWorkflow(2)), await submitTo(place.ask, imageWorkflow())]
		const [first, second] = await Promise.all(ids.map((id) => jobWhen(place.ask, id, "completed")))
		expect(first.result.outputs).toEqual({
			"9": { images: ["Film_00001_.png", "Film_00002_.png"].map((name) => image(name, "user001")) },
		})
		expect(second.result.outputs).toEqual({ "9": { images: [image("Film_00003_.png", "user001")] } })
		expect(place.list("user001")).toEqual(["Film_00001_.png", "Film_00002_.png", "Film_00003_.png"])
		expect(execFileSync("find", [place.share, "-name", "*.png"], { encoding: "utf8" })).toBe("")
	})

	test("a worker that names a directory of the share is believed, and its answer is the usual one", async () => {
		await using place = await world()
		mkdirSync(join(place.share, "run-7/still"), { recursive: true })
		writeFileSync(join(place.share, "run-7/still/Film_00004_.png"), makePng("mine", {}))
		const { id, answer, job } = await place.finish(() => ({
			output_path: join(place.share, "run-7"),
			outputs: { "9": { images: [image("Film_00004_.png", "still")], text: ["as it is"] } },
		}))
		expect([answer.status, answer.body]).toEqual([200, { status: "success", job_id: id }])
		expect(job).toMatchObject({ status: "completed", error: null })
		expect(job.result).toMatchObject({
			output_path: null,
			outputs: { "9": { images: [image("Film_00001_.png", "user001")], text: ["as it is"] } },
		})
		expect(place.list("user001")).toEqual(["Film_00001_.png"])
	})

	test.each<[string, (share: string, id: string) => Record<string, unknown>, RegExp]>([
		[
			"a way up",
			() => ({ outputs: { "9": { images: [image("x.png", "../outside")] } } }),
			/not a path below/,
		],
		["a way up in the name", () => ({ outputs: { "9": { images: [image("../x.png")] } } }), /no \//],
		[
			"an absolute way",
			() => ({ outputs: { "9": { images: [image("passwd", "/etc")] } } }),
			/not a path below/,
		],
		[
			"a way out by output_path",
			(share) => ({
				output_path: `${share}/a/../../outside`,
				outputs: { "9": { images: [image("x.png")] } },
			}),
			/not a path below/,
		],
		[
			"a link",
			(share) => {
				symlinkSync(join(share, "../outside/x.png"), join(share, "x.png"))
				return { outputs: { "9": { images: [image("x.png")] } } }
			},
			/link/,
		],
		[
			"a directory that is a link",
			(share) => {
				symlinkSync(join(share, "../outside"), join(share, "way"))
				return { outputs: { "9": { images: [image("x.png", "way")] } } }
			},
			/link/,
		],
		[
			"another job's directory",
			(share) => {
				mkdirSync(join(share, `cq/${day()}/other/a1`), { recursive: true })
				writeFileSync(join(share, `cq/${day()}/other/a1/9~x_00001_.png`), makePng("theirs", {}))
				return { outputs: { "9": { images: [image("9~x_00001_.png", `cq/${day()}/other/a1`)] } } }
			},
			/not the directory of this attempt/,
		],
		[
			"another job's picture in its own directory",
			(share, id) => {
				mkdirSync(join(share, `cq/${day()}/${id}/a1`), { recursive: true })
				const prompt = { "9": { inputs: { filename_prefix: "cq/20260101/other/a1/9~x" } } }
				writeFileSync(join(share, `cq/${day()}/${id}/a1/9~x_00001_.png`), makePng("theirs", { prompt }))
				return { outputs: { "9": { images: [image("9~x_00001_.png", `cq/${day()}/${id}/a1`)] } } }
			},
			/another job's/,
		],
		[
			"a page",
			(share) => {
				writeFileSync(join(share, "x.html"), "<script>alert(1)</script>")
				return { outputs: { "9": { images: [image("x.html")] } } }
			},
			/not delivered/,
		],
	])("%s is refused with its reason, and nothing of it reaches the user", async (_, made, because) => {
		await using place = await world()
		mkdirSync(join(place.directory, "outside"))
		writeFileSync(join(place.directory, "outside/x.png"), makePng("secret", {}))
		const { answer, job } = await place.finish(({ id }) => made(place.share, id))
		expect(answer.status).toBe(200)
		expect(job.status).toBe("failed")
		expect(job.error).toMatch(because)
		expect(place.list("user001")).toEqual([])
	})

	test("what else a result holds is kept as it came, byte for byte", async () => {
		await using place = await world()
		writeFileSync(join(place.share, "a.png"), makePng("a", {}))
		const { ask } = place
		const id = await submitTo(ask, imageWorkflow())
		await ask("GET", "/api/workers/next-job?worker_id=w")
		const more = '"n":1.0e10,"__proto__":{"a":1.50},"deep":{"x":[1.000,"\\u00e9"]}'
		const outputs = JSON.stringify({ "9": { images: [image("a.png")] } })
		const body = `{"prompt_id":"p","outputs":${outputs},${more},"output_path":"/elsewhere"}`
		expect((await ask("POST", `/api/workers/complete-job?job_id=${id}`, body)).status).toBe(200)
		const { text, body: job } = await ask("GET", `/api/jobs/${id}`)
		expect(text).toContain(more)
		expect(job.result).toMatchObject({
			prompt_id: "p",
			output_path: null,
			outputs: { "9": { images: [image("a_00001_.png", "user001")] } },
		})
	})

	test("what can be delivered is, and the rest is named in a job that is done", async () => {
		await using place = await world()
		writeFileSync(join(place.share, "good.png"), makePng("good", {}))
		const { job } = await place.finish(() => ({
			outputs: { "9": { images: [image("good.png"), image("../bad.png")] } },
		}))
		expect(job).toMatchObject({
			status: "completed",
			result: {
				outputs: { "9": { images: [image("good_00001_.png", "user001")] } },
				undelivered: [{ file: "../bad.png" }],
			},
		})
	})

	test("the attempt's directory stays while something in it was not delivered", async () => {
		await using place = await world()
		const { id, job } = await place.finish(({ id }) => {
			const own = `cq/${day()}/${id}/a1`
			mkdirSync(join(place.share, own), { recursive: true })
			writeFileSync(join(place.share, own, "9~good.png"), makePng("good", {}))
			writeFileSync(join(place.share, own, "9~page.html"), "<p>")
			return { outputs: { "9": { images: [image("9~good.png", own), image("9~page.html", own)] } } }
		})
		expect(job).toMatchObject({ status: "completed", result: { undelivered: [{ file: "9~page.html" }] } })
		expect(existsSync(join(place.share, `cq/${day()}/${id}/a1/9~page.html`))).toBe(true)
	})

	test("a file that comes to the share a little later than its worker's word is waited for", async () => {
		await using place = await world()
		const finished = place.finish(() => ({ outputs: { "9": { images: [image("late.png")] } } }))
		// By then it was looked for: the claim and the word take a fraction of it.
		setTimeout(() => writeFileSync(join(place.share, "late.png"), makePng("late", {})), 2_000)
		expect((await finished).job).toMatchObject({ status: "completed" })
		expect(place.list("user001")).toEqual(["late_00001_.png"])
	})

	test.each([
		["python", ""],
		["ours", "&heartbeat=true"],
	])(
		"a worker (%s) that loses its patience while its files are brought, and polls, doesn't lose the job",
		async (worker, how) => {
			await using place = await world()
			const { ask } = place
			const id = await submitTo(ask, imageWorkflow())
			const next = await submitTo(ask, imageWorkflow())
			const poll = () => ask("GET", `/api/workers/next-job?worker_id=${worker}${how}`)
			const { headers, body } = await poll()
			expect(body.job.id).toBe(id)
			const lease = headers.get("x-comfyume-lease") ?? ""
			const result = { prompt_id: "p", outputs: { "9": { images: [image("late.png")] } } }
			const complete = (signal?: AbortSignal) =>
				fetch(`${place.manager.url}/api/workers/complete-job?job_id=${id}`, {
					method: "POST",
					headers: { "content-type": "application/json", ...(how !== "" && { "x-comfyume-lease": lease }) },
					body: JSON.stringify(result),
					...(signal !== undefined && { signal }),
				})
			const patience = new AbortController()
			const first = complete(patience.signal)
			await place.until("the delivery is under way", async () => (await place.record(id)).has("delivering"))
			patience.abort()
			await expect(first).rejects.toThrow()
			// It is free for another job, and this one is neither handed out again nor counted as lost.
			expect((await poll()).body.job.id).toBe(next)
			expect((await ask("GET", `/jobs/${id}`)).body.status).toBe("running")
			const second = complete()
			writeFileSync(join(place.share, "late.png"), makePng("late", {}))
			expect((await second).status).toBe(200)
			expect(await jobWhen(ask, id, "completed")).toMatchObject({ error: null })
			expect((await complete()).status).toBe(200)
			expect(place.list("user001")).toEqual(["late_00001_.png"])
			expect((await ask("GET", "/queue/status")).body).toMatchObject({ completed_jobs: 1, failed_jobs: 0 })
			expect((await ask("GET", "/metrics")).text).toMatch(/leases_lost_total 0$/m)
		},
	)

	test("told twice at once, or by one who has lost the job: delivered once, or not at all", async () => {
		await using place = await world()
		writeFileSync(join(place.share, "a.png"), makePng("a", {}))
		const { ask } = place
		const id = await submitTo(ask, imageWorkflow())
		const { headers } = await ask("GET", "/api/workers/next-job?worker_id=w&heartbeat=true")
		const lease = { "x-comfyume-lease": headers.get("x-comfyume-lease") ?? "" }
		const body = { prompt_id: "p", outputs: { "9": { images: [image("a.png")] } } }
		const complete = (more: Record<string, string>) =>
			ask("POST", `/api/workers/complete-job?job_id=${id}`, body, more)
		expect((await complete({ "x-comfyume-lease": "somebody-elses" })).status).toBe(409)
		expect(place.list("user001")).toEqual([])
		const answers = await Promise.all([complete(lease), complete(lease)])
		expect(answers.map(({ status }) => status)).toEqual([200, 200])
		const again = await complete(lease)
		expect([again.status, again.headers.get("x-comfyume-recorded")]).toEqual([200, "true"])
		expect(place.list("user001")).toEqual(["a_00001_.png"])
		expect((await ask("GET", "/queue/status")).body).toMatchObject({ completed_jobs: 1, failed_jobs: 0 })
	})
})
