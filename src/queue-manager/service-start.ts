// Starts the queue manager: queue, events, timers, server; and ends them in the opposite order.
import { setTimeout as pause } from "node:timers/promises"
import type { FastifyBaseLogger } from "fastify"
import { messageOf } from "../lib/errors.ts"
import type { Environment } from "./environment.ts"
import { waitSeconds } from "./eta.ts"
import { openEventHub } from "./events.ts"
import { createServer } from "./http/server.ts"
import { createMetrics } from "./metrics.ts"
import { openWorkerOutputs } from "./outputs/open-worker-outputs.ts"
import { openQueue } from "./queue/queue.ts"
import { checkServerless, openServerless } from "./serverless/open-serverless.ts"
import { defaultsOf, leaseMs, type Service, statusCache } from "./service.ts"

const reapEveryMs = 1000
const retainEveryMs = 60_000
const cleanEveryMs = 60_000
const configureEveryMs = 1000
const day = 86_400_000
const kept = { records: 7 * day, dead: 30 * day, workers: day }
// Docker waits 10 s before it kills.
const drainMs = 8000
const runsMs = 5000
const startPatienceMs = 3000

export type Running = {
	/** Where it listens, as `http://address:port`. */
	url: string
	/** Takes no more work, answers what is held, ends. At most 10 s. */
	close(): Promise<void>
	/** Threads that a hung file system holds: the process can't end of itself while there are any. */
	stuck(): number
}

/** Starts it. Redis need not be there yet. @throws when the port is taken */
export async function startQueueManager(
	environment: Environment,
	version: string,
	logger: FastifyBaseLogger,
	now: () => number = Date.now,
): Promise<Running> {
	// Before anything is opened: what is wrong with the environment ends it.
	if (environment.INFERENCE_MODE === "serverless") checkServerless(environment)
	const address = {
		host: environment.REDIS_HOST,
		port: environment.REDIS_PORT,
		database: environment.REDIS_DB,
		password: environment.REDIS_PASSWORD,
	}
	let trouble = ""
	const queue = openQueue(address, environment.WORKSHOP, (error) => {
		// One line for one reason, not one for each attempt.
		if (messageOf(error) !== trouble) logger.warn({ reason: messageOf(error) }, "redis is away")
		trouble = messageOf(error)
	})
	const cache = statusCache(queue, environment.WORKER_HEARTBEAT_TIMEOUT * 1000, now)
	const hub = openEventHub(queue, async (kind, position) => {
		const status = await cache.status().catch(() => undefined)
		return status === undefined ? null : waitSeconds(status, kind, position)
	})
	const metrics = createMetrics()
	hub.onChange(metrics.change)
	const closing = new AbortController()
	const base: Omit<Service, "serverless" | "workerOutputs"> = {
		environment,
		version,
		queue,
		hub,
		metrics,
		log: logger,
		startedMs: now(),
		now,
		closing: closing.signal,
		...cache,
	}
	const serverless = environment.INFERENCE_MODE === "serverless" ? openServerless(base, logger) : undefined
	const { OUTPUTS_PATH: outputsRoot } = environment
	const workerOutputs = outputsRoot === undefined ? undefined : openWorkerOutputs(base, outputsRoot)
	const service: Service = { ...base, serverless, workerOutputs }

	const server = await createServer(
		service,
		{
			mode: environment.AUTH_MODE,
			proxySecret: environment.PROXY_SECRET,
			tokenKey: environment.TOKEN_KEY,
			tokenGeneration: environment.TOKEN_GENERATION,
			workerAddresses: environment.WORKER_ADDRESSES,
		},
		logger,
	)
	if (environment.AUTH_MODE === "open") {
		logger.warn("AUTH_MODE=open: whoever reaches this port may do everything; for a trusted network only")
	}

	const timers = [
		every(configureEveryMs, async (stop) => {
			await queue.configure(defaultsOf(environment))
			stop()
		}),
		every(reapEveryMs, async () => {
			const adoptMs = 3 * leaseMs(environment, true)
			const lost = await queue.reap(environment.JOB_TIMEOUT * 1000, adoptMs)
			if (lost > 0) logger.warn({ lost }, "leases ran out")
			trouble = ""
		}),
		every(retainEveryMs, async () => void (await queue.retain(kept))),
		every(cleanEveryMs, async () => await workerOutputs?.cleanUp()),
	]

	async function end(): Promise<void> {
		for (const stop of timers) stop()
		metrics.close()
		await Promise.race([workerOutputs?.close(), pause(500, undefined, { ref: false })])
		await hub.close()
		await queue.close()
	}

	try {
		// What is submitted before the stream's end is known would be told to nobody. Health must answer without Redis too.
		await Promise.race([hub.started, pause(startPatienceMs)])
		await server.listen({ host: environment.HOST, port: environment.PORT })
	} catch (error) {
		await server.close()
		await serverless?.close(500)
		await end()
		throw error
	}
	const [listening] = server.addresses()
	const port = typeof listening === "object" ? listening.port : environment.PORT
	return {
		url: `http://${environment.HOST}:${port}`,
		async close() {
			closing.abort()
			const hurry = setTimeout(() => server.server.closeAllConnections(), drainMs)
			await Promise.all([server.close(), serverless?.close(runsMs)])
			clearTimeout(hurry)
			await end()
		},
		stuck: () => (serverless?.stuck() ?? 0) + (workerOutputs?.stuck() ?? 0),
	}
}

/** Does something again and again, never twice at once. Failures are Redis being away: the next turn may do better. */
function every(ms: number, work: (stop: () => void) => Promise<void>): () => void {
	let isStopped = false
	let timer: NodeJS.Timeout | undefined
	const stop = () => {
		isStopped = true
		clearTimeout(timer)
	}
	const turn = () => {
		work(stop)
			.catch(() => undefined)
			.finally(() => {
				if (!isStopped) timer = setTimeout(turn, ms)
			})
	}
	turn()
	return stop
}
