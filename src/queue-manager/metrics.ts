// Numbers for Prometheus. No label names a user.
import { collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client"
import type { JobRecord } from "./job.ts"
import type { QueueStatus } from "./queue/status.ts"

export type Metrics = {
	/** Counts a record's change: waits end when a job starts, runs when it completes. */
	change(record: JobRecord): void
	/** The page for the scraper. @param status undefined when Redis is away */
	page(status: QueueStatus | undefined, clients: number): Promise<string>
	contentType: string
}

const secondsBuckets = [0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600]
// How the totals in Redis are called here.
const totals = {
	created: "jobs_created_total",
	claims: "claims_total",
	completed: "jobs_completed_total",
	failed: "jobs_failed_total",
	cancelled: "jobs_cancelled_total",
	retries: "retries_total",
	lost: "leases_lost_total",
	dead: "dead_letters_total",
} as const

/** Makes the queue manager's numbers, all below `comfyume_queue_`. */
export function createMetrics(): Metrics {
	const registry = new Registry()
	const registers = [registry]
	const gauge = (name: string, help: string, labelNames: string[] = []) =>
		new Gauge({ name: `comfyume_queue_${name}`, help, labelNames, registers })
	const histogram = (name: string, help: string) =>
		new Histogram({ name: `comfyume_queue_${name}`, help, buckets: secondsBuckets, registers })
	collectDefaultMetrics({ register: registry })

	const redisUp = gauge("redis_up", "1 while Redis answers")
	const jobs = gauge("jobs", "Jobs by state at this moment", ["state"])
	const oldest = gauge("oldest_waiting_seconds", "Age of the job that waits longest")
	const workers = gauge("workers", "Workers by state", ["state"])
	const paused = gauge("paused", "1 while no job is handed out")
	const mode = gauge("mode", "1 for the queue's mode", ["mode"])
	const deadLetters = gauge("dead_letters", "Dead letters that are kept")
	const clients = gauge("websocket_clients", "Connected WebSocket clients")
	const wait = histogram("wait_seconds", "From submit to start")
	const run = histogram("run_seconds", "From start to a good end")
	// They live in Redis and outlive this process: set, not counted.
	const counted = new Map(
		Object.entries(totals).map(([total, name]) => [total, gauge(name, `${total}, since the workshop began`)]),
	)

	return {
		contentType: registry.contentType,
		change({ status, createdMs, startedMs, completedMs }) {
			if (status === "running" && startedMs !== null) wait.observe((startedMs - createdMs) / 1000)
			if (status === "completed" && startedMs !== null && completedMs !== null) {
				run.observe((completedMs - startedMs) / 1000)
			}
		},
		async page(status, clientCount) {
			redisUp.set(status === undefined ? 0 : 1)
			clients.set(clientCount)
			const gauges = [jobs, oldest, workers, paused, mode, deadLetters, ...counted.values()]
			// Nothing is invented while Redis is away.
			for (const one of gauges) one.reset()
			if (status !== undefined) {
				jobs.set({ state: "pending" }, status.waiting)
				jobs.set({ state: "running" }, status.running.length)
				oldest.set(status.oldestMs === null ? 0 : (status.nowMs - status.oldestMs) / 1000)
				workers.set({ state: "active" }, status.activeWorkers)
				workers.set({ state: "known" }, status.workers.length)
				paused.set(status.paused ? 1 : 0)
				mode.set({ mode: status.mode }, 1)
				deadLetters.set(status.deadLetters)
				for (const [total, one] of counted) one.set(status.totals.get(total) ?? 0)
			}
			return registry.metrics()
		},
	}
}
