// The ComfyUI stand-in behaves as the real one was seen to: what is built against it stands or falls with this.
import { mkdtempSync, readdirSync, rmSync, statSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, test } from "vitest"
import { startComfyui } from "../../support/comfyui.ts"
import { poll } from "../../support/poll.ts"
import { imageWorkflow, quickTiming, videoWorkflow } from "../../support/share-world.ts"

async function world(options: Partial<Parameters<typeof startComfyui>[0]> = {}) {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-comfyui-"))
	const comfyui = await startComfyui({ outputDirectory: directory, timing: quickTiming, ...options })
	const post = async (path: string, body: unknown) => {
		const response = await fetch(`${comfyui.url}${path}`, { method: "POST", body: JSON.stringify(body) })
		const text = await response.text()
		return {
			status: response.status,
			body: text === "" ? undefined : (JSON.parse(text) as Record<string, unknown>),
		}
	}
	const get = async (path: string) =>
		(await fetch(`${comfyui.url}${path}`)).json() as Promise<Record<string, unknown>>
	const done = (id: string) =>
		poll(async () => Object.keys(await get(`/history/${id}`)).length > 0, { what: id, deadlineMs: 10_000 })
	return {
		...comfyui,
		directory,
		post,
		get,
		done,
		[Symbol.asyncDispose]: async () => {
			await comfyui[Symbol.asyncDispose]()
			rmSync(directory, { recursive: true, force: true })
		},
	}
}

test("it takes our prompt id, tells its events over the socket, and keeps the history", async () => {
	await using comfyui = await world()
	const events: { type: string; data: Record<string, unknown> }[] = []
	const socket = new WebSocket(`${comfyui.url.replace("http", "ws")}/ws?clientId=me`)
	socket.addEventListener("message", ({ data }) => events.push(JSON.parse(String(data))))
	await poll(() => events.some(({ type }) => type === "status"), { what: "the socket", deadlineMs: 5_000 })
	const answer = await comfyui.post("/prompt", {
		prompt: imageWorkflow(2),
		prompt_id: "own-a1",
		client_id: "me",
	})
	expect(answer).toEqual({ status: 200, body: { prompt_id: "own-a1", number: 0, node_errors: {} } })
	await comfyui.done("own-a1")
	await poll(() => events.some(({ type }) => type === "execution_success"), {
		what: "success",
		deadlineMs: 5_000,
	})
	expect(events.map(({ type }) => type)).toEqual(
		expect.arrayContaining([
			"execution_start",
			"execution_cached",
			"executing",
			"progress",
			"executed",
		]) as unknown,
	)
	const files = ["Film_00001_.png", "Film_00002_.png"]
	expect(await comfyui.get("/history/own-a1")).toMatchObject({
		"own-a1": {
			outputs: { "9": { images: files.map((filename) => ({ filename, subfolder: "", type: "output" })) } },
			status: { status_str: "success" },
		},
	})
	expect(readdirSync(comfyui.directory)).toEqual(files)
	socket.close()
})

test("an identical graph writes nothing: it is cached", async () => {
	await using comfyui = await world()
	for (const id of ["one", "two"]) {
		await comfyui.post("/prompt", { prompt: imageWorkflow(), prompt_id: id })
		await comfyui.done(id)
	}
	expect(readdirSync(comfyui.directory)).toHaveLength(1)
})

test("a PNG is empty first, and an MP4 stays at 48 bytes", async () => {
	await using comfyui = await world()
	const sizes = new Map<string, Set<number>>()
	await comfyui.post("/prompt", { prompt: { ...imageWorkflow(), ...videoWorkflow() }, prompt_id: "x" })
	await poll(
		async () => {
			for (const path of ["Film_00001_.png", "video/Take_00001_.mp4"]) {
				const size = statSync(join(comfyui.directory, path), { throwIfNoEntry: false })?.size
				if (size !== undefined) sizes.set(path, (sizes.get(path) ?? new Set()).add(size))
			}
			return comfyui.executed.includes("x")
		},
		{ what: "the run", deadlineMs: 10_000, intervalMs: 10 },
	)
	expect([...(sizes.get("Film_00001_.png") ?? [])][0]).toBe(0)
	expect([...(sizes.get("video/Take_00001_.mp4") ?? [])][0]).toBe(48)
})

test("what is invalid is refused with the node's errors, and an interrupt names its prompt", async () => {
	await using comfyui = await world()
	const sick = { "9": { class_type: "SaveImage", inputs: {} } }
	expect(await comfyui.post("/prompt", { prompt: sick })).toMatchObject({
		status: 400,
		body: {
			error: { type: "prompt_outputs_failed_validation" },
			node_errors: { "9": { class_type: "SaveImage" } },
		},
	})
	expect(
		await comfyui.post("/prompt", { prompt: { "1": { class_type: "Gone", inputs: {} } } }),
	).toMatchObject({
		status: 400,
		body: { error: { type: "invalid_prompt" } },
	})
	const slow = {
		"0": { class_type: "StandInSleep", inputs: { ms: 60_000 } },
		"9": { class_type: "SaveImage", inputs: { images: ["0", 0], filename_prefix: "x" } },
	}
	for (const id of ["first", "second"]) await comfyui.post("/prompt", { prompt: slow, prompt_id: id })
	await poll(() => comfyui.runningId() === "first", { what: "the first", deadlineMs: 5_000 })
	await comfyui.post("/interrupt", { prompt_id: "second" })
	expect(comfyui.runningId()).toBe("first")
	await comfyui.post("/queue", { delete: ["second"] })
	await comfyui.post("/interrupt", { prompt_id: "first" })
	await comfyui.done("first")
	expect(await comfyui.get("/history/first")).toMatchObject({ first: { status: { status_str: "error" } } })
	expect(await comfyui.get("/queue")).toEqual({ queue_running: [], queue_pending: [] })
})
