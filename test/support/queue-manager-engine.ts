// The engine alone, on a workshop of its own, with short words for what tests do with it.
import { randomUUID } from "node:crypto"
import { openQueue, type Queue, type Submission } from "../../src/queue-manager/queue/queue.ts"
import { poll } from "./poll.ts"
import type { TestRedis } from "./redis.ts"

export type TestEngine = { queue: Queue; [Symbol.asyncDispose](): Promise<void> }

/** Opens the engine on a fresh workshop, and waits until Redis answers it. */
export async function openTestEngine(redis: TestRedis, workshop: string = randomUUID()): Promise<TestEngine> {
	const address = { host: redis.socket, port: 0, database: 0, password: undefined }
	const queue = openQueue(address, workshop, () => undefined)
	await poll(() => queue.isReady(), { what: "the engine is connected", deadlineMs: 5000 })
	return { queue, [Symbol.asyncDispose]: () => queue.close() }
}

/** A small job of a user; `over` changes any of it. */
export function submission(user: string, over: Partial<Submission> = {}): Submission {
	const priority = over.priority ?? 2
	return {
		user,
		priority,
		level: priority,
		kind: "test",
		workflow: Buffer.from('{"1":{"class_type":"KSampler"}}'),
		metadata: Buffer.from("{}"),
		mostWaiting: 0,
		mostOwn: 0,
		idempotencyKey: undefined,
		...over,
	}
}

/** Submits and gives the id. @throws when the queue is full */
export async function submitted(queue: Queue, user: string, over: Partial<Submission> = {}): Promise<string> {
	const answer = await queue.submit(submission(user, over))
	if (answer.state === "full" || answer.state === "crowded") throw new Error(`the queue is ${answer.state}`)
	return answer.found.record.id
}

/** Ends a claimed job well. */
export function completed(queue: Queue, id: string, token: string) {
	const result = Buffer.from('{"status":"success"}')
	return queue.settle({ id, token, principal: "", status: "completed", error: "", result, retryable: false })
}
