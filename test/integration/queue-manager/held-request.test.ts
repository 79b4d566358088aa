// SERVERLESS_TRANSPORT=held: queue managers and agents as processes, one agent beside each ComfyUI stand-in, behind the
// load balancer's stand-in, which deals requests out in turn.
import { writeFileSync } from "node:fs"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { expect, test } from "vitest"
import { promptIdOf } from "../../../src/lib/formats/prompt-id.ts"
import { makePng } from "../../support/comfyui-files.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import { openEvents } from "../../support/queue-manager.ts"
import { createServerlessWorld, jobWhen, submitTo } from "../../support/serverless-world.ts"
import { imageWorkflow } from "../../support/share-world.ts"
import { type AgentProcess, startAgentProcess } from "../worker-agent/support/agent-process.ts"

const key = "made-up-inference-key"
const slowWorkflow = (ms: number) => ({
	"0": { class_type: "StandInSleep", inputs: { ms } },
	"9": { class_type: "SaveImage", inputs: { images: ["0", 0], filename_prefix: "Slow" } },
})

async function createWorld({ token = key }: { token?: string } = {}) {
	const world = await createServerlessWorld()
	const agents: AgentProcess[] = world.replicas.map(({ url }, index) =>
		startAgentProcess({
			WORKER_MODE: "held",
			WORKER_ID: `gpu-${index + 1}`,
			WORKER_TOKEN: token,
			WORKER_RUN_HOST: "127.0.0.1",
			WORKER_RUN_PORT: "0",
			WORKER_DRAIN_TIMEOUT: "0.5",
			COMFYUI_URL: url,
			OUTPUTS_PATH: world.share,
		}),
	)
	const ports = await Promise.all(
		agents.map((agent) =>
			poll(() => agent.lines().find(({ msg }) => msg === "waits for requests")?.["port"], {
				what: `an agent listens: ${agent.output()}`,
				deadlineMs: 30_000,
			}),
		),
	)
	world.balancer.replicas.splice(0, 2, ...ports.map((port) => `http://127.0.0.1:${String(port)}`))
	return {
		world,
		agents,
		manager: (more: Record<string, string> = {}) =>
			world.manager({ SERVERLESS_TRANSPORT: "held", SERVERLESS_SLOTS: "3", ...more }),
		running: () => world.replicas.map((replica) => replica.runningId()),
		/** Where a prompt runs, as soon as it does. */
		async runsAt(id: string, attempt = 1): Promise<number> {
			const where = () =>
				world.replicas.map((replica) => replica.runningId()).indexOf(promptIdOf(id, attempt))
			await poll(() => where() >= 0, { what: `${id} runs`, deadlineMs: 30_000 })
			return where()
		},
		async [Symbol.asyncDispose]() {
			for (const agent of agents) await agent[Symbol.asyncDispose]()
			await world[Symbol.asyncDispose]()
		},
	}
}

