// Numbers for Prometheus. No label names a user.
import { monitorEventLoopDelay } from "node:perf_hooks"
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client"
import { createFairness } from "./fairness.ts"
import type { JobRecord } from "./job.ts"
import type { QueueStatus } from "./queue/status.ts"
import type { EndpointView } from "./serverless/open-serverless.ts"

export type Metrics = {
	/** Counts a record's change: waits end when a job starts, runs when it completes. */
	change(record: JobRecord): void
	/** What a job was told about its wait: how wrong that was is seen when it starts. */
	expect(record: JobRecord, waitSeconds: number): void
	/** A GPU was woken for a job, and took it after so many seconds. */
	coldStart(seconds: number): void
	/** A file was delivered so many seconds after it was last written to. */
	deliveryLag(seconds: number): void
	/** A file carried another job's prompt and was put aside. */
	quarantined(): void
	/** Ends what measures. */
	close(): void
	/** The page for the scraper. @param status undefined when Redis is away */
	page(status: QueueStatus | undefined, clients: number, endpoints?: readonly EndpointView[]): Promise<string>
	contentType: string
}

// Estimates that are remembered; each goes when its job starts.
const mostExpected = 20_000
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
	unheard: "claims_unheard_total",
	dead: "dead_letters_total",
	files: "delivered_files_total",
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
	const etaError = histogram("eta_error_seconds", "How far the first estimate of a wait was off")
	const coldStarts = histogram("cold_start_seconds", "Until a job was taken where a GPU had to be woken")
	const lags = histogram("delivery_lag_seconds", "From a file's last change to its delivery")
	const quarantine = new Counter({
		name: "comfyume_queue_quarantined_files_total",
		help: "Files with another job's prompt",
		registers,
	})
	const endpointReady = gauge("endpoint_ready", "1: proven, 0: not yet, -1: no job is sent there", [
		"endpoint",
	])
	const endpointActive = gauge("endpoint_active", "1 where new jobs go", ["endpoint"])
	const endpointJobs = gauge("endpoint_jobs", "Jobs that an endpoint has", ["endpoint"])
	const loopLag = gauge("event_loop_lag_seconds", "99th percentile since the last scrape")
	const fair = gauge("fairness_jain", "Jain's index of jobs started by user in the last hour; 1 is even")
	const loop = monitorEventLoopDelay({ resolution: 20 })
	loop.enable()
	const expected = new Map<string, number>()
	const fairness = createFairness(3_600_000)
	// They live in Redis and outlive this process: set, not counted.
	const counted = new Map(
		Object.entries(totals).map(([total, name]) => [total, gauge(name, `${total}, since the workshop began`)]),
	)

	return {
		contentType: registry.contentType,
		expect({ id, createdMs }, seconds) {
			if (expected.has(id)) return
			if (expected.size >= mostExpected) expected.clear()
			expected.set(id, createdMs + seconds * 1000)
		},
		coldStart: (seconds) => coldStarts.observe(seconds),
		deliveryLag: (seconds) => lags.observe(Math.max(0, seconds)),
		quarantined: () => quarantine.inc(),
		close: () => void loop.disable(),
		change({ id, user, status, createdMs, startedMs, completedMs }) {
			if (status !== "pending") {
				const startMs = expected.get(id)
				expected.delete(id)
				if (status === "running" && startMs !== undefined && startedMs !== null)
					etaError.observe(Math.abs(startedMs - startMs) / 1000)
			}
			if (status === "running" && startedMs !== null) fairness.served(user, startedMs)
			if (status === "running" && startedMs !== null) wait.observe((startedMs - createdMs) / 1000)
			if (status === "completed" && startedMs !== null && completedMs !== null) {
				run.observe((completedMs - startedMs) / 1000)
			}
		},
		async page(status, clientCount, endpoints = []) {
			loopLag.set(loop.percentile(99) / 1e9)
			loop.reset()
			for (const one of [endpointReady, endpointActive, endpointJobs]) one.reset()
			for (const { name, preflight, isBlocked, isActive, running } of endpoints) {
				endpointReady.set({ endpoint: name }, isBlocked ? -1 : preflight === "passed" ? 1 : 0)
				endpointActive.set({ endpoint: name }, isActive ? 1 : 0)
				endpointJobs.set({ endpoint: name }, running)
			}
			fair.set(fairness.index(Date.now()))
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
