// The agent beside a ComfyUI stand-in and a queue manager stand-in: every way a job can end.
import { mkdtemp, readdir, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { promptIdOf } from "../../../src/lib/formats/prompt-id.ts"
import { poll } from "../../support/poll.ts"
import { type AgentProcess, startAgentProcess } from "./support/agent-process.ts"
import { type LocalComfyui, startLocalComfyui } from "./support/local-comfyui.ts"
import { type QueueStandIn, type StandInJob, startQueueStandIn } from "./support/queue-stand-in.ts"

const token = "made-up-worker-token"
const save = (inputs: object = {}) => ({
	"9": { class_type: "SaveImage", inputs: { filename_prefix: "still", ...inputs } },
})
const gib = 1024 ** 3

let directory = ""
let comfyui: LocalComfyui
let queue: QueueStandIn
let agents: AgentProcess[] = []

beforeEach(async () => {
	directory = await mkdtemp(join(tmpdir(), "comfyume-agent-"))
	comfyui = await startLocalComfyui(join(directory, "outputs"))
	queue = await startQueueStandIn({ token })
})
afterEach(async () => {
	for (const agent of agents) await agent[Symbol.asyncDispose]()
	agents = []
	await comfyui[Symbol.asyncDispose]()
	await queue[Symbol.asyncDispose]()
	await rm(directory, { recursive: true, force: true })
})

function startAgent(environment: Record<string, string> = {}): AgentProcess {
	const agent = startAgentProcess({
		QUEUE_MANAGER_URL: queue.url,
		COMFYUI_URL: comfyui.url,
		WORKER_TOKEN: token,
		WORKER_STATE_PATH: join(directory, "state"),
		OUTPUTS_PATH: join(directory, "outputs"),
		...environment,
	})
	agents.push(agent)
	return agent
}

const has = (what: string, condition: () => boolean | Promise<boolean>, deadlineMs = 8000) =>
	poll(condition, { what, deadlineMs }).catch((error) => {
		throw new Error(`${error.message}\n${agents.map((agent) => agent.output()).join("\n")}`)
	})
const ends = (job: StandInJob, status: StandInJob["status"]) =>
	has(`${job.id} is ${status}`, () => job.status === status)
const runs = (job: StandInJob) =>
	has(`${job.id} is executed`, () => comfyui.seen.executed.includes(promptIdOf(job.id, job.attempt)))

describe("a job that goes well", () => {
	test("is handed in with exactly its files, below a directory of its own", async () => {
		const job = queue.add(save())
		startAgent()
		await ends(job, "completed")
		const day = new Date().toISOString().slice(0, 10).replaceAll("-", "")
		const subfolder = `cq/${day}/${job.id}/a1`
		expect(job.result).toMatchObject({
			prompt_id: promptIdOf(job.id, 1),
			status: "success",
			execution_status: "success",
			number: 1,
			node_errors: {},
			output_path: join(directory, "outputs"),
			outputs: { "9": { images: [{ filename: "9~still_00001_.png", subfolder, type: "output" }] } },
		})
		expect(await readdir(join(directory, "outputs", subfolder))).toEqual(["9~still_00001_.png"])
	})

	test("has the graph of its metadata written into its pictures", async () => {
		const graph = { workflow: { nodes: [], made: "up" } }
		const job = queue.add(save(), { extra_pnginfo: graph })
		startAgent()
		await ends(job, "completed")
		expect(comfyui.seen.extraData).toEqual([{ extra_pnginfo: graph }])
	})

	test("tells how far it is: the node at work and its steps", async () => {
		const job = queue.add({ "3": { class_type: "KSampler", inputs: { hold: true } }, ...save() })
		startAgent()
		await has("progress of the node", () =>
			job.progress.some(
				({ node, value, max, phase }) => node === "3" && value === 2 && max === 2 && phase === "polling",
			),
		)
		await comfyui.letGo()
		await ends(job, "completed")
	})

	test("that saves nothing, and should not, is done with no outputs", async () => {
		const job = queue.add({ test: "workflow" })
		startAgent()
		await ends(job, "completed")
		expect(job.result?.outputs).toEqual({})
	})

	test("keeps its worker from asking for another one", async () => {
		const jobs = [queue.add(save({ hold: true })), queue.add(save())] as const
		startAgent()
		await runs(jobs[0])
		await has("heartbeats go on", () => queue.seen.heartbeats.length > 5)
		expect(jobs[1].status).toBe("pending")
		await comfyui.letGo()
		await ends(jobs[1], "completed")
		expect(comfyui.seen.mostQueued).toBe(1)
	})
})

describe("a job that fails", () => {
	test.each([
		[
			"an invalid workflow",
			{ invalid: true },
			/refused the workflow: Prompt outputs failed validation; SaveImage 9: Value not in list \(ckpt_name: 'x'\)/,
			false,
		],
		[
			"no memory left",
			{ fails: ["torch.OutOfMemoryError", "Allocation on device"] },
			/^the GPU ran out of memory in SaveImage 9: Allocation on device/,
			false,
		],
		["an exception", { fails: ["ValueError", "wrong shape"] }, /^SaveImage 9: wrong shape$/, false],
		["success without any output", { silent: true }, /saved nothing \(expected of node 9\)/, false],
		[
			"a file that is not there",
			{ forgets: true },
			/reported success, but ComfyUI names .*9~still_00001_\.png, and it is not in/,
			false,
		],
	])("%s is told as such", async (_, inputs, error, retryable) => {
		const job = queue.add(save(inputs))
		startAgent()
		await ends(job, "failed")
		expect(job.error).toMatch(error)
		expect(job.retryable).toBe(retryable)
		expect(job.endings).toBe(1)
	})

	test("because somebody interrupted it in ComfyUI says so", async () => {
		const job = queue.add(save({ hold: true }))
		startAgent()
		await runs(job)
		await fetch(`${comfyui.url}/interrupt`, { method: "POST" })
		await ends(job, "failed")
		expect(job.error).toMatch(/^interrupted at the worker/)
	})

	test("because ComfyUI was restarted in its middle may be tried again", async () => {
		const job = queue.add(save({ hold: true }))
		startAgent()
		await runs(job)
		await comfyui.crash()
		await comfyui.start()
		await ends(job, "failed")
		expect(job.error).toMatch(/^worker lost: ComfyUI knows nothing of the prompt any more/)
		expect(job.retryable).toBe(true)
	})

	test("because ComfyUI fell silent may be tried again, and no other job is asked for", async () => {
		const job = queue.add(save({ hold: true }))
		startAgent({ WORKER_COMFYUI_SILENCE: "1" })
		await runs(job)
		await comfyui.crash()
		await ends(job, "failed")
		expect(job.error).toMatch(/^worker lost: ComfyUI has not answered for 1 s/)
		expect(job.retryable).toBe(true)
		const { claims } = queue.seen
		const told = () => queue.seen.heartbeats.at(-1)?.about as { ready: boolean; because: string } | undefined
		await has(
			"it says why it doesn't work",
			() => told()?.because?.startsWith("ComfyUI doesn't answer") === true,
		)
		expect(queue.seen.claims).toBe(claims)
		await comfyui.start()
		await has("it asks again", () => queue.seen.claims > claims)
	})
})

describe("a job that is not wanted any more", () => {
	test("is interrupted by its prompt id, never handed in, and the next one runs", async () => {
		const job = queue.add(save({ hold: true }))
		startAgent()
		await runs(job)
		job.status = "cancelled"
		const next = queue.add(save())
		await ends(next, "completed")
		expect(comfyui.seen.interrupts).toContain(promptIdOf(job.id, 1))
		expect(job.endings).toBe(0)
		expect(comfyui.seen.mostQueued).toBe(1)
	})

	test("is not handed in when it is cancelled after it was done, while the queue manager failed", async () => {
		const job = queue.add(save())
		queue.seen.completeAnswers.push(...Array.from({ length: 20 }, () => 503))
		startAgent()
		await has("it was told once", () => queue.seen.completeAnswers.length < 20)
		job.status = "cancelled"
		const { claims } = queue.seen
		await has("it goes on to the next", () => queue.seen.claims > claims)
		expect(job.endings).toBe(0)
		expect(queue.seen.completeAnswers.length).toBeGreaterThan(10)
	})

	test("is dropped when its lease has gone to somebody else", async () => {
		const job = queue.add(save({ hold: true }))
		startAgent()
		await runs(job)
		job.token = "somebody else's"
		await has("an interrupt", () => comfyui.seen.interrupts.includes(promptIdOf(job.id, 1)))
		await has("it asks for work", () => queue.seen.claims > 1)
		expect(job.endings).toBe(0)
	})
})

describe("a queue manager that is away", () => {
	test("gets the result when it is back", async () => {
		const job = queue.add(save({ hold: true }))
		startAgent()
		await runs(job)
		await queue.stop()
		await comfyui.letGo()
		await has("it tried in vain", () => agents[0]?.output().includes("can't be told") === true)
		await queue.start()
		await ends(job, "completed")
		expect(job.endings).toBe(1)
	})

	test("gets the result from the next agent when this one is killed meanwhile", async () => {
		const job = queue.add(save({ hold: true }))
		const agent = startAgent()
		await runs(job)
		await queue.stop()
		await comfyui.letGo()
		await has("it tried in vain", () => agent.output().includes("can't be told"))
		agent.signal("SIGKILL")
		await agent.exit
		await queue.start()
		startAgent()
		await ends(job, "completed")
		expect(comfyui.seen.executed).toHaveLength(1)
	})

	test("that fails for a moment gets the result all the same", async () => {
		const job = queue.add(save())
		queue.seen.completeAnswers.push(500, 503)
		startAgent()
		await ends(job, "completed")
		expect(job.endings).toBe(1)
	})

	test("that can't take a result gets the failure instead, so that no job runs forever", async () => {
		const job = queue.add(save())
		queue.seen.completeAnswers.push(422)
		startAgent()
		await ends(job, "failed")
		expect(job.error).toMatch(/^its result was refused: .*HTTP 422/)
	})
})

describe("an agent that goes", () => {
	test("by SIGTERM lets a short job end first", async () => {
		const job = queue.add(save({ hold: true }))
		const agent = startAgent({ WORKER_DRAIN_TIMEOUT: "30" })
		await runs(job)
		agent.signal("SIGTERM")
		await has("it has heard", () => agent.output().includes("takes no more jobs"))
		await comfyui.letGo()
		expect(await agent.exit).toBe(0)
		expect(job.status).toBe("completed")
	})

	test("by SIGTERM hands a long job back, interrupted, when its time is up", async () => {
		const job = queue.add(save({ hold: true }))
		const agent = startAgent({ WORKER_DRAIN_TIMEOUT: "0.3" })
		await runs(job)
		agent.signal("SIGTERM")
		expect(await agent.exit).toBe(0)
		expect(job).toMatchObject({ status: "pending", releases: 1 })
		expect(comfyui.seen.interrupts).toContain(promptIdOf(job.id, 1))
		expect(await readdir(join(directory, "state"))).toEqual([])
	})

	test("by SIGKILL and comes back watches the same prompt on, without running it twice", async () => {
		const job = queue.add(save({ hold: true }))
		const agent = startAgent()
		await runs(job)
		agent.signal("SIGKILL")
		await agent.exit
		const beats = queue.seen.heartbeats.length
		startAgent()
		await has("it beats again", () => queue.seen.heartbeats.length > beats)
		await comfyui.letGo()
		await ends(job, "completed")
		expect(comfyui.seen.executed).toEqual([promptIdOf(job.id, 1)])
	})
})

describe("before a job is taken", () => {
	test("a ComfyUI that is busy otherwise is left alone", async () => {
		await comfyui.putForeign(save({ hold: true }))
		const job = queue.add(save())
		startAgent()
		await has("it waits", () => queue.seen.heartbeats.length > 2)
		expect(queue.seen.claims).toBe(0)
		await comfyui.letGo()
		await ends(job, "completed")
		expect(comfyui.seen.interrupts).toEqual([])
	})

	test("memory that others hold is waited for; memory that ComfyUI's own models hold is not", async () => {
		Object.assign(comfyui.seen.memory, {
			vram_free: 4 * gib,
			torch_vram_total: 2 * gib,
			torch_vram_free: gib,
		})
		const job = queue.add(save())
		startAgent()
		await has("it waits", () => queue.seen.heartbeats.length > 2)
		expect(queue.seen.claims).toBe(0)
		const about = queue.seen.heartbeats.at(-1)?.about as { because: string }
		expect(about.because).toMatch(/needs 8192 MB of GPU memory and 2048 MB to spare; 5120 MB can be had/)
		Object.assign(comfyui.seen.memory, { torch_vram_total: 16 * gib, torch_vram_free: gib })
		await ends(job, "completed")
	})

	test("a job too large for this moment is handed back until there is room", async () => {
		comfyui.seen.memory.vram_free = 12 * gib
		const job = queue.add(save(), { estimated_vram: 16_000 })
		startAgent()
		await has("it was handed back", () => job.releases > 1)
		expect(comfyui.seen.executed).toEqual([])
		comfyui.seen.memory.vram_free = 22 * gib
		await ends(job, "completed")
	})

	test("a job too large for the GPU is offered to others three times, and fails with its numbers", async () => {
		const job = queue.add(save(), { estimated_vram: "90000" })
		startAgent()
		await ends(job, "failed")
		expect(job.releases).toBe(2)
		expect(job.error).toMatch(
			/needs 90000 MB of GPU memory and 2048 MB to spare; cuda:0 Test GPU has 24576 MB in all/,
		)
		expect(job.retryable).toBe(false)
	})
})

describe("the process", () => {
	test("says every variable that is wrong at once, and ends with 2", async () => {
		const agent = startAgent({
			QUEUE_MANAGER_URL: "queue-manager:3000",
			WORKER_ID: "gpu 1",
			WORKER_POLL_INTERVAL: "soon",
		})
		expect(await agent.exit).toBe(2)
		const [line] = agent.lines()
		expect(line?.msg).toMatch(/QUEUE_MANAGER_URL is not an http/)
		expect(line?.msg).toMatch(/WORKER_ID is not a worker's name/)
		expect(line?.msg).toMatch(/WORKER_POLL_INTERVAL is not a number/)
	})

	test("logs JSON lines, and never its token, also when it is refused", async () => {
		const wrong = "another-made-up-token"
		const agent = startAgent({ WORKER_TOKEN: wrong, LOG_LEVEL: "debug" })
		await has("it is refused", () => queue.seen.refusals > 1 && agent.output().includes("HTTP 401"))
		expect(agent.lines().length).toBeGreaterThan(1)
		expect(agent.output()).not.toContain(wrong)
	})

	test("doesn't start where it could keep nothing", async () => {
		const agent = startAgent({ WORKER_STATE_PATH: `${process.execPath}/state` })
		expect(await agent.exit).not.toBe(0)
		expect(agent.output()).toContain(`WORKER_STATE_PATH ${process.execPath}/state`)
	})
})
