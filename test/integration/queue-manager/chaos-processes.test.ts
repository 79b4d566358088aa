// Random schedules with real processes: two queue managers on one Redis are killed, stopped and started again while users
// submit, cancel and move their jobs, an instructor changes the mode, and workers finish, die and hand in pictures.
// Afterwards every job has ended once, and each picture lies once, with its own user.
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { basename, dirname, join } from "node:path"
import fc from "fast-check"
import { expect, test } from "vitest"
import { modes } from "../../../src/queue-manager/job.ts"
import { makePng } from "../../support/comfyui-files.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import { type Ask, clientOf, startQueueManager, type TestQueueManager } from "../../support/queue-manager.ts"
import { completed, openTestEngine } from "../../support/queue-manager-engine.ts"
import { drain, expectInvariants } from "../../support/queue-manager-invariants.ts"
import { startTestRedis } from "../../support/redis.ts"
import { runs } from "../../support/runs.ts"

const users = ["ann", "bob", "cem"]
const blow = fc.record({
	/** How many more jobs are accepted before it. */
	after: fc.integer({ min: 1, max: 15 }),
	what: fc.oneof(
		{ weight: 4, arbitrary: fc.constant("kill" as const) },
		{ weight: 1, arbitrary: fc.constant("stop" as const) },
		{ weight: 2, arbitrary: fc.constant("redis" as const) },
		{ weight: 1, arbitrary: fc.constant("hang" as const) },
	),
	which: fc.nat(1),
	/** The other one alone goes on for so many jobs. */
	alone: fc.nat(5),
	mode: fc.constantFrom(...modes),
})
const deadlineMs = 30_000

describeWith("redis", "queue managers as processes", () => {
	test(
		"killed, stopped and started again in the middle of everything, lose no job, end none twice, and deliver each file once",
		async () => {
			const schedule = fc.tuple(
				fc.array(blow, { minLength: 1, maxLength: 4, size: "max" }),
				// What clients and workers do by chance.
				fc.infiniteStream(fc.nat(99)),
			)
			await fc.assert(
				fc.asyncProperty(schedule, async ([blows, chances]) => {
					await using world = await openWorld(() => chances.next().value)
					for (const one of blows) await world.strike(one)
					await world.settle()
				}),
				{ numRuns: runs(3), endOnFailure: true },
			)
		},
		300_000 * runs(1),
	)
})

const workflow = { 9: { class_type: "SaveImage", inputs: { filename_prefix: "picture" } } }

