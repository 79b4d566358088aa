// The agent between the real queue manager on a real Redis and a ComfyUI stand-in: a job's way from submit to result.
import { mkdtemp, rm, stat } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import { promptIdOf } from "../../../src/lib/formats/prompt-id.ts"
import { serviceToken } from "../../../src/lib/formats/service-token.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { type Comfyui, startComfyui } from "../../support/comfyui.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import {
	type Ask,
	clientOf,
	openEvents,
	startQueueManager,
	type TestQueueManager,
} from "../../support/queue-manager.ts"
import { startTestRedis, type TestRedis } from "../../support/redis.ts"
import { startAgentProcess } from "./support/agent-process.ts"

describeWith("redis", "a job between the real queue manager and ComfyUI", () => {
	const proxySecret = "made-up proxy secret of forty letters....."
	const tokenKey = "made-up token key of more than forty letters."
	const asUser = { "x-comfyume-proxy": proxySecret, "x-comfyume-user": "user001", "x-comfyume-role": "user" }
	const picture = { "8": { class_type: "EmptyImage", inputs: { width: 8, height: 8 } } }
	const save = { "9": { class_type: "SaveImage", inputs: { filename_prefix: "still", images: ["8", 0] } } }
	const sleep = (ms: number) => ({ "8": { class_type: "StandInSleep", inputs: { ms } }, ...save })
	const image = { ...picture, ...save }

	let directory = ""
	let redis: TestRedis
	let manager: TestQueueManager
	let user: Ask

	beforeAll(async () => {
		directory = await mkdtemp(join(tmpdir(), "comfyume-agent-real-"))
		redis = await startTestRedis()
		manager = await startQueueManager({
			REDIS_HOST: redis.socket,
			AUTH_MODE: "proxy",
			PROXY_SECRET: proxySecret,
			TOKEN_KEY: tokenKey,
			WORKER_HEARTBEAT_TIMEOUT: "2",
		})
		user = clientOf(manager.url, asUser)
	})
	afterAll(async () => {
		await manager?.[Symbol.asyncDispose]()
		await redis?.[Symbol.asyncDispose]()
		await rm(directory, { recursive: true, force: true })
	})

	const comfyuiOf = () =>
		startComfyui({ outputDirectory: join(directory, "outputs"), timing: { runMs: 20, pngEmptyMs: 20 } })

	function startAgent(name: string, comfyui: Comfyui, over: Record<string, string> = {}) {
		return startAgentProcess({
			WORKER_ID: name,
			WORKER_TOKEN: serviceToken(new Secret(tokenKey), "worker", name, 1),
			WORKER_HEARTBEAT_TIMEOUT: "2",
			WORKER_STATE_PATH: join(directory, name),
			OUTPUTS_PATH: join(directory, "outputs"),
			QUEUE_MANAGER_URL: manager.url,
			COMFYUI_URL: comfyui.url,
			...over,
		})
	}

	async function submitted(workflow: object): Promise<string> {
		const answer = await user("POST", "/api/jobs", { user_id: "user001", workflow })
		expect(answer.status, answer.text).toBe(201)
		return answer.body.id
	}

	const is = (id: string, status: string, output: () => string) =>
		poll(async () => (await user("GET", `/api/jobs/${id}`)).body.status === status, {
			what: `${id} is ${status}`,
			deadlineMs: 15_000,
		}).catch((error) => {
			throw new Error(`${error.message}\n${output()}\n${manager.log()}`)
		})

	test("shows progress on the WebSocket, and completes with the files that were written", async () => {
		await using comfyui = await comfyuiOf()
		const events = await openEvents(manager.url, "/ws", asUser)
		const id = await submitted(sleep(600))
		await using agent = startAgent("gpu-a", comfyui)
		const progress = await events.next(
			"progress of the node at work",
			({ type, data }) => type === "comfyume_progress" && JSON.stringify(data).includes('"node":"8"'),
		)
		expect(JSON.stringify(progress)).toContain(id)
		await is(id, "completed", agent.output)
		await events.next("the end", ({ type, data }) => type === "job_updated" && data.status === "completed")
		await events.close()
		const { result, worker_id } = (await user("GET", `/api/jobs/${id}`)).body
		expect(worker_id).toBe("gpu-a")
		const [file] = result.outputs["9"].images
		const written = await stat(join(directory, "outputs", file.subfolder, file.filename))
		expect(written.size).toBeGreaterThan(0)
	})

	test("that is cancelled while it runs is interrupted in ComfyUI, and stays cancelled", async () => {
		await using comfyui = await comfyuiOf()
		await using agent = startAgent("gpu-b", comfyui)
		const id = await submitted(sleep(60_000))
		const promptId = promptIdOf(id, 1)
		await poll(() => comfyui.runningId() === promptId, { what: "it runs", deadlineMs: 15_000 })
		expect((await user("DELETE", `/api/jobs/${id}`)).status).toBe(204)
		await poll(() => comfyui.runningId() === undefined, { what: "it was interrupted", deadlineMs: 15_000 })
		const interrupt = comfyui.requests.find(({ path }) => path === "/interrupt")
		expect(interrupt?.body).toEqual({ prompt_id: promptId })
		// The agent goes on with another job, and what it says of that one changes nothing.
		const next = await submitted(image)
		await is(next, "completed", agent.output)
		expect((await user("GET", `/api/jobs/${id}`)).body).toMatchObject({ status: "cancelled", result: null })
	})

	test("whose agent is killed is run by another one when the lease is over, and ends once", async () => {
		await using first = await comfyuiOf()
		await using second = await comfyuiOf()
		const events = await openEvents(manager.url, "/ws", asUser)
		const agent = startAgent("gpu-c", first)
		const id = await submitted(sleep(1500))
		await poll(() => first.runningId() === promptIdOf(id, 1), { what: "it runs", deadlineMs: 15_000 })
		agent.signal("SIGKILL")
		await agent.exit
		await using other = startAgent("gpu-d", second)
		await is(id, "completed", other.output)
		expect(second.executed).toEqual([promptIdOf(id, 2)])
		// The first one comes back, finds its result, and is told that nobody waits for it.
		await using returned = startAgent("gpu-c", first)
		await poll(() => returned.output().includes("asks for jobs"), { what: "it is back", deadlineMs: 15_000 })
		const ends = events.received.filter(
			({ type, data }) => type === "job_updated" && data.id === id && data.status === "completed",
		)
		expect(ends).toHaveLength(1)
		expect((await user("GET", `/api/jobs/${id}`)).body).toMatchObject({
			status: "completed",
			worker_id: "gpu-d",
		})
		await events.close()
	})

	test("that nobody's GPU holds fails with the numbers, not with silence", async () => {
		await using comfyui = await comfyuiOf()
		await using agent = startAgent("gpu-e", comfyui)
		const body = { user_id: "user001", workflow: image, metadata: { estimated_vram: 90_000 } }
		const id = (await user("POST", "/api/jobs", body)).body.id
		await is(id, "failed", agent.output)
		expect((await user("GET", `/api/jobs/${id}`)).body.error).toMatch(/needs 90000 MB of GPU memory/)
		expect(comfyui.executed).toEqual([])
	})

	test("survives an agent that is told to go: handed back, and run by the next one", async () => {
		await using comfyui = await comfyuiOf()
		const agent = startAgent("gpu-f", comfyui, { WORKER_DRAIN_TIMEOUT: "0.2" })
		const id = await submitted(sleep(3000))
		await poll(() => comfyui.runningId() === promptIdOf(id, 1), { what: "it runs", deadlineMs: 15_000 })
		agent.signal("SIGTERM")
		expect(await agent.exit, agent.output()).toBe(0)
		expect((await user("GET", `/api/jobs/${id}`)).body.status).toBe("pending")
		await using next = startAgent("gpu-g", comfyui)
		await is(id, "completed", next.output)
		expect(comfyui.executed).toEqual([promptIdOf(id, 2)])
	})
})
