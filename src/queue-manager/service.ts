// What the routes share: the queue, its settings, and a picture of the queue that is at most a second old.
import type { FastifyBaseLogger } from "fastify"
import type { Environment } from "./environment.ts"
import { waitSeconds } from "./eta.ts"
import type { EventHub } from "./events.ts"
import { type Job, toJob } from "./job.ts"
import type { Metrics } from "./metrics.ts"
import type { WorkerOutputs } from "./outputs/open-worker-outputs.ts"
import type { Found, Queue } from "./queue/queue.ts"
import type { QueueStatus } from "./queue/status.ts"
import type { Serverless } from "./serverless/open-serverless.ts"

export type Service = {
	environment: Environment
	version: string
	queue: Queue
	hub: EventHub
	metrics: Metrics
	log: FastifyBaseLogger
	/** Only where jobs are handed to endpoints. */
	serverless: Serverless | undefined
	/** Only where OUTPUTS_PATH is set: results of workers are delivered, and stored as they come otherwise. */
	workerOutputs: WorkerOutputs | undefined
	startedMs: number
	now(): number
	/** Ends when the queue manager is about to stop: held requests answer what they know. */
	closing: AbortSignal
	/** The counters, at most a second old. @throws {RedisDownError} */
	status(): Promise<QueueStatus>
	/** Forgets the picture, after something was changed that must be seen at once. */
	refresh(): void
}

const freshMs = 1000

/** Asks the queue for its counters at most once a second, however many want them. */
export function statusCache(queue: Queue, activeMs: number, now: () => number) {
	let cached: { at: number; status: Promise<QueueStatus> } | undefined
	return {
		status(): Promise<QueueStatus> {
			if (cached !== undefined && now() - cached.at < freshMs) return cached.status
			const asked = { at: now(), status: queue.status(activeMs) }
			cached = asked
			// A failure is not kept.
			asked.status.catch(() => {
				if (cached === asked) cached = undefined
			})
			return asked.status
		},
		refresh() {
			cached = undefined
		},
	}
}

/** A job as clients see it, with its place and how long it will wait; the result aside. */
export async function present(service: Service, { record, position }: Found): Promise<Job> {
	if (position === null) return toJob(record, { position, waitSeconds: null })
	// An estimate is never worth an answer.
	const status = await service.status().catch(() => undefined)
	const wait = status && waitSeconds(status, record.kind, position)
	if (wait !== undefined && wait !== null) service.metrics.expect(record, wait)
	return toJob(record, { position, waitSeconds: wait ?? null })
}

/**
 * The job as JSON text. Its result is put in as it came: it may be megabytes, and nothing here needs to read it.
 * @param more members that follow the job's own
 */
export async function presentText(service: Service, found: Found, more: Record<string, unknown> = {}) {
	const { result: _, ...job } = await present(service, found)
	return `${JSON.stringify({ ...job, ...more }).slice(0, -1)},"result":${found.result ?? "null"}}`
}

/** What a level in the queue is made of a priority: where priorities are switched off only the instructor's counts. */
export const levelOf = (environment: Environment, priority: number) =>
	environment.ENABLE_PRIORITY || priority === 0 ? priority : 2

/** How many jobs of one user may wait; 0 for any number. Half of the depth leaves room for all others. */
export const mostOwnOf = ({ MAX_USER_DEPTH, MAX_QUEUE_DEPTH }: Environment) =>
	MAX_USER_DEPTH ?? Math.ceil(MAX_QUEUE_DEPTH / 2)

/** How long a worker's lease lasts: one that heartbeats keeps it by that, any other has the job's time and some more. */
export function leaseMs(environment: Environment, heartbeats: boolean): number {
	return heartbeats ? environment.WORKER_HEARTBEAT_TIMEOUT * 1000 : (environment.JOB_TIMEOUT + 120) * 1000
}

/** What the environment gives; instructors may have set something else since, and that counts. */
export function defaultsOf(environment: Environment): Record<string, string> {
	return {
		"default:mode": environment.QUEUE_MODE,
		"default:aging_ms": String(environment.PRIORITY_AGING * 1000),
		"default:endpoint": environment.SERVERLESS_ACTIVE,
		"default:max_wait": String(Math.min(1800, Math.max(60, environment.SFS_MAX_WAIT))),
	}
}