describeWith("redis", "a request that is held", () => {
	test("each job is one request in flight; a busy agent says so and another one, or the same later, takes it", async () => {
		await using place = await createWorld()
		const { ask, url } = await place.manager()
		const events = await openEvents(url)
		const ids = [
			await submitTo(ask, slowWorkflow(3_000)),
			await submitTo(ask, slowWorkflow(3_001), { user_id: "user002" }),
			await submitTo(ask, imageWorkflow(2), { user_id: "user003" }),
		]
		const jobs = []
		for (const id of ids) jobs.push(await jobWhen(ask, id, "completed", 60_000))
		for (const [index, job] of jobs.entries())
			expect(job.result).toMatchObject({ prompt_id: promptIdOf(ids[index] ?? "", 1), output_path: null })
		expect(["user001", "user002", "user003"].map(place.world.list)).toEqual([
			["Slow_00001_.png"],
			["Slow_00001_.png"],
			["Film_00001_.png", "Film_00002_.png"],
		])
		// Three jobs for two GPUs: the third was refused at least once, and none was run twice.
		const asked = place.world.balancer.seen.filter(({ path }) => path === "/run").length
		expect(asked).toBeGreaterThan(3)
		expect(place.world.replicas.map(({ executed }) => executed.length).reduce((a, b) => a + b)).toBe(3)
		const told = events.received.filter(({ type }) => type === "comfyume_progress")
		expect(told.some(({ data }) => data.prompt_id === ids[0] && data.node === "9")).toBe(true)
	}, 120_000)

	test("a file that comes late is added to the result once, and those that stand there aren't added again", async () => {
		await using place = await createWorld()
		const { ask } = await place.manager()
		const graph = { extra_pnginfo: { workflow: { nodes: [7] } } }
		const id = await submitTo(ask, imageWorkflow(), { metadata: graph })
		const { result } = await jobWhen(ask, id, "completed", 60_000)
		// The graph goes along, so that the picture can be opened as a workflow.
		const asked = place.world.replicas.flatMap(({ requests }) => requests)
		expect(asked.find(({ path }) => path === "/prompt")?.body).toMatchObject({ extra_data: graph })
		const [path = ""] = place.world.find("9~Film_00001_.png")
		const prefix = path.slice(place.world.share.length + 1).replace(/_00001_\.png$/, "")
		const prompt = { "9": { class_type: "SaveImage", inputs: { filename_prefix: prefix } } }
		writeFileSync(path.replace("00001", "00002"), makePng("late", { prompt }))
		const images = async () => (await ask("GET", `/api/jobs/${id}`)).body.result.outputs["9"].images
		await poll(async () => (await images()).length > 1, { what: "the amendment", deadlineMs: 40_000 })
		const late = { filename: "Film_00002_.png", subfolder: "user001", type: "output" }
		expect(await images()).toEqual([...result.outputs["9"].images, late])
		expect(place.world.list("user001")).toEqual(["Film_00001_.png", "Film_00002_.png"])
	}, 120_000)

	test("a replica that is killed in the middle costs an attempt, and another one does the job", async () => {
		await using place = await createWorld()
		const { ask } = await place.manager()
		const id = await submitTo(ask, slowWorkflow(4_000))
		const at = await place.runsAt(id)
		place.agents[at]?.signal("SIGKILL")
		await place.agents[at]?.exit
		const job = await jobWhen(ask, id, "completed", 90_000)
		expect(job.result.prompt_id).toBe(promptIdOf(id, 2))
		expect(place.world.list("user001")).toEqual(["Slow_00001_.png"])
	}, 120_000)

	test("cancelling closes the request, which reaches ComfyUI; the agent takes the next job", async () => {
		await using place = await createWorld()
		const { ask } = await place.manager()
		const id = await submitTo(ask, slowWorkflow(90_000))
		await place.runsAt(id)
		expect((await ask("DELETE", `/api/jobs/${id}`)).status).toBe(204)
		await poll(() => place.running().every((one) => one === undefined), {
			what: "the interrupt",
			deadlineMs: 20_000,
		})
		for (let count = 0; count < 2; count++)
			await jobWhen(ask, await submitTo(ask, imageWorkflow()), "completed", 60_000)
		expect((await ask("GET", `/api/jobs/${id}`)).body).toMatchObject({ status: "cancelled", result: null })
		expect(place.world.list("user001")).toEqual(["Film_00001_.png", "Film_00002_.png"])
	}, 120_000)

	test("a queue manager or an agent that is stopped gives the job back, and it is done once more and delivered once", async () => {
		await using place = await createWorld()
		const first = await place.manager()
		const id = await submitTo(first.ask, slowWorkflow(3_000))
		await place.runsAt(id)
		await first.process.terminate()
		const { ask } = await place.manager()
		const at = await place.runsAt(id, 2)
		place.agents[at]?.signal("SIGTERM")
		expect(await place.agents[at]?.exit).toBe(0)
		const job = await jobWhen(ask, id, "completed", 90_000)
		expect(job.result.prompt_id).toBe(promptIdOf(id, 3))
		expect(place.world.list("user001")).toEqual(["Slow_00001_.png"])
	}, 150_000)

	test("what ComfyUI says of a failure is the job's, at once; the GPU's memory is looked at before a job is taken", async () => {
		await using place = await createWorld()
		for (const replica of place.world.replicas) replica.setVram({ total: 24 * 2 ** 30, free: 2 ** 30 })
		const { ask } = await place.manager()
		const broken = { ...imageWorkflow(), "3": { class_type: "StandInFail", inputs: {} } }
		const id = await submitTo(ask, broken)
		await poll(() => place.agents.some((agent) => agent.output().includes("takes no job")), {
			what: "it is refused",
			deadlineMs: 30_000,
		})
		const prompts = () =>
			place.world.replicas.flatMap(({ requests }) => requests.filter(({ path }) => path === "/prompt"))
		expect(prompts()).toEqual([])
		for (const replica of place.world.replicas) replica.setVram({ total: 24 * 2 ** 30, free: 20 * 2 ** 30 })
		expect((await jobWhen(ask, id, "failed", 60_000)).error).toMatch(/out of memory/)
	}, 120_000)

	test("another token is refused before it costs a job, is never shown, and nothing runs", async () => {
		await using place = await createWorld({ token: "made-up-other-token" })
		const { ask, process } = await place.manager()
		const id = await submitTo(ask, imageWorkflow())
		const failed = async () => (await ask("GET", "/health")).body.serverless_preflight === "failed"
		await poll(failed, { what: "the refusal is said", deadlineMs: 30_000 })
		const said = (await ask("GET", "/api/endpoint")).text
		expect(said).toMatch(/answers 401.*SERVERLESS_API_KEY/)
		expect((await ask("GET", `/api/jobs/${id}`)).body.status).toBe("pending")
		expect(place.running()).toEqual([undefined, undefined])
		const written = [said, process.log(), ...place.agents.map((agent) => agent.output())].join("")
		expect(written).not.toMatch(/made-up-(inference-key|other-token)/)
	}, 120_000)
})

