// npm run load-test -- --users 20 --jobs 200 --mode round_robin: simulated users and workers against a queue manager,
// its own on its own Redis unless --url names one. Ends with 3 when a job was lost, handed out twice or ended twice.
import { parseArgs } from "node:util"
import { startQueueManager } from "../test/support/queue-manager.ts"
import { startTestRedis } from "../test/support/redis.ts"
import { type Drive, drive } from "./load-test/drive.ts"
import { reportOf, tableOf } from "./load-test/report.ts"

const usage = `npm run load-test -- [options]
  --users 20         who submit, each on their own
  --jobs 200         in all
  --workers 4        that claim over HTTP
  --mode round_robin fifo | round_robin | priority; for a queue manager of its own
  --videos 0.2       share of video jobs
  --speed 200        times faster than real
  --url URL          of a queue manager that runs; QUEUE_MANAGER_TOKEN holds an admin's token for it;
                     its queue must be empty
  --deadline 300     seconds after which it is given up
  --seed 1           for durations and the mix
  --json             the report as one JSON object`

const { values } = parseArgs({
	options: {
		users: { type: "string", default: "20" },
		jobs: { type: "string", default: "200" },
		workers: { type: "string", default: "4" },
		mode: { type: "string", default: "round_robin" },
		videos: { type: "string", default: "0.2" },
		speed: { type: "string", default: "200" },
		url: { type: "string" },
		deadline: { type: "string", default: "300" },
		seed: { type: "string", default: "1" },
		json: { type: "boolean", default: false },
		help: { type: "boolean", default: false },
	},
})

if (values.help) console.log(usage)
else if (values.url !== undefined) await runElsewhere(values.url)
else await runOnOwn()

async function runOnOwn(): Promise<void> {
	await using redis = await startTestRedis()
	await using manager = await startQueueManager({
		REDIS_HOST: redis.socket,
		QUEUE_MODE: values.mode,
		MAX_QUEUE_DEPTH: "0",
	})
	await run(manager.url)
}

/** Its workers finish whatever they are given: somebody's real job must not be among it. */
async function runElsewhere(url: string): Promise<void> {
	const token = process.env["QUEUE_MANAGER_TOKEN"]
	const headers: Record<string, string> = token === undefined ? {} : { authorization: `Bearer ${token}` }
	const answer = await fetch(`${url}/api/queue/status`, { headers })
	const status = (await answer.json()) as { pending_jobs?: number; running_jobs?: number }
	if (answer.ok && status.pending_jobs === 0 && status.running_jobs === 0) return run(url)
	console.error(`${url} has jobs of its own, or doesn't say: ${JSON.stringify(status)}`)
	process.exitCode = 2
}

async function run(url: string): Promise<void> {
	const options: Drive = {
		url,
		token: process.env["QUEUE_MANAGER_TOKEN"],
		users: number("users", values.users, 1),
		jobs: number("jobs", values.jobs, 1),
		workers: number("workers", values.workers, 1),
		videoShare: number("videos", values.videos, 0),
		speed: number("speed", values.speed, 0.001),
		deadlineMs: number("deadline", values.deadline, 1) * 1000,
		random: randomOf(number("seed", values.seed, 0)),
	}
	const { jobs, ...run } = await drive(options)
	const mode = values.url === undefined ? values.mode : "as it is set"
	const report = reportOf(jobs, { ...run, users: options.users, workers: options.workers, mode })
	console.log(values.json ? JSON.stringify(report) : tableOf(report))
	const missing = options.jobs - report.jobs
	if (missing > 0) console.error(`${missing} jobs were never accepted`)
	if (report.lost + report.handedOutTwice + report.endedTwice + missing > 0) process.exitCode = 3
}

function number(name: string, text: string, least: number): number {
	const value = Number(text)
	if (text !== "" && value >= least) return value
	console.error(`--${name} is a number of ${least} or more, not ${text}\n\n${usage}`)
	process.exit(2)
}

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
function randomOf(seed: number): () => number {
	let state = seed >>> 0
	return () => {
		state = (state + 0x6d2b79f5) >>> 0
		let mixed = Math.imul(state ^ (state >>> 15), state | 1)
		mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
		return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
	}
}
