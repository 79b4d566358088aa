// The agent's pure parts: what it makes of its environment, of workflows, of ComfyUI's words.
import { mkdtemp, rm, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { promptIdOf } from "../../../src/lib/formats/prompt-id.ts"
import { bell } from "../../../src/worker-agent/bell.ts"
import { readConfiguration } from "../../../src/worker-agent/configuration.ts"
import { fitOf, neededMb } from "../../../src/worker-agent/gpu.ts"
import { openNotebook } from "../../../src/worker-agent/note.ts"
import { isolateOutputs, outputsOf, wrongFile } from "../../../src/worker-agent/outputs.ts"
import { progressAfter } from "../../../src/worker-agent/progress.ts"
import { failureOf } from "../../../src/worker-agent/run-job.ts"

let directory = ""
beforeAll(async () => {
	directory = await mkdtemp(join(tmpdir(), "comfyume-agent-parts-"))
})
afterAll(() => rm(directory, { recursive: true, force: true }))

const least = { QUEUE_MANAGER_URL: "http://queue-manager:3000/", WORKER_ID: "gpu-1" }

describe("the environment", () => {
	test("needs two variables; the rest has defaults, and empty ones count as unset", async () => {
		const read = await readConfiguration({ ...least, COMFYUI_URL: "", WORKER_TOKEN: "" })
		expect(read).toMatchObject({
			queueManagerUrl: "http://queue-manager:3000",
			comfyuiUrl: "http://127.0.0.1:8188",
			pollMs: 2000,
			leaseMs: 60_000,
			vramMarginMb: 2048,
			vramDefaultMb: 8192,
			token: undefined,
			outputsPath: undefined,
		})
	})

	test("takes the token from a file, without its newline, and shows it to nobody", async () => {
		const file = join(directory, "token")
		await writeFile(file, "made-up-token\n")
		const { token } = await readConfiguration({ ...least, WORKER_TOKEN_FILE: file })
		expect(token?.reveal()).toBe("made-up-token")
		expect(JSON.stringify({ token })).not.toContain("made-up-token")
	})

	test.each([
		[{ WORKER_TOKEN: "two words" }, /WORKER_TOKEN is empty or holds characters/],
		[{ WORKER_TOKEN: "a", WORKER_TOKEN_FILE: "/x" }, /both set/],
		[{ WORKER_TOKEN_FILE: "/nowhere/token" }, /WORKER_TOKEN_FILE can't be read/],
		[{ QUEUE_MANAGER_URL: "http://me:made-up@host" }, /holds credentials/],
		[{ WORKER_POLL_INTERVAL: "0" }, /WORKER_POLL_INTERVAL is less than 0.05/],
		[{ OUTPUTS_PATH: "outputs" }, /OUTPUTS_PATH is not an absolute path/],
	])("refuses %j, without saying a value", async (wrong, message) => {
		const error = await readConfiguration({ ...least, ...wrong }).catch((thrown: unknown) => thrown)
		expect(error).toMatchObject({ exitCode: 2, message: expect.stringMatching(message) })
		expect(String(error)).not.toMatch(/two words|made-up/)
	})
})

describe("a prompt's id", () => {
	test("is a UUID in the one form that newer ComfyUIs take, its own for every attempt, and always the same", () => {
		const ids = [promptIdOf("job-1", 1), promptIdOf("job-1", 2), promptIdOf("job-11", 1)]
		expect(new Set(ids).size).toBe(3)
		for (const id of ids)
			expect(id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
		expect(promptIdOf("job-1", 1)).toBe(ids[0])
	})
})

describe("outputs", () => {
	const job = { id: "7f", attempt: 2 }
	const day = new Date("2026-11-21T23:59:59Z")
	const prefixOf = (given: unknown, id = "9") => {
		const node = { class_type: "SaveImage", inputs: { filename_prefix: given } }
		const { workflow } = isolateOutputs({ [id]: node }, job, day)
		return (workflow[id] as typeof node).inputs.filename_prefix
	}

	test.each([
		["still", "9", "cq/20261121/7f/a2/9~still"],
		["films/today/%date%", "9", "cq/20261121/7f/a2/9~_date_"],
		["../../etc/passwd", "9", "cq/20261121/7f/a2/9~passwd"],
		["..", "9", "cq/20261121/7f/a2/9~output"],
		["a b", "12:5", "cq/20261121/7f/a2/12_5~a_b"],
	])("of prefix %j in node %s go to %s", (given, id, expected) => {
		expect(prefixOf(given, id)).toBe(expected)
	})

	test("keep a prefix that comes from another node, and whatever is no node", () => {
		expect(prefixOf(["3", 0])).toEqual(["3", 0])
		const odd = { test: "workflow", nothing: null, list: [1] }
		expect(isolateOutputs(odd, job, day)).toEqual({ workflow: odd, saving: [] })
	})

	test("keep the place that the queue manager gave them for this attempt, and no other's", () => {
		expect(prefixOf("cq/20261119/7f/a2/9~a b é")).toBe("cq/20261119/7f/a2/9~a b é")
		expect(prefixOf("cq/20261119/7f/a1/9~still")).toBe("cq/20261121/7f/a2/9~9_still")
		expect(prefixOf("cq/20261119/7f/a2/../../x")).toBe("cq/20261121/7f/a2/9~x")
		const node = { inputs: { filename_prefix: "cq/20261119/7f/a2/9~still" } }
		expect(isolateOutputs({ "9": node }, job, day).saving).toEqual(["9"])
	})

	test("leave the given workflow as it was", () => {
		const given = { "9": { inputs: { filename_prefix: "x" } } }
		isolateOutputs(given, job, day)
		expect(given["9"].inputs.filename_prefix).toBe("x")
	})

	test("of every kind are named; previews are left out; values that are no files stay", () => {
		const file = { filename: "a.mp4", subfolder: "cq", type: "output" }
		const { outputs, files } = outputsOf({
			outputs: {
				"1": { gifs: [{ ...file, format: "video/h264-mp4" }], text: ["said"] },
				"2": { images: [{ filename: "preview.png", subfolder: "", type: "temp" }] },
				"3": { "3d": [{ filename: "b.glb" }], audio: [file] },
			},
		})
		expect(outputs).toEqual({
			"1": { gifs: [{ ...file, format: "video/h264-mp4" }], text: ["said"] },
			"3": { "3d": [{ filename: "b.glb", subfolder: "", type: "output" }], audio: [file] },
		})
		expect(files.map(({ filename }) => filename)).toEqual(["a.mp4", "b.glb", "a.mp4"])
	})

	test("must be regular files with content, below the output directory", async () => {
		await writeFile(join(directory, "good.png"), "x")
		await writeFile(join(directory, "empty.png"), "")
		await symlink("/etc/hostname", join(directory, "link.png"))
		const wrong = (filename: string, subfolder = "") =>
			wrongFile(directory, [{ filename, subfolder, type: "output" }])
		expect(await wrong("good.png")).toBeUndefined()
		expect(await wrong("empty.png")).toMatch(/is empty/)
		expect(await wrong("link.png")).toMatch(/no regular file/)
		expect(await wrong("hostname", "../../etc")).toMatch(/lies outside/)
		expect(await wrong("none.png")).toMatch(/is not in/)
	})
})

describe("what ComfyUI's history says", () => {
	const entry = (status_str: string, messages: [string, object][], outputs = {}) => ({
		outputs,
		status: {
			status_str,
			completed: status_str === "success",
			messages: messages as [string, Record<string, unknown>][],
		},
	})

	test.each([
		["success with outputs", entry("success", [], { "9": {} }), undefined],
		[
			"success without any",
			entry("success", []),
			"ComfyUI reported success and saved nothing (expected of node 9)",
		],
		["an error without a message", entry("error", []), "ComfyUI reported error without a reason"],
		[
			"an interrupt",
			entry("error", [["execution_interrupted", {}]]),
			"interrupted at the worker, by nobody we know",
		],
		[
			"no memory",
			entry("error", [
				[
					"execution_error",
					{
						node_type: "KSampler",
						node_id: "3",
						exception_type: "torch.cuda.OutOfMemoryError",
						exception_message: "no room\n",
					},
				],
			]),
			"the GPU ran out of memory in KSampler 3: no room",
		],
	])("%s", (_, said, expected) => {
		expect(failureOf(said, ["9"])).toBe(expected)
	})
})

describe("progress", () => {
	const begin = { prompt_id: "p", phase: "submitting" as const, executed: 0 }
	const say = (type: string, data: object) => JSON.stringify({ type, data })

	test("follows the node at work, and forgets the steps of the one before", () => {
		let now = progressAfter(begin, say("executing", { prompt_id: "p", node: "3" })).progress
		now = progressAfter(now, say("progress", { prompt_id: "p", node: "3", value: 5, max: 20 })).progress
		expect(now).toEqual({ prompt_id: "p", phase: "polling", node: "3", value: 5, max: 20, executed: 0 })
		now = progressAfter(now, say("executed", { prompt_id: "p", node: "3" })).progress
		now = progressAfter(now, say("executing", { prompt_id: "p", node: "9" })).progress
		expect(now).toEqual({ prompt_id: "p", phase: "polling", node: "9", executed: 1 })
	})

	test("of another prompt, of nothing, and of no JSON is nothing new", () => {
		for (const text of [
			say("executing", { prompt_id: "other", node: "3" }),
			say("status", {}),
			"{",
			"[]",
			"null",
		])
			expect(progressAfter(begin, text)).toEqual({ progress: begin, ended: false })
	})

	test.each(["execution_success", "execution_error", "execution_interrupted"])("%s is an end", (type) => {
		expect(progressAfter(begin, say(type, { prompt_id: "p" })).ended).toBe(true)
	})

	test("a null node is the end in older ComfyUIs", () => {
		expect(progressAfter(begin, say("executing", { prompt_id: "p", node: null })).ended).toBe(true)
	})
})

describe("GPU memory", () => {
	const gpu = { name: "GPU", totalMb: 24_000, obtainableMb: 12_000 }

	test("needed is what the job says, as number or text, else the default", () => {
		const said = [16_000, "16000", " ", "much", -1, Number.NaN, null, undefined]
		expect(said.map((estimated_vram) => neededMb({ estimated_vram }, 8192))).toEqual([
			...[16_000, 16_000],
			...Array.from({ length: 6 }, () => 8192),
		])
	})

	test("fits up to the margin exactly, not now above it, and never above the whole GPU", () => {
		expect(fitOf(gpu, 9952, 2048).state).toBe("fits")
		expect(fitOf(gpu, 9953, 2048).state).toBe("not now")
		expect(fitOf(gpu, 21_953, 2048).state).toBe("never")
		expect(fitOf(undefined, 1_000_000, 2048).state).toBe("fits")
	})
})

describe("the note", () => {
	const note = { version: 1, id: "j", attempt: 1, promptId: "p", saving: ["9"], startedMs: 1 } as const

	test("comes back as it was written, and is gone when it is cleared", async () => {
		const notebook = openNotebook(join(directory, "notes"))
		await notebook.prepare()
		expect(await notebook.read()).toBeUndefined()
		await notebook.write({ ...note, saving: ["9"], ending: { state: "completed", result: { a: 1 } } })
		expect(await notebook.read()).toMatchObject({ id: "j", ending: { state: "completed", result: { a: 1 } } })
		await notebook.clear()
		expect(await notebook.read()).toBeUndefined()
	})

	test("that is torn or foreign counts as none", async () => {
		const place = join(directory, "torn")
		const notebook = openNotebook(place)
		await notebook.prepare()
		for (const text of ['{"version":1,"id"', '{"version":2}', "null"]) {
			await writeFile(join(place, "job.json"), text)
			expect(await notebook.read()).toBeUndefined()
		}
	})
})

describe("the bell", () => {
	test("rung while nobody waits cuts the next wait short, once", async () => {
		const one = bell()
		one.ring()
		await one.wait(60_000)
		const startedAt = performance.now()
		await one.wait(30)
		expect(performance.now() - startedAt).toBeGreaterThan(20)
	})
})