test("a request that is closed before it is answered runs nothing, and the agent takes the next one", async () => {
	let asked = 0
	let answerQueue = () => {}
	const prompts: unknown[] = []
	const comfyui = createServer((request, response) => {
		if (request.url === "/queue") {
			asked++
			answerQueue = () => response.end('{"queue_running": [], "queue_pending": []}')
			if (asked > 1) answerQueue()
			return
		}
		if (request.url === "/system_stats") return void response.end('{"system": {}, "devices": []}')
		if (request.url === "/prompt") prompts.push(request.url)
		response.writeHead(request.url === "/prompt" ? 400 : 404).end('{"error": {"message": "refused"}}')
	})
	await new Promise<void>((resolve) => comfyui.listen(0, "127.0.0.1", resolve))
	const { port } = comfyui.address() as AddressInfo
	await using agent = startAgentProcess({
		WORKER_MODE: "held",
		WORKER_TOKEN: key,
		WORKER_RUN_HOST: "127.0.0.1",
		WORKER_RUN_PORT: "0",
		COMFYUI_URL: `http://127.0.0.1:${port}`,
	})
	const deadlineMs = 30_000
	const listening = () => agent.lines().find(({ msg }) => msg === "waits for requests")?.["port"]
	const at = await poll(listening, { what: "the agent listens", deadlineMs })
	const run = (id: string, signal: AbortSignal) =>
		fetch(`http://127.0.0.1:${String(at)}/run`, {
			method: "POST",
			headers: { authorization: `Bearer ${key}` },
			body: JSON.stringify({ id, attempt: 1, workflow: { "9": { class_type: "SaveImage", inputs: {} } } }),
			signal,
		})
	try {
		// ComfyUI takes its time to say whether it is free, and nobody waits for that.
		const impatient = new AbortController()
		const first = run("job-1", impatient.signal)
		await poll(() => asked === 1, { what: "ComfyUI is asked", deadlineMs })
		impatient.abort()
		await expect(first).rejects.toThrow()
		answerQueue()
		const second = async () => {
			const answer = await run("job-2", AbortSignal.timeout(deadlineMs))
			const text = await answer.text()
			return answer.status === 200 && text
		}
		expect(
			await poll(second, { what: `the agent is free: ${agent.output()}`, deadlineMs: 20_000 }),
		).toContain("ComfyUI refused")
		expect(prompts.length).toBe(1)
	} finally {
		comfyui.closeAllConnections()
		comfyui.close()
	}
}, 90_000)

test("nobody's agent opens a port without a token", async () => {
	await using agent = startAgentProcess({ WORKER_MODE: "held", COMFYUI_URL: "http://127.0.0.1:1" })
	expect(await agent.exit).toBe(2)
	expect(agent.output()).toMatch(/WORKER_TOKEN .*is needed with WORKER_MODE=held/)
})
