// The queue's own scripts beside a queue library (BullMQ), on one real Redis without HTTP around either: jobs in, jobs out,
// a change of the order while many wait, and somebody's position among them. The library is fetched for the run, at one
// exact version and without install scripts; the project doesn't depend on it.
import { execFileSync } from "node:child_process"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { createRequire } from "node:module"
import { cpus, loadavg, tmpdir } from "node:os"
import { join } from "node:path"
import { openQueue } from "../src/queue-manager/queue/queue.ts"
import { startTestRedis } from "../test/support/redis.ts"
import { interleave, median, root } from "./support/measure.ts"

const versions = { bullmq: "6.7.0", ioredis: "5.11.1" }
const [producers, workers, batch, backlog] = [20, 8, 1000, 10_000]
const workflow = JSON.stringify({ 1: { class_type: "KSampler", inputs: { seed: 1, steps: 20 } } })
const result = { prompt_id: "p", status: "success", outputs: {}, execution_time: 1 }

// What of the library is called here (its documentation: "Manually processing jobs", "Prioritized").
type Job = {
	id: string
	moveToCompleted(value: unknown, token: string, fetchNext: boolean): Promise<unknown>
	changePriority(options: { priority: number }): Promise<void>
}
type Library = {
	Queue: new (
		name: string,
		options: object,
	) => {
		add(name: string, data: unknown, options?: object): Promise<Job>
		getWaiting(from: number, to: number): Promise<{ id: string }[]>
		getPrioritized(from: number, to: number): Promise<Job[]>
		getWaitingCount(): Promise<number>
		close(): Promise<void>
	}
	Worker: new (
		name: string,
		processor: null,
		options: object,
	) => {
		getNextJob(token: string, options: { block: boolean }): Promise<Job | undefined>
		close(): Promise<void>
	}
}

