// The extension's own Python: who this ComfyUI is for, and what it says of a workflow. aiohttp is real; ComfyUI's modules
// `server` and `execution` are stand-ins of the same shape.
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { startComfyui } from "../../support/comfyui-page/world.ts"
import { describeWith } from "../../support/parts.ts"
import { clientOf } from "../../support/queue-manager.ts"

describeWith("chromium", "the extension's Python", () => {
	let home = ""
	const started: Awaited<ReturnType<typeof startComfyui>>[] = []

	beforeEach(() => {
		home = mkdtempSync(join(tmpdir(), "comfyume-python-"))
	})
	afterEach(() => {
		for (const { process } of started.splice(0)) process.kill("SIGKILL")
		rmSync(home, { recursive: true, force: true })
	})

	async function start(environment: Record<string, string> = {}) {
		const comfyui = await startComfyui("user007", home, environment)
		started.push(comfyui)
		return clientOf(`http://127.0.0.1:${comfyui.port}`)
	}
	const picture = (width: number) => ({ class_type: "MadeUpPicture", inputs: { seed: 1, width } })
	const save = (node: string) => ({ class_type: "SaveImage", inputs: { images: [node, 0] } })

	test("says whose it is, what is on and what it begins with", async () => {
		const ask = await start()
		const { body, headers } = await ask("GET", "/api/comfyume/settings")
		expect(body).toEqual({
			user_id: "user007",
			extensions: ["queue-redirect", "default-workflow", "status-banner", "console-reports"],
			default_workflow: "first steps",
		})
		expect(headers.get("cache-control")).toBe("no-store")
	})

	test.each([
		["none", []],
		["status-banner, queue-redirect,made-up", ["queue-redirect", "status-banner"]],
	])("COMFYUME_EXTENSIONS=%s leaves %j on", async (extensions, on) => {
		const ask = await start({ COMFYUME_EXTENSIONS: extensions, COMFYUME_DEFAULT_WORKFLOW: "other.json" })
		const { body } = await ask("GET", "/comfyume/settings")
		expect(body).toMatchObject({ extensions: on, default_workflow: "other" })
	})

	test("checks a workflow as ComfyUI's POST /prompt does, and runs nothing", async () => {
		const ask = await start()
		const good = { "1": picture(64), "2": save("1") }
		expect((await ask("POST", "/api/comfyume/validate", { prompt: good })).body).toEqual({
			prompt: good,
			outputs: ["2"],
			node_errors: {},
		})
		const bad = await ask("POST", "/api/comfyume/validate", { prompt: { "1": picture(-1), "2": save("1") } })
		expect(bad.status).toBe(400)
		expect(bad.body.error.type).toBe("prompt_outputs_failed_validation")
		expect(bad.body.node_errors["1"].errors[0].extra_info.input_name).toBe("width")
		// One output is wrong and one isn't: ComfyUI runs the good one.
		const half = { "1": picture(64), "2": save("1"), "3": picture(-1), "4": save("3") }
		const { status, body } = await ask("POST", "/api/comfyume/validate", { prompt: half })
		expect([status, body.outputs, Object.keys(body.node_errors)]).toEqual([200, ["2"], ["3"]])
		const targets = { prompt: half, partial_execution_targets: ["4"] }
		expect((await ask("POST", "/api/comfyume/validate", targets)).status).toBe(400)
		expect((await ask("GET", "/asked-natively")).body).toBe(0)
	})

	test("answers what is no prompt as ComfyUI does", async () => {
		const ask = await start()
		for (const body of ["not json", "[]", '{"prompt": 1}']) {
			const headers = { "content-type": "application/json" }
			const answer = await ask("POST", "/comfyume/validate", body, headers)
			expect([answer.status, answer.body.error.type]).toEqual([400, "no_prompt"])
		}
	})

	test("says that it can't where ComfyUI has other insides than these", async () => {
		const ask = await start({ WITHOUT_VALIDATION: "1" })
		const answer = await ask("POST", "/comfyume/validate", { prompt: { "1": picture(1) } })
		expect(answer.status).toBe(501)
		expect(answer.body.unavailable).toContain("execution")
	})
})
