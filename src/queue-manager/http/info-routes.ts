// What is told to everybody: health, counters, metrics, the API's document, the banner; and what browsers report.
import { setTimeout as pause } from "node:timers/promises"
import { activeEndpoint, activeGpu, configuredEndpoints, endpointName } from "../environment.ts"
import { RedisDownError } from "../queue/connection.ts"
import type { Service } from "../service.ts"
import { parseBody } from "./body.ts"
import { HttpError } from "./errors.ts"
import { createRateLimit } from "./rate-limit.ts"
import * as shape from "./schemas.ts"
import type { App } from "./server.ts"

// A health check must not hang with Redis.
const healthMs = 1000

/** Registers the routes. */
export function infoRoutes(app: App, service: Service): void {
	const { queue, environment, metrics, hub } = service
	const open = { access: "public" as const }
	const activeMs = environment.WORKER_HEARTBEAT_TIMEOUT * 1000
	const tags = ["info"]

	app.get("/health", { config: open, schema: { tags } }, async () => {
		const counters = queue.isReady() ? queue.status(activeMs).catch(() => undefined) : undefined
		const status = await Promise.race([counters, pause(healthMs, undefined, { ref: false })])
		const active = activeEndpoint(environment, status?.config.get("endpoint"))
		const endpoints =
			status === undefined ? undefined : await service.serverless?.endpoints().catch(() => undefined)
		const preflight = endpoints?.find(({ isActive }) => isActive)?.preflight
		return {
			status: status === undefined ? "unhealthy" : "healthy",
			version: service.version,
			inference_mode: environment.INFERENCE_MODE,
			active_gpu: activeGpu(environment, active),
			serverless_endpoint: endpointName(configuredEndpoints(environment).get(active)),
			...(service.serverless !== undefined && { serverless_preflight: preflight ?? "unchecked" }),
			redis_connected: status !== undefined,
			workers_active: status?.activeWorkers ?? null,
			queue_depth: status?.waiting ?? null,
			uptime_seconds: Math.floor((service.now() - service.startedMs) / 1000),
		}
	})

	app.get("/queue/status", { config: open, schema: { tags } }, async () => {
		try {
			const status = await queue.status(activeMs)
			return {
				mode: status.mode,
				pending_jobs: status.waiting,
				running_jobs: status.running.length,
				completed_jobs: status.totals.get("completed") ?? 0,
				failed_jobs: status.totals.get("failed") ?? 0,
				total_workers: status.workers.length,
				active_workers: status.activeWorkers,
				queue_depth: status.waiting,
			}
		} catch (error) {
			if (error instanceof RedisDownError) throw new HttpError(500, "Redis is not reachable")
			throw error
		}
	})

	app.get("/metrics", { config: open, schema: { hide: true } }, async (_request, reply) => {
		const status = queue.isReady() ? await queue.status(activeMs).catch(() => undefined) : undefined
		const endpoints = await service.serverless?.endpoints().catch(() => undefined)
		return reply.type(metrics.contentType).send(await metrics.page(status, hub.clients(), endpoints))
	})

	app.get("/openapi.json", { config: open, schema: { hide: true } }, async () => app.swagger())

	app.get("/banner", { config: { access: "known" }, schema: { tags } }, async () => {
		const banner = (await queue.configure({})).get("banner")
		return banner === undefined ? { text: "", level: "info" } : (JSON.parse(banner) as unknown)
	})

	// A page with a bug reports the same thing all day long.
	const mayReport = createRateLimit({ burst: 20, perSecond: 0.5 })
	app.post(
		"/client-log",
		{ config: { access: "known" }, schema: { body: shape.clientLogBody, tags } },
		async (request, reply) => {
			const { role, name } = request.principal
			const who = name === "" ? (request.socket.remoteAddress ?? "") : `${role}:${name}`
			if (!mayReport(who, service.now())) {
				throw new HttpError(429, "Too many reports", { "retry-after": "10" })
			}
			const { level, message, context = {} } = parseBody(shape.clientLogBody, request.body)
			request.log[level]({ client: who, context }, message)
			const at = new Date(service.now()).toISOString()
			await queue.keepReport(JSON.stringify({ at, client: who, level, message, context }))
			return reply.code(204).send(null)
		},
	)

	app.get(
		"/client-log",
		{
			config: { access: "admin" },
			schema: { querystring: shape.listQuery.pick({ limit: true }), tags: ["admin"] },
		},
		async (request, reply) => {
			const reports = await queue.reports(request.query.limit)
			return reply.type("application/json; charset=utf-8").send(`[${reports.join(",")}]`)
		},
	)
}