async function openWorld(chance: () => number) {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-chaos-"))
	const [share, outputs] = [join(directory, "share"), join(directory, "outputs")]
	for (const path of [share, outputs]) mkdirSync(path)
	const redis = await startTestRedis({ appendOnly: true })
	const environment = {
		REDIS_HOST: redis.socket,
		WORKSHOP: crypto.randomUUID(),
		MAX_QUEUE_DEPTH: "0",
		WORKER_HEARTBEAT_TIMEOUT: "1",
		OUTPUTS_PATH: outputs,
		SFS_OUTPUT_DIR: share,
	}
	const managers: TestQueueManager[] = await Promise.all([
		startQueueManager(environment),
		startQueueManager(environment),
	])
	const accepted = new Map<string, string>()
	let isOver = false

	const repeat = async (work: (ask: Ask) => Promise<void>) => {
		for (let turn = 0; !isOver; turn++) {
			// A connection that breaks tells nothing: whatever was asked may have happened or not.
			await work(clientOf(managers[turn % 2]?.url ?? "")).catch(() => undefined)
			await new Promise(setImmediate)
		}
	}
	const clients = users.map((user_id) =>
		repeat(async (ask) => {
			const { status, body } = await ask("POST", "/jobs", { user_id, workflow })
			if (status === 201) accepted.set(body.id, user_id)
			const ids = [...accepted.keys()]
			const some = ids[ids.length - 1 - (chance() % Math.min(ids.length, 10))]
			const dice = chance()
			if (dice < 10) await ask("DELETE", `/jobs/${some}`)
			else if (dice < 20) await ask("PATCH", `/jobs/${some}/priority`, String(dice % 4))
		}),
	)
	// Two that only poll, as the Python worker does, and two that show a lease; one of those dies now and then.
	const workers = ["python-0", "python-1", "ours-0", "ours-1"].map((worker) => {
		const isOurs = worker.startsWith("ours")
		let life = 0
		return repeat(async (ask) => {
			const name = isOurs ? `${worker}-${life}` : worker
			const claimed = await ask(
				"GET",
				`/workers/next-job?worker_id=${name}${isOurs ? "&heartbeat=true" : ""}`,
			)
			const id = claimed.body?.job?.id
			if (id === undefined) return
			if (worker === "ours-1" && chance() < 15) {
				life += 1
				return
			}
			// As ComfyUI does: where the workflow says, with the workflow in it.
			const prompt = claimed.body.job.workflow as typeof workflow
			const subfolder = dirname(prompt[9].inputs.filename_prefix)
			const filename = `${basename(prompt[9].inputs.filename_prefix)}_00001_.png`
			mkdirSync(join(share, subfolder), { recursive: true })
			writeFileSync(join(share, subfolder, filename), makePng(subfolder, { prompt }))
			const result = { prompt_id: id, outputs: { 9: { images: [{ filename, subfolder, type: "output" }] } } }
			const lease = isOurs ? { "x-comfyume-lease": claimed.headers.get("x-comfyume-lease") ?? "" } : {}
			await poll(
				async () => {
					for (const { url } of managers) {
						const said = clientOf(url)("POST", `/workers/complete-job?job_id=${id}`, result, lease)
						const status = await said.then((answer) => answer.status).catch(() => 503)
						if (status < 500) return true
					}
					return false
				},
				{ what: `${id} is handed in`, deadlineMs },
			)
		})
	})
	const more = (count: number) => {
		const goal = accepted.size + count
		return poll(() => accepted.size >= goal, { what: `${goal} jobs are accepted`, deadlineMs })
	}

	return {
		async strike({ after, what, which, alone, mode }: typeof blow extends fc.Arbitrary<infer T> ? T : never) {
			await more(after)
			if (what === "redis") {
				await redis.kill()
				await redis.start()
			} else if (what === "hang") {
				redis.freeze()
				await managers[which]?.kill()
				redis.thaw()
			} else if (what === "kill") await managers[which]?.kill()
			else await managers[which]?.terminate()
			if (what !== "redis") {
				await more(alone)
				managers[which] = await startQueueManager(environment)
			}
			await clientOf(managers[0]?.url ?? "")("PUT", "/queue/mode", { mode })
		},
		async settle() {
			isOver = true
			await Promise.all([...clients, ...workers])
			for (const manager of managers) await manager.kill()
			await using engine = await openTestEngine(redis, environment.WORKSHOP)
			const { queue } = engine
			await queue.configure({ events_kept: "1000000" })
			// Their last claim may have been lost on its way; leases of those that only poll are long.
			for (const name of ["python-0", "python-1"]) {
				const claimed = await queue.claim(name, "", 60_000, false)
				if (claimed !== undefined) await completed(queue, claimed.id, claimed.token)
			}
			await drain(queue)
			await expectInvariants(queue, new Set(accepted.keys()))
			await expectFiles(queue, outputs)
		},
		async [Symbol.asyncDispose]() {
			isOver = true
			for (const manager of managers) await manager.kill()
			await Promise.allSettled([...clients, ...workers])
			await redis[Symbol.asyncDispose]()
			rmSync(directory, { recursive: true, force: true })
		},
	}
}

/** Each file of an attempt lies at most once, with the job's own user; and what a result names is there. */
async function expectFiles(queue: Parameters<typeof drain>[0], outputs: string): Promise<void> {
	const seen = new Map<string, string>()
	for (const user of readdirSync(outputs)) {
		for (const name of readdirSync(join(outputs, user))) {
			// What was being copied when its queue manager was killed: hidden, and delivered to nobody.
			if (/^\.cq-.*\.part$/.test(name)) continue
			// The prompt in it says whose it is.
			const text = readFileSync(join(outputs, user, name), "latin1")
			const [stem = "", id = ""] = /cq\/\d{8}\/([^/]+)\/a\d+/.exec(text) ?? []
			expect(seen.has(stem), `${name} is there twice: ${seen.get(stem)}`).toBe(false)
			seen.set(stem, `${user}/${name}`)
			expect((await queue.find(id))?.record.user, `whose ${name} is`).toBe(user)
		}
	}
	let named = 0
	for (const { record, result } of await queue.list("", "completed", 1000)) {
		const text = result ?? "{}"
		const outputsOf = (JSON.parse(text) as { outputs?: Record<string, { images: { filename: string }[] }> })
			.outputs
		for (const { filename } of outputsOf?.["9"]?.images ?? []) {
			named += 1
			expect([...seen.values()], `a file of ${record.id}`).toContain(`${record.user}/${filename}`)
		}
	}
	// Most are handed in with a file: otherwise nothing was tried here.
	expect(named).toBeGreaterThan(0)
}
