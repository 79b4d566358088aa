// What workers that fetch their jobs made, brought to their users: our agent beside a ComfyUI stand-in, and a worker in
// the manner of the Python one, which names paths as it likes.
import { execFileSync } from "node:child_process"
import {
	copyFileSync,
	existsSync,
	mkdirSync,
	mkdtempSync,
	readdirSync,
	readFileSync,
	rmSync,
	symlinkSync,
	writeFileSync,
} from "node:fs"
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
import { imageWorkflow, quickTiming, videoWorkflow } from "../../support/share-world.ts"
import { startAgentProcess } from "../worker-agent/support/agent-process.ts"

type Job = { id: string; workflow: Record<string, unknown> }
/** A picture as ComfyUI leaves it: with what ran in it. */
const pictureOf = (seed: string, { workflow }: Job) => makePng(seed, { prompt: workflow })

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
		async finish(outputsOf: (job: Job) => Record<string, unknown> | Promise<Record<string, unknown>>) {
			const id = await submitTo(ask, imageWorkflow())
			const { body } = await ask("GET", "/api/workers/next-job?worker_id=python")
			expect(body.job.id).toBe(id)
			const result = {
				...{ prompt_id: "p", status: "completed", execution_time: 2, timestamp: "t" },
				...(await outputsOf(body.job)),
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
const isolated = (workflow: ReturnType<typeof imageWorkflow>, directory: string) => ({
	...workflow,
	"9": { ...workflow["9"], inputs: { ...workflow["9"].inputs, filename_prefix: `${directory}/9~Film` } },
})
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

	test("a worker that names a directory of the share is believed of pictures with this job's prompt, and its answer is the usual one", async () => {
		await using place = await world()
		mkdirSync(join(place.share, "run-7/still"), { recursive: true })
		const { id, answer, job } = await place.finish((job) => {
			writeFileSync(join(place.share, "run-7/still/Film_00004_.png"), pictureOf("mine", job))
			return {
				output_path: join(place.share, "run-7"),
				outputs: { "9": { images: [image("Film_00004_.png", "still")], text: ["as it is"] } },
			}
		})
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
			"another job's picture of an equal graph outside of it",
			(share) => {
				const theirs = isolated(imageWorkflow(), "cq/20260101/other/a1")
				writeFileSync(join(share, "ComfyUI_00001_.png"), makePng("theirs", { prompt: theirs }))
				return { outputs: { "9": { images: [image("ComfyUI_00001_.png")] } } }
			},
			/nothing proves that it is this job's: .* the prompt in it is another's/,
		],
		[
			"a picture of the workflow as its user wrote it, which others may have run too",
			(share) => {
				writeFileSync(join(share, "ComfyUI_00001_.png"), makePng("any", { prompt: imageWorkflow() }))
				return { outputs: { "9": { images: [image("ComfyUI_00001_.png")] } } }
			},
			/the prompt in it is another's/,
		],
		[
			"an earlier attempt's picture outside of it",
			(share, id) => {
				const prompt = isolated(imageWorkflow(), `cq/${day()}/${id}/a0`)
				writeFileSync(join(share, "ComfyUI_00001_.png"), makePng("old", { prompt }))
				return { outputs: { "9": { images: [image("ComfyUI_00001_.png")] } } }
			},
			/the prompt in it is another's/,
		],
		[
			"a picture without a prompt outside of it",
			(share) => {
				writeFileSync(join(share, "ComfyUI_00001_.png"), makePng("any", {}))
				return { outputs: { "9": { images: [image("ComfyUI_00001_.png")] } } }
			},
			/it carries no prompt/,
		],
		[
			"a film outside of it",
			(share) => {
				copyFileSync(new URL("../../support/media/video.mp4", import.meta.url), join(share, "x_00001_.mp4"))
				return { outputs: { "9": { images: [image("x_00001_.mp4")] } } }
			},
			/it carries no prompt/,
		],
		[
			"a page",
			(share) => {
				writeFileSync(join(share, "x.html"), "<script>alert(1)</script>")
				return { outputs: { "9": { images: [image("x.html")] } } }
			},
			/nothing proves/,
		],
	])("%s is refused with its reason, and nothing of it reaches the user", async (_, made, because) => {
		await using place = await world()
		mkdirSync(join(place.directory, "outside"))
		writeFileSync(join(place.directory, "outside/x.png"), makePng("secret", {}))
		let before: string[] = []
		const { answer, job } = await place.finish(({ id }) => {
			const said = made(place.share, id)
			before = readdirSync(place.share)
			return said
		})
		expect(answer.status).toBe(200)
		expect(job.status).toBe("failed")
		expect(job.error).toMatch(because)
		expect(place.list("user001")).toEqual([])
		// It may be another job's, which has yet to be handed in.
		const named = ["ComfyUI_00001_.png", "x_00001_.mp4"].filter((name) => before.includes(name))
		expect(readdirSync(place.share)).toEqual(expect.arrayContaining(named))
	})

	test("a worker that submits what it gets as it is, and knows nothing of directories, hands in this job's files alone", async () => {
		await using place = await world()
		await using comfyui = await startComfyui({ outputDirectory: place.share, timing: quickTiming })
		const results = []
		for (const user of ["user001", "user002"]) {
			const id = await submitTo(place.ask, { ...imageWorkflow(2), ...videoWorkflow() }, { user_id: user })
			const { body } = await place.ask("GET", "/api/workers/next-job?worker_id=python")
			const comfy = clientOf(comfyui.url)
			const { prompt_id } = (await comfy("POST", "/prompt", { prompt: body.job.workflow })).body
			const entry = await poll(async () => (await comfy("GET", `/history/${prompt_id}`)).body[prompt_id], {
				what: "it ran",
				deadlineMs: 20_000,
			})
			await place.ask("POST", `/api/workers/complete-job?job_id=${id}`, {
				...{ prompt_id, status: "completed", outputs: entry.outputs, execution_time: 1, timestamp: "t" },
				output_path: place.share,
			})
			results.push((await place.ask("GET", `/api/jobs/${id}`)).body)
			expect(place.list(user)).toEqual(["Film_00001_.png", "Film_00002_.png", "Take_00001_.mp4"])
			const picture = readFileSync(join(place.outputs, user, "Film_00001_.png"))
			expect(picture.includes(`${id}/a1/9~Film`)).toBe(true)
		}
		expect(results.map(({ status }) => status)).toEqual(["completed", "completed"])
	})

	test("a workflow goes out with its bytes untouched but for where its files go; one without such a place as it came", async () => {
		await using place = await world()
		let workers = 0
		const handed = async (workflow: string) => {
			const body = `{"user_id":"user001","workflow":${workflow}}`
			const { id } = (await place.ask("POST", "/api/jobs", body)).body
			// Who asks for another job has given up the one before.
			const { text } = await place.ask("GET", `/api/workers/next-job?worker_id=python-${++workers}`)
			return { id, day: day(), given: text.slice(text.indexOf('"workflow":') + 11, -2) }
		}
		const plain = '{ "test":\t"workflow", "seed": 18446744073709551615, "o": {"inputs": 1e400} }'
		expect((await handed(plain)).given).toBe(plain)
		const one = await handed(
			'{ "9" : {"class_type":"SaveImage", "inputs":{"seed": 18446744073709551615,"filename_prefix" : "a/still"} } }',
		)
		expect(one.given).toBe(
			`{ "9" : {"class_type":"SaveImage", "inputs":{"seed": 18446744073709551615,"filename_prefix" : "cq/${one.day}/${one.id}/a1/9~still"} } }`,
		)
	})

	test("what else a result holds is kept as it came, byte for byte", async () => {
		await using place = await world()
		const { ask } = place
		const id = await submitTo(ask, imageWorkflow())
		const { body: claim } = await ask("GET", "/api/workers/next-job?worker_id=w")
		writeFileSync(join(place.share, "a.png"), pictureOf("a", claim.job))
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
		const { job } = await place.finish((job) => {
			writeFileSync(join(place.share, "good.png"), pictureOf("good", job))
			return { outputs: { "9": { images: [image("good.png"), image("../bad.png")] } } }
		})
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
		const { job } = await place.finish((job) => {
			// By then it was looked for: the word takes a fraction of it.
			setTimeout(() => writeFileSync(join(place.share, "late.png"), pictureOf("late", job)), 2_000)
			return { outputs: { "9": { images: [image("late.png")] } } }
		})
		expect(job).toMatchObject({ status: "completed" })
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
			writeFileSync(join(place.share, "late.png"), pictureOf("late", body.job))
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
		const { ask } = place
		const id = await submitTo(ask, imageWorkflow())
		const { headers, body: claim } = await ask("GET", "/api/workers/next-job?worker_id=w&heartbeat=true")
		writeFileSync(join(place.share, "a.png"), pictureOf("a", claim.job))
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