const directory = mkdtempSync(join(tmpdir(), "comfyume-queue-library-"))
try {
	await using redis = await startTestRedis()
	const library = fetchLibrary()
	const connection = { path: redis.socket, maxRetriesPerRequest: null }
	const open = (name: string) => new library.Queue(name, { connection })

	const address = { host: redis.socket, port: 0, database: 0, password: undefined }
	const own = openQueue(address, "jobs", () => undefined)
	const ownWaiting = openQueue(address, "waiting", () => undefined)
	while (!own.isReady() || !ownWaiting.isReady()) await new Promise((resolve) => setImmediate(resolve))
	const theirs = open("jobs")
	const theirsWaiting = open("waiting")
	const fetching = Array.from(
		{ length: workers },
		() => new library.Worker("jobs", null, { connection, autorun: false }),
	)

	const submission = (n: number) => ({
		user: `user${n % 20}`,
		priority: 2 as const,
		level: 2,
		kind: "bench",
		workflow: Buffer.from(workflow),
		metadata: Buffer.from("{}"),
		mostWaiting: 0,
		mostOwn: 0,
		idempotencyKey: undefined,
	})
	const task = (n: number) => ({ user_id: `user${n % 20}`, workflow: JSON.parse(workflow) as unknown })
	const ownIn = () => sideBySide(producers, batch, async (_, n) => void (await own.submit(submission(n))))
	const theirsIn = () => sideBySide(producers, batch, async (_, n) => void (await theirs.add("job", task(n))))
	const ownOut = () =>
		sideBySide(workers, batch, async (worker) => {
			const job = await own.claim(`w${worker}`, "", 60_000, false)
			if (job === undefined) throw new Error("the own queue ran dry")
			const { id, token } = job
			const ended = { status: "completed" as const, error: "", retryable: false, principal: "" }
			await own.settle({ id, token, ...ended, result: Buffer.from(JSON.stringify(result)) })
		})
	const theirsOut = () =>
		sideBySide(workers, batch, async (worker) => {
			const job = await fetching[worker]?.getNextJob(`w${worker}`, { block: false })
			if (job === undefined) throw new Error("the library's queue ran dry")
			await job.moveToCompleted(result, `w${worker}`, false)
		})

	// Never taken out: what a change of the order and a position cost while so many wait.
	let middle = ""
	await sideBySide(producers, backlog, async (_, n) => {
		const submitted = await ownWaiting.submit(submission(n))
		if (n === backlog / 2 && "found" in submitted) middle = submitted.found.record.id
	})
	let theirMiddle = ""
	const theirJobs: Job[] = []
	await sideBySide(producers, backlog, async (_, n) => {
		const job = await theirsWaiting.add("job", task(n), { priority: 2 })
		theirJobs.push(job)
		if (n === backlog / 2) theirMiddle = job.id
	})
	let turn = 0
	const ownMode = () => ownWaiting.configure({ mode: turn++ % 2 === 0 ? "round_robin" : "fifo" })
	const theirMode = () =>
		sideBySide(producers, backlog, async (_, n) => {
			await theirJobs[n]?.changePriority({ priority: 1 + ((n + turn) % 20) })
		})
	const positions = 10
	const ownPosition = () =>
		sideBySide(1, positions, async () => {
			if ((await ownWaiting.find(middle))?.position === null) throw new Error("no position")
		})
	const theirPosition = () =>
		sideBySide(1, positions, async () => {
			const waiting = await theirsWaiting.getPrioritized(0, -1)
			if (!waiting.some(({ id }) => id === theirMiddle)) throw new Error("no position")
		})

	const runs = await interleave({
		"in, own": { run: ownIn },
		"in, library": { run: theirsIn },
		"out, own": { before: ownIn, run: ownOut },
		"out, library": { before: theirsIn, run: theirsOut },
		"order, own": { run: ownMode },
		"order, library": { run: theirMode },
		"position, own": { run: ownPosition },
		"position, library": { run: theirPosition },
	})
	const [jobs, waiting] = [`${batch} jobs`, `${backlog} waiting`]
	const rows = (
		[
			["in", `${jobs} from ${producers} at once`],
			["out", `claim and completion of ${jobs} by ${workers} at once`],
			["order", `another order for ${waiting}`],
			["position", `a job's position among ${waiting}, ${positions} times`],
		] as const
	).map(([name, what]) => {
		const [ownMs, libraryMs] = [median(runs[`${name}, own`]), median(runs[`${name}, library`])]
		return { what, ownMs, libraryMs }
	})
	for (const { what, ownMs, libraryMs } of rows)
		console.log(`${what}: own scripts ${ownMs} ms, library ${libraryMs} ms`)
	const facts = { versions, rows, runsMs: runs, node: process.version, cpu: cpus()[0]?.model }
	mkdirSync(`${root}bench/results`, { recursive: true })
	const text = JSON.stringify({ ...facts, loadAverage: loadavg()[0] }, undefined, "\t")
	const lists = text.replaceAll(/\[[\s\d.,]+\]/g, (list) =>
		list.replaceAll(/\s+/g, " ").replace("[ ", "[").replace(" ]", "]"),
	)
	writeFileSync(`${root}bench/results/queue-library.json`, `${lists}\n`)
	await Promise.all([
		own.close(),
		ownWaiting.close(),
		theirs.close(),
		theirsWaiting.close(),
		...fetching.map((one) => one.close()),
	])
} finally {
	rmSync(directory, { recursive: true, force: true })
}

function fetchLibrary(): Library {
	writeFileSync(join(directory, "package.json"), "{}")
	const wanted = Object.entries(versions).map(([name, version]) => `${name}@${version}`)
	const quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--omit=optional", "--loglevel=error"]
	execFileSync("npm", ["install", ...quiet, ...wanted], { cwd: directory, stdio: ["ignore", 2, 2] })
	return createRequire(join(directory, "package.json"))("bullmq") as Library
}

/** Does something `total` times, so many at once. */
async function sideBySide(
	lanes: number,
	total: number,
	once: (lane: number, n: number) => Promise<void>,
): Promise<void> {
	let next = 0
	await Promise.all(
		Array.from({ length: lanes }, async (_, lane) => {
			while (next < total) await once(lane, next++)
		}),
	)
}
