// The HTTP server: who may come in, how much they may bring, and what errors look like. Routes stand in files of their
// own; each answers with and without the prefix /api.
import type { IncomingMessage, ServerResponse } from "node:http"
import swagger from "@fastify/swagger"
import websocket from "@fastify/websocket"
import fastify, {
	type FastifyBaseLogger,
	type FastifyError,
	type FastifyInstance,
	type FastifyReply,
	type FastifyRequest,
	LogController,
	type RawServerDefault,
} from "fastify"
import { jsonSchemaTransform, validatorCompiler, type ZodTypeProvider } from "fastify-type-provider-zod"
import { codeOf } from "../../lib/errors.ts"
import { type IdentityOptions, identify, isAdmin, mayWork, type Principal } from "../identity.ts"
import { RedisDownError } from "../queue/connection.ts"
import type { Service } from "../service.ts"
import { adminRoutes } from "./admin-routes.ts"
import { mostSmallBytes } from "./body.ts"
import { HttpError, problemsOf } from "./errors.ts"
import { infoRoutes } from "./info-routes.ts"
import { jobRoutes } from "./job-routes.ts"
import { isFromStranger } from "./origin.ts"
import { roomForBodies, roomForResults } from "./room.ts"
import { socketRoutes } from "./socket.ts"
import { workerRoutes } from "./worker-routes.ts"

/** Who a route is for. `known` is everybody who is somebody. */
export type Access = "public" | "known" | "user" | "worker" | "admin"

declare module "fastify" {
	interface FastifyRequest {
		principal: Principal
	}
	interface FastifyContextConfig {
		access?: Access
	}
}

export type App = FastifyInstance<
	RawServerDefault,
	IncomingMessage,
	ServerResponse,
	FastifyBaseLogger,
	ZodTypeProvider
>

const retryAfter = { "retry-after": "5" }

/** Makes the server; it listens when its `listen` is called. */
export async function createServer(
	service: Service,
	identity: IdentityOptions,
	logger: FastifyBaseLogger,
): Promise<App> {
	const app = fastify({
		loggerInstance: logger,
		logController: new LogController({ disableRequestLogging: true }),
		bodyLimit: mostSmallBytes,
		// A slow client holds one connection, not for ever.
		requestTimeout: 300_000,
		// `?error=` of a failed job may be long: it is cut here, not refused by the parser.
		http: { maxHeaderSize: 256 * 1024, headersTimeout: 20_000 },
		forceCloseConnections: "idle",
		routerOptions: { ignoreTrailingSlash: true, maxParamLength: 200 },
	}).withTypeProvider<ZodTypeProvider>()

	app.removeAllContentTypeParsers()
	app.addContentTypeParser("*", { parseAs: "buffer" }, (_request, body, done) => done(null, body))
	app.setValidatorCompiler((route) =>
		// Bodies are read by the routes: some are scanned and never parsed.
		route.httpPart === "body" ? (value) => ({ value }) : validatorCompiler(route as never),
	)
	app.setSerializerCompiler(() => (value) => JSON.stringify(value))
	app.decorateRequest("principal", null as unknown as Principal)

	admit(app, service, identity)
	answerErrors(app)
	const known = knownPaths(app)
	app.setNotFoundHandler((request, reply) => {
		const methods = known(request.url.split("?")[0] ?? "")
		if (methods.length === 0) return reply.code(404).send({ detail: "Not Found" })
		return reply.code(405).header("allow", methods.join(", ")).send({ detail: "Method Not Allowed" })
	})

	await app.register(swagger, {
		openapi: { openapi: "3.1.0", info: { title: "comfyume queue manager", version: service.version } },
		transform: jsonSchemaTransform,
	})
	await app.register(websocket, { options: { maxPayload: 64 * 1024 } })
	const results = roomForResults()
	for (const prefix of ["/api", ""]) {
		await app.register(
			(scope, _options, done) => {
				const routes = scope.withTypeProvider<ZodTypeProvider>() as App
				// The document names each route once.
				if (prefix === "") scope.addHook("onRoute", hide)
				infoRoutes(routes, service)
				jobRoutes(routes, service, results)
				workerRoutes(routes, service)
				adminRoutes(routes, service)
				socketRoutes(routes, service)
				done()
			},
			{ prefix },
		)
	}
	return app as App
}

function hide(route: { schema?: { hide?: boolean } }): void {
	route.schema = { ...route.schema, hide: true }
}

