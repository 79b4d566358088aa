// Transport 3 from a job to delivered files: real HTTP, threads and files; ComfyUI and the load balancer are stand-ins.
import { execFileSync } from "node:child_process"
import { existsSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { describe, expect, test } from "vitest"
import { inspectMedia } from "../../../src/lib/formats/media.ts"
import { promptIdOf } from "../../../src/lib/formats/prompt-id.ts"
import type { Outcome, Progress } from "../../../src/queue-manager/transport.ts"
import type { Amendment } from "../../../src/queue-manager/transports/shared-filesystem.ts"
import { makePng, measured } from "../../support/comfyui-files.ts"
import { poll } from "../../support/poll.ts"
import {
	createShareWorld,
	imageWorkflow,
	jobOf,
	placeOf,
	type ShareWorld,
	videoWorkflow,
} from "../../support/share-world.ts"

const resultOf = (outcome: Outcome) => JSON.parse(outcome.result?.toString("utf8") ?? "null") as unknown
const stateOf = async (bytes: Buffer) =>
	(await inspectMedia(async (offset, length) => bytes.subarray(offset, offset + length), bytes.length)).state
const never = new AbortController().signal
const file = (filename: string) => ({ filename, subfolder: "user001", type: "output" })
const submitted = (world: ShareWorld) =>
	world.replicas.flatMap(({ requests }) => requests.filter(({ path }) => path === "/prompt"))

/** As many looks as would do for a job to be found quiet. */
async function moreLooks(world: ShareWorld): Promise<void> {
	const before = world.looks()
	await poll(() => world.looks() > before + 15, { what: "more looks", deadlineMs: 10_000 })
}

async function expectWhole(world: ShareWorld, user: string): Promise<void> {
	for (const name of world.delivered(user)) expect(await stateOf(world.read(user, name)), name).toBe("whole")
}

describe("a job ends with its files delivered whole", () => {
	test("a batch of pictures, under the names ComfyUI would give them", async () => {
		await using world = await createShareWorld()
		const job = jobOf(imageWorkflow(3))
		const outcome = await world.run(job)
		expect(outcome).toMatchObject({ state: "completed", refused: [] })
		expect(resultOf(outcome)).toEqual({
			prompt_id: promptIdOf(job.id, 1),
			number: 0,
			node_errors: {},
			outputs: { "9": { images: [1, 2, 3].map((count) => file(`Film_0000${count}_.png`)) } },
			execution_status: "success",
		})
		expect(world.everything("user001")).toEqual(["Film_00001_.png", "Film_00002_.png", "Film_00003_.png"])
		await expectWhole(world, "user001")
		expect(world.balancer.seen.every(({ authorized }) => authorized)).toBe(true)
	})

	test("with files written as slowly as the real ComfyUI was measured to, and production's times", async () => {
		await using world = await createShareWorld({
			comfyui: { timing: measured },
			transport: {
				times: { pictureMs: 3_000, filmMs: 10_000, unknownMs: 10_000, damagedMs: 30_000 },
				tickMs: 500,
			},
		})
		const workflow = { ...imageWorkflow(2), ...videoWorkflow() }
		expect(resultOf(await world.run(jobOf(workflow)))).toMatchObject({
			outputs: {
				"9": { images: [file("Film_00001_.png"), file("Film_00002_.png")] },
				"57:8": { images: [file("Take_00001_.mp4")], animated: [true] },
			},
		})
		await expectWhole(world, "user001")
	})

	test("the pictures and films of Video Helper Suite come under gifs, and sounds under audio", async () => {
		await using world = await createShareWorld()
		const outcome = await world.run(
			jobOf({
				"5": { class_type: "EmptyImage", inputs: { width: 8, height: 8 } },
				"3": {
					class_type: "VHS_VideoCombine",
					inputs: { images: ["5", 0], filename_prefix: "Clip", format: "video/h264-mp4" },
				},
				"4": { class_type: "SaveAudio", inputs: { audio: ["5", 0], filename_prefix: "audio/Take" } },
			}),
		)
		expect(resultOf(outcome)).toMatchObject({
			outputs: { "3": { gifs: [{}, {}] }, "4": { audio: [file("Take_00001_.flac")] } },
		})
	})

	test("the same graph again gives files again, although ComfyUI caches it", async () => {
		await using world = await createShareWorld({ replicas: 1 })
		await world.run(jobOf(imageWorkflow()))
		expect(await world.run(jobOf(imageWorkflow()))).toMatchObject({ state: "completed" })
		expect(world.delivered("user001")).toEqual(["Film_00001_.png", "Film_00002_.png"])
	})

	test("two jobs at once on two replicas, each user's own and no other's", async () => {
		await using world = await createShareWorld()
		const jobs = ["user001", "user002", "user001", "user003"].map((user) => jobOf(imageWorkflow(2), { user }))
		const outcomes = await Promise.all(jobs.map((job) => world.run(job)))
		expect(outcomes.map(({ state }) => state)).toEqual(Array(4).fill("completed"))
		expect(["user001", "user002", "user003"].map((user) => world.delivered(user).length)).toEqual([4, 2, 2])
		for (const { user, job } of world.records.events()) {
			const owner = jobs.find(({ id }) => id === job)
			expect(user).toBe(owner?.user)
		}
		const names = world.records.events().map(({ user, filename }) => `${user}/${filename}`)
		expect(new Set(names).size).toBe(8)
		for (const event of world.records.events())
			expect(world.read(event.user, event.filename).includes(placeOf({ ...jobOf({}), id: event.job }))).toBe(
				true,
			)
	})

	test("only the valid part of a workflow is waited for, and the errors of the rest are handed on", async () => {
		await using world = await createShareWorld()
		const outcome = await world.run(
			jobOf({ ...imageWorkflow(), "10": { class_type: "SaveImage", inputs: { filename_prefix: "Sick" } } }),
		)
		expect(resultOf(outcome)).toMatchObject({
			outputs: { "9": { images: [file("Film_00001_.png")] } },
			node_errors: { "10": { errors: [{ type: "required_input_missing" }] } },
		})
	})
})

describe("submitting", () => {
	test("502, 503 and 504 are tried again; each that may have been taken unseen gets a directory of its own", async () => {
		await using world = await createShareWorld({ transport: { acceptMs: 30_000 } })
		world.balancer.failNext("/prompt", { answer: 503, retryAfter: 0 }, "lose-answer", { answer: 502 })
		const job = jobOf(imageWorkflow())
		expect(await world.run(job)).toMatchObject({ state: "completed" })
		expect(world.delivered("user001")).toEqual(["Film_00001_.png"])
		const ids = submitted(world).map(({ body }) => (body as { prompt_id: string }).prompt_id)
		expect(new Set(ids)).toEqual(new Set([promptIdOf(job.id, 1), promptIdOf(job.id, 1, 3)]))
	})

	test("a workflow that ComfyUI refuses is refused with its words, and not tried again", async () => {
		await using world = await createShareWorld()
		const job = jobOf({ "9": { class_type: "SaveImage", inputs: { filename_prefix: "x" } } })
		await expect(world.transport.start(job)).rejects.toMatchObject({ reason: "invalid", retryable: false })
		const error = await world.transport.start({ ...job, attempt: 2 }).catch((thrown: unknown) => thrown)
		expect(JSON.parse(String((error as { result: Buffer }).result))).toMatchObject({
			node_errors: { "9": { errors: [{ type: "required_input_missing", details: "images" }] } },
			execution_error: { type: "prompt_outputs_failed_validation" },
		})
		expect(submitted(world)).toHaveLength(2)
		expect(world.transport.freeSlots()).toBe(4)
	})

	test("a workflow that writes no file costs no GPU time", async () => {
		await using world = await createShareWorld()
		const job = jobOf({ "5": { class_type: "EmptyImage", inputs: { width: 8, height: 8 } } })
		await expect(world.transport.start(job)).rejects.toMatchObject({ reason: "invalid" })
		expect(world.balancer.seen).toEqual([])
	})

	test("a cold start is said as such", async () => {
		await using world = await createShareWorld({ transport: { acceptMs: 9_000 } })
		world.balancer.delay(5_500)
		const told: Progress[] = []
		await world.transport.start(jobOf(imageWorkflow()), (progress) => told.push(progress))
		expect(told).toContainEqual({ phase: "submitting", message: "cold start: h200-spot wakes a GPU" })
	})

	test("an endpoint that never takes it is given up in time, and the job may be tried again", async () => {
		await using world = await createShareWorld({ transport: { acceptMs: 1_200 } })
		world.balancer.replicas.length = 0
		await expect(world.transport.start(jobOf(imageWorkflow()))).rejects.toMatchObject({
			reason: "unavailable",
			retryable: true,
			message: expect.stringMatching(/did not take the job within 1.2 s \(the last: HTTP 503\)/) as unknown,
		})
	})

	test("a key that is refused is said, and never shown", async () => {
		await using world = await createShareWorld()
		world.balancer.failNext("/prompt", { answer: 401 })
		const error = await world.transport.start(jobOf(imageWorkflow())).catch((thrown: unknown) => thrown)
		expect(error).toMatchObject({ reason: "misconfigured", hint: "check SERVERLESS_API_KEY" })
		expect(JSON.stringify(error) + String(error)).not.toContain("made-up-inference-key")
	})

	test("as many jobs run as there are slots; switching sends new ones elsewhere while old ones drain", async () => {
		await using world = await createShareWorld({ slots: 1 })
		const [first, second] = [jobOf(imageWorkflow()), jobOf(imageWorkflow())]
		await world.transport.start(first)
		await expect(world.transport.start(second)).rejects.toMatchObject({ reason: "unavailable" })
		world.endpoints.switchTo("b300-spot")
		await world.transport.start(second)
		expect(world.endpoints.states()).toMatchObject([
			{ name: "h200-spot", isActive: false, running: 1 },
			{ name: "b300-spot", isActive: true, running: 1 },
		])
		for (const job of [first, second])
			expect(await world.transport.observe(job, () => {}, never)).toMatchObject({ state: "completed" })
		expect(world.endpoints.states().map(({ running }) => running)).toEqual([0, 0])
		expect(() => world.endpoints.switchTo("c400")).toThrow(/no endpoint "c400"/)
	})
})

describe("what goes wrong on the GPU's side is told apart", () => {
	test("accepted and never executed", async () => {
		await using world = await createShareWorld({ transport: { maxWaitMs: 1_500 } })
		const job = jobOf(imageWorkflow())
		await world.transport.start(job)
		for (const replica of world.replicas.splice(0)) await replica[Symbol.asyncDispose]()
		expect(await world.transport.observe(job, () => {}, never)).toMatchObject({
			state: "failed",
			reason: "never-executed",
			retryable: true,
		})
	})

	test("waiting in a replica's queue, and not done in time", async () => {
		await using world = await createShareWorld({
			comfyui: { neverExecutes: true },
			transport: { maxWaitMs: 2_000 },
		})
		expect(await world.run(jobOf(imageWorkflow()))).toMatchObject({
			reason: "slow",
			error: expect.stringContaining("ComfyUI had it pending") as unknown,
		})
	})

	test("a replica that dies while it writes: unfinished, and nothing of it is delivered", async () => {
		await using world = await createShareWorld({ transport: { maxWaitMs: 2_500 } })
		const job = jobOf(videoWorkflow())
		await world.transport.start(job)
		const outcome = world.transport.observe(job, () => {}, never)
		await poll(() => existsSync(join(world.share, placeOf(job, "/57-8~Take_00001_.mp4"))), {
			what: "the film's head",
			deadlineMs: 5_000,
		})
		for (const replica of world.replicas) await replica[Symbol.asyncDispose]()
		world.replicas.length = 0
		expect(await outcome).toMatchObject({
			reason: "slow",
			error: expect.stringMatching(/mdat.*(filled in|after the file)/) as unknown,
		})
		expect(world.everything("user001")).toEqual([])
	})

	test("an error while running, as soon as the replica that knows of it is asked", async () => {
		await using world = await createShareWorld()
		const outcome = await world.run(
			jobOf({ ...imageWorkflow(), "0": { class_type: "StandInFail", inputs: {} } }),
		)
		expect(outcome).toMatchObject({
			reason: "execution-error",
			retryable: false,
			error: expect.stringMatching(/OutOfMemoryError Allocation on device/) as unknown,
		})
		expect(resultOf(outcome)).toMatchObject({
			execution_error: { exception_type: "torch.OutOfMemoryError" },
		})
	})

	test("another volume is noticed before the first job costs GPU time", async () => {
		await using world = await createShareWorld({ gpuShare: true, transport: { preflight: true } })
		await expect(world.transport.start(jobOf(imageWorkflow()))).rejects.toMatchObject({
			reason: "misconfigured",
			message: expect.stringContaining("doesn't see what is written here") as unknown,
		})
		expect(submitted(world)).toEqual([])
	}, 30_000)

	test("one volume passes, once for each endpoint, and leaves nothing behind", async () => {
		await using world = await createShareWorld({ transport: { preflight: true } })
		expect(await world.run(jobOf(imageWorkflow()))).toMatchObject({ state: "completed" })
		await world.run(jobOf(imageWorkflow()))
		expect(world.balancer.seen.filter(({ path }) => path === "/upload/image")).toHaveLength(1)
		expect(
			execFileSync("find", [join(world.share, "cq/preflight"), "-type", "f"], { encoding: "utf8" }),
		).toBe("")
	})
})

describe("the share misbehaves", () => {
	test("a listing that forgets a file is said, and the file is waited for", async () => {
		await using world = await createShareWorld()
		const job = jobOf(imageWorkflow(2))
		await world.transport.start(job)
		const outcome = world.transport.observe(job, () => {}, never)
		// By then the first is whole, and was seen to be.
		await poll(() => existsSync(join(world.share, placeOf(job, "/9~Film_00002_.png"))), {
			what: "the second picture",
			deadlineMs: 5_000,
		})
		world.mood({ hide: ["9~Film_00001_.png"] })
		await poll(() => world.said.some(({ event }) => event === "stale-listing"), {
			what: "staleness",
			deadlineMs: 5_000,
		})
		await poll(() => world.replicas.some(({ executed }) => executed.length > 0), {
			what: "the run",
			deadlineMs: 5_000,
		})
		await moreLooks(world)
		expect(world.delivered("user001")).toEqual([])
		world.mood({})
		expect(resultOf(await outcome)).toMatchObject({ outputs: { "9": { images: [{}, {}] } } })
	})

	test.each([
		["ESTALE on listing", { stale: ["list"] }],
		["ESTALE on reading", { stale: ["inspect"] }],
		["ESTALE on one file", { unreadable: ["9~Film_00001_.png"] }],
		["ESTALE on copying", { stale: ["copy"] }],
	])("%s is lived through, and nothing is lost or doubled", async (_, mood) => {
		await using world = await createShareWorld()
		const job = jobOf(imageWorkflow(2))
		await world.transport.start(job)
		world.mood(mood)
		const outcome = world.transport.observe(job, () => {}, never)
		await poll(() => world.replicas.some(({ executed }) => executed.length > 0), {
			what: "the run",
			deadlineMs: 5_000,
		})
		await moreLooks(world)
		expect(world.delivered("user001")).toEqual([])
		world.mood({})
		expect(await outcome).toMatchObject({ state: "completed" })
		expect(world.everything("user001")).toEqual(["Film_00001_.png", "Film_00002_.png"])
		expect(world.records.events()).toHaveLength(2)
	})

	test("a mount that hangs stops its threads and nothing else; when it comes back, so does the job", async () => {
		await using world = await createShareWorld()
		const job = jobOf(imageWorkflow())
		await world.transport.start(job)
		world.mood({ hang: ["*"] })
		const outcome = world.transport.observe(job, () => {}, never)
		await poll(() => world.stuck() === 2, { what: "both threads hang", deadlineMs: 30_000 })
		let worstMs = 0
		let before = performance.now()
		await poll(
			() => {
				worstMs = Math.max(worstMs, performance.now() - before)
				before = performance.now()
				return world.said.filter(({ event }) => event === "share-trouble").length > 0 && worstMs > 0
			},
			{ what: "the event loop runs", deadlineMs: 20_000, intervalMs: 5 },
		)
		// What hangs would hold it for as long as it hangs.
		expect(worstMs).toBeLessThan(1500)
		expect(world.said).toContainEqual(
			expect.objectContaining({ event: "share-trouble", code: "EHANG" }) as unknown,
		)
		world.mood({})
		expect(await outcome).toMatchObject({ state: "completed" })
		expect(world.stuck()).toBe(0)
		expect(world.said).toContainEqual(expect.objectContaining({ event: "share-back" }) as unknown)
	})

	test("a mount that never comes back ends the job with that reason", async () => {
		await using world = await createShareWorld({ transport: { maxWaitMs: 3_500 } })
		const job = jobOf(imageWorkflow())
		await world.transport.start(job)
		world.mood({ hang: ["*"] })
		expect(await world.transport.observe(job, () => {}, never)).toMatchObject({
			reason: "share",
			retryable: true,
			error: expect.stringContaining("doesn't answer") as unknown,
		})
	})
})

describe("what may not be delivered is refused with the reason", () => {
	/** Puts something into an attempt's directory, as a custom node on the GPU could. */
	async function withIntruder(put: (directory: string, world: ShareWorld) => void, maxWaitMs = 6_000) {
		const world = await createShareWorld({ transport: { maxWaitMs } })
		const job = jobOf(imageWorkflow())
		await world.transport.start(job)
		put(join(world.share, placeOf(job)), world)
		return { world, outcome: await world.transport.observe(job, () => {}, never) }
	}
	const own = [{ file: expect.any(String) as unknown, because: expect.any(String) as unknown }]

	test.each<[string, string, (path: string, world: ShareWorld) => void, RegExp]>([
		["a link to a secret", "9~x_00001_.png", (path) => symlinkSync("/etc/passwd", path), /it is a link/],
		["a link to a directory", "9~y_00001_.png", (path) => symlinkSync("/etc", path), /it is a link/],
		["a directory", "9~z_00001_.png", (path) => mkdirSync(path), /it is a directory/],
		["a pipe", "9~p_00001_.png", (path) => execFileSync("mkfifo", [path]), /device, socket or pipe/],
		[
			"a second name of another's file",
			"9~h_00001_.png",
			(path, { outputs }) => {
				mkdirSync(join(outputs, "user002"))
				writeFileSync(join(outputs, "user002/own.png"), makePng("theirs", {}))
				execFileSync("ln", [join(outputs, "user002/own.png"), path])
			},
			/2 names/,
		],
		[
			"a node that isn't the job's",
			"77~x_00001_.png",
			(path) => writeFileSync(path, makePng("x", {})),
			/none of this job's nodes/,
		],
		[
			"a page",
			"9~x_00001_.html",
			(path) => writeFileSync(path, "<script>alert(1)</script>"),
			/not delivered/,
		],
		[
			"a page named as a picture",
			"9~x_00001_.png",
			(path) => writeFileSync(path, "<script>alert(1)</script>"),
			/its content is unknown/,
		],
		[
			"a name that would hide",
			"9~..%2f..%2fx",
			(path) => writeFileSync(path, "text without an end"),
			/not delivered/,
		],
	])("%s", async (_, name, put, because) => {
		const { world, outcome } = await withIntruder((directory, made) => put(join(directory, name), made))
		await using _world = world
		expect(outcome).toMatchObject({ state: "completed", refused: own })
		expect(outcome.state === "completed" && outcome.refused[0]?.because).toMatch(because)
		expect(resultOf(outcome)).toMatchObject({ outputs: { "9": { images: [file("Film_00001_.png")] } } })
		expect(world.everything("user001")).toEqual(["Film_00001_.png"])
	})

	test("a picture with another job's prompt is put aside and goes to nobody", async () => {
		const theirs = makePng("theirs", {
			prompt: { "9": { inputs: { filename_prefix: "cq/x/other/a1/9~Film" } } },
		})
		const { world, outcome } = await withIntruder((directory) =>
			writeFileSync(join(directory, "9~Film_00009_.png"), theirs),
		)
		await using _world = world
		expect(outcome).toMatchObject({ state: "completed", refused: [{ because: /other\/a1/ }] })
		expect(world.delivered("user001")).toHaveLength(1)
		const kept = execFileSync("find", [join(world.share, "cq/quarantine"), "-type", "f"], {
			encoding: "utf8",
		})
		expect(kept).toContain("9~Film_00009_.png")
		expect(world.said).toContainEqual(expect.objectContaining({ event: "quarantined" }) as unknown)
	})

	test("a job whose only files are refused fails with their reasons", async () => {
		await using world = await createShareWorld({
			comfyui: { neverExecutes: true },
			transport: { maxWaitMs: 1_500 },
		})
		const job = jobOf(imageWorkflow())
		await world.transport.start(job)
		symlinkSync("/etc/passwd", join(world.share, placeOf(job, "/9~Film_00001_.png")))
		expect(await world.transport.observe(job, () => {}, never)).toMatchObject({
			reason: "outputs-refused",
			error: expect.stringContaining("it is a link") as unknown,
		})
		expect(world.everything("user001")).toEqual([])
	})

	test("an attempt's directory that is a link is not followed", async () => {
		await using world = await createShareWorld({
			comfyui: { neverExecutes: true },
			transport: { maxWaitMs: 1_500 },
		})
		const job = jobOf(imageWorkflow())
		await world.transport.start(job)
		const directory = join(world.share, placeOf(job))
		execFileSync("rm", ["-r", directory])
		writeFileSync(join(world.other, "9~Film_00001_.png"), makePng("x", {}))
		symlinkSync(world.other, directory)
		expect(await world.transport.observe(job, () => {}, never)).toMatchObject({ reason: "share" })
		expect(world.everything("user001")).toEqual([])
	})

	test("a user's directory that is a link is not followed", async () => {
		await using world = await createShareWorld({ transport: { maxWaitMs: 2_000 } })
		symlinkSync(world.other, join(world.outputs, "user001"))
		expect(await world.run(jobOf(imageWorkflow()))).toMatchObject({ state: "failed" })
		expect(execFileSync("ls", ["-A", world.other], { encoding: "utf8" })).toBe("")
	})
})

describe("ending and starting again", () => {
	test("a queue manager that starts anew goes on where the last one was", async () => {
		await using world = await createShareWorld()
		const job = jobOf(imageWorkflow(2))
		world.balancer.failNext("/prompt", "lose-answer")
		await world.transport.start(job)
		const { transport } = world.open()
		expect(await transport.observe(job, () => {}, never)).toMatchObject({ state: "completed" })
		expect(await world.open().transport.observe(job, () => {}, never)).toMatchObject({ state: "completed" })
		expect(world.delivered("user001")).toEqual(["Film_00001_.png", "Film_00002_.png"])
		expect(world.records.events()).toHaveLength(2)
	})

	test("two queue managers that observe one job deliver each file once", async () => {
		await using world = await createShareWorld()
		const job = jobOf(imageWorkflow(3))
		await world.transport.start(job)
		const both = [world.transport, world.open().transport]
		const outcomes = await Promise.all(both.map((one) => one.observe(job, () => {}, never)))
		expect(outcomes.map(({ state }) => state)).toEqual(["completed", "completed"])
		expect(resultOf(outcomes[0] as Outcome)).toEqual(resultOf(outcomes[1] as Outcome))
		expect(world.everything("user001")).toHaveLength(3)
		expect(world.records.events()).toHaveLength(3)
	})

	test("cancelling reaches the replica that runs it, and no other job", async () => {
		await using world = await createShareWorld()
		const slow = (job: Record<string, unknown>) => ({
			...job,
			"0": { class_type: "StandInSleep", inputs: { ms: 60_000 } },
			"9": { class_type: "SaveImage", inputs: { images: ["0", 0], filename_prefix: "x" } },
		})
		const [job, other] = [jobOf(slow({})), jobOf(slow({}))]
		await world.transport.start(job)
		await world.transport.start(other)
		const running = () => world.replicas.map((replica) => replica.runningId())
		await poll(() => running().every((id) => id !== undefined), { what: "both run", deadlineMs: 5_000 })
		await world.transport.cancel(job)
		await poll(() => !running().includes(promptIdOf(job.id, 1)), { what: "the interrupt", deadlineMs: 5_000 })
		expect(running()).toContain(promptIdOf(other.id, 1))
	})

	test("observing ends at once when it is told to", async () => {
		await using world = await createShareWorld({ comfyui: { neverExecutes: true } })
		const job = jobOf(imageWorkflow())
		await world.transport.start(job)
		const stop = new AbortController()
		const observed = world.transport.observe(job, () => {}, stop.signal)
		stop.abort()
		await expect(observed).rejects.toThrow(/abort/)
		expect(world.transport.freeSlots()).toBe(4)
	})

	test("a file that comes late is an amendment, once, and then the directory is removed", async () => {
		await using world = await createShareWorld()
		const job = jobOf(imageWorkflow())
		const outcome = await world.run(job)
		expect(resultOf(outcome)).toMatchObject({ outputs: { "9": { images: [file("Film_00001_.png")] } } })
		const prompt = submitted(world).map(({ body }) => (body as { prompt: unknown }).prompt)[0]
		const amendments: Amendment[] = []
		const { transport } = world.open()
		const late = transport.watchLate(job, async (amendment) => void amendments.push(amendment), never)
		writeFileSync(join(world.share, placeOf(job, "/9~Film_00002_.png")), makePng("late", { prompt }))
		await late
		// Which of them the result has already is for whoever keeps the result to see.
		expect(amendments).toEqual(
			["Film_00001_.png", "Film_00002_.png"].map((name) => ({ node: "9", key: "images", file: file(name) })),
		)
		expect(world.records.events()).toHaveLength(2)
		expect(world.everything("user001")).toEqual(["Film_00001_.png", "Film_00002_.png"])
		expect(existsSync(join(world.share, placeOf(job)))).toBe(false)
	})
})
