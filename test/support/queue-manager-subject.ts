// What the contract suite is run against: our queue manager on a real Redis, or any other implementation by its address.
import { afterAll, beforeAll, describe } from "vitest"
import { describeWith } from "./parts.ts"
import { type Ask, clientOf, startQueueManager, type TestQueueManager } from "./queue-manager.ts"
import { startTestRedis, type TestRedis } from "./redis.ts"

export type Subject = { url: string; ask: Ask }

/**
 * A part of the contract suite. `COMFYUME_QUEUE_MANAGER_URL` names another implementation, which must be empty, in
 * "fifo", and let everybody in; without it ours is started, with `environment` besides.
 */
export function describeContract(
	name: string,
	tests: (subject: () => Subject) => void,
	environment: Readonly<Record<string, string>> = {},
): void {
	const elsewhere = process.env["COMFYUME_QUEUE_MANAGER_URL"]
	if (elsewhere !== undefined) {
		describe(name, () => tests(() => ({ url: elsewhere, ask: clientOf(elsewhere) })))
		return
	}
	describeWith("redis", name, () => {
		let redis: TestRedis | undefined
		let manager: TestQueueManager | undefined
		let subject: Subject | undefined

		beforeAll(async () => {
			redis = await startTestRedis()
			manager = await startQueueManager({ REDIS_HOST: redis.socket, MAX_QUEUE_DEPTH: "0", ...environment })
			subject = { url: manager.url, ask: clientOf(manager.url) }
		})
		afterAll(async () => {
			await manager?.[Symbol.asyncDispose]()
			await redis?.[Symbol.asyncDispose]()
		})
		tests(() => {
			if (subject === undefined) throw new Error("the queue manager was not started")
			return subject
		})
	})
}

let workers = 0

/** The keys of a job, always all of them. */
export const jobKeys = [
	"completed_at",
	"created_at",
	"error",
	"estimated_wait_time",
	"id",
	"position_in_queue",
	"priority",
	"result",
	"started_at",
	"status",
	"user_id",
	"worker_id",
]

/** Submits a small job and gives its id. */
export async function submit(ask: Ask, over: Readonly<Record<string, unknown>> = {}): Promise<string> {
	const body = { user_id: "user001", workflow: { 1: { class_type: "KSampler", inputs: {} } }, ...over }
	const answer = await ask("POST", "/api/jobs", body)
	if (answer.status !== 201) throw new Error(`submit: ${answer.status} ${answer.text}`)
	return answer.body.id
}

/** Lets fresh workers claim until all that waited is claimed; the ids in that order. */
export async function claimAll(ask: Ask): Promise<string[]> {
	const ids: string[] = []
	for (;;) {
		workers += 1
		const { body } = await ask("GET", `/api/workers/next-job?worker_id=sweeper-${workers}`)
		if (body.job === null) return ids
		ids.push(body.job.id)
	}
}

/** Lets a fresh worker claim until it has this job. */
export async function claimJob(ask: Ask, id: string): Promise<string> {
	for (;;) {
		workers += 1
		const worker = `worker-${workers}`
		const { body } = await ask("GET", `/api/workers/next-job?worker_id=${worker}`)
		if (body.job === null) throw new Error(`${id} was not handed out`)
		if (body.job.id === id) return worker
	}
}