/** Lets requests in: preflights, identity, room for their bodies. */
function admit(app: FastifyInstance, service: Service, identity: IdentityOptions): void {
	const origins = new Set(service.environment.CORS_ORIGINS)
	const room = roomForBodies()

	app.addHook("onRequest", async (request, reply) => {
		const origin = request.headers.origin
		if (origin !== undefined && (origins.has(origin) || origins.has("*"))) {
			reply.header("access-control-allow-origin", origins.has("*") ? "*" : origin).header("vary", "origin")
		}
		if (request.method === "OPTIONS") {
			return reply
				.code(204)
				.header("access-control-allow-methods", "GET, POST, PUT, PATCH, DELETE, OPTIONS")
				.header("access-control-allow-headers", "authorization, content-type, idempotency-key")
				.header("access-control-max-age", "600")
				.send()
		}
		const access = request.routeOptions.config.access ?? "public"
		if (access !== "public") request.principal = admitted(access, request)
		reserve(request, reply)
		return undefined
	})
	// Connections that stay open would hold up the end.
	app.addHook("onSend", async (_request, reply) => {
		if (service.closing.aborted) reply.header("connection", "close")
	})

	function admitted(access: Access, request: FastifyRequest): Principal {
		const principal = identify(identity, request.headers, request.socket.remoteAddress ?? "")
		if (principal === undefined) {
			throw new HttpError(401, "Not authenticated", { "www-authenticate": "Bearer" })
		}
		const may =
			access === "known" ||
			(access === "admin" && isAdmin(principal)) ||
			(access === "worker" && mayWork(principal)) ||
			(access === "user" && principal.role !== "worker")
		if (!may) throw new HttpError(403, `This needs the role ${access}`)
		if (principal.isProxied === true && isFromStranger(request.method, request.headers, origins)) {
			throw new HttpError(403, "Another site's page asks for this: CORS_ORIGINS names those that may")
		}
		return principal
	}

	function reserve(request: FastifyRequest, reply: FastifyReply): void {
		const limit = request.routeOptions.bodyLimit ?? mostSmallBytes
		const declared = Number(request.headers["content-length"] ?? Number.NaN)
		const isChunked = request.headers["transfer-encoding"] !== undefined
		const size = isChunked ? limit : Math.min(Number.isNaN(declared) ? 0 : declared, limit)
		if (size <= mostSmallBytes) return
		const taken = room.take(request.principal ?? { role: "open", name: "" }, size)
		if (taken === "all") throw new HttpError(503, "Too much is being sent at once", retryAfter)
		if (taken === "own") throw new HttpError(429, "You are sending too much at once", retryAfter)
		reply.raw.once("close", taken)
	}
}

function answerErrors(app: FastifyInstance): void {
	app.setErrorHandler<FastifyError>((error, request, reply) => {
		if (error instanceof HttpError) {
			// What is still being sent is not waited for.
			if (error.statusCode === 401 || error.statusCode === 403) reply.header("connection", "close")
			return reply.code(error.statusCode).headers(error.headers).send({ detail: error.detail })
		}
		if (error instanceof RedisDownError) {
			request.log.warn({ reason: error.message }, "redis is away")
			// The counters' route has an answer of its own for this.
			return reply.code(503).headers(retryAfter).send({ detail: "The queue is not reachable at the moment" })
		}
		if (error.validation !== undefined) {
			const issues = error.validation.flatMap((one) => {
				const issue = (one.params as { issue?: Parameters<typeof problemsOf>[0][number] }).issue
				return issue === undefined ? [] : [issue]
			})
			const where = error.validationContext === "querystring" ? "query" : "path"
			const detail =
				issues.length > 0 ? problemsOf(issues, where) : (error.message ?? "The request is malformed")
			return reply.code(422).send({ detail })
		}
		if (codeOf(error) === "FST_ERR_CTP_BODY_TOO_LARGE") {
			return reply.code(422).header("connection", "close").send({ detail: "The body is too large" })
		}
		const status = error.statusCode ?? 500
		if (status >= 500) request.log.error({ err: error }, "a bug")
		return reply.code(status).send({ detail: status >= 500 ? "Internal Server Error" : error.message })
	})
}

/** Remembers which methods a path has, so that another one is told from an unknown path. */
function knownPaths(app: FastifyInstance): (path: string) => string[] {
	const methodsByPattern = new Map<string, Set<string>>()
	app.addHook("onRoute", ({ url, method }) => {
		const methods = methodsByPattern.get(url) ?? new Set()
		for (const one of [method].flat()) methods.add(one)
		methodsByPattern.set(url, methods)
	})
	return (path) => {
		const trimmed = path.replace(/(.)\/$/, "$1")
		const found = [...methodsByPattern].filter(([pattern]) =>
			new RegExp(`^${pattern.replaceAll(/:[a-z]+/g, "[^/]+").replaceAll(".", "\\.")}$`).test(trimmed),
		)
		return [...new Set(found.flatMap(([, methods]) => [...methods]))]
	}
}
