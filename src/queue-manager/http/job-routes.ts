// Jobs as users see them: submit, look, cancel, move.
import type { FastifyReply, FastifyRequest } from "fastify"
import { z } from "zod"
import { isAdmin, mayActFor } from "../identity.ts"
import { WorkflowRefused } from "../outputs/prefix.ts"
import type { Found } from "../queue/queue.ts"
import { levelOf, mostOwnOf, presentText, type Service } from "../service.ts"
import { bytesOf, mostSubmitBytes, parseBody, readSubmit } from "./body.ts"
import { HttpError } from "./errors.ts"
import { heldUntilDone } from "./held.ts"
import type { Room } from "./room.ts"
import * as shape from "./schemas.ts"
import { jobSender } from "./send-job.ts"
import type { App } from "./server.ts"

const json = "application/json; charset=utf-8"
const notFound = () => new HttpError(404, "Job not found")

/** Registers the routes. @param room for results that go out */
export function jobRoutes(app: App, service: Service, room: Room): void {
	const { queue, environment } = service
	const sendJob = jobSender(service, room)
	const user = { access: "user" as const }
	// For the document alone: answers are sent as the text that they are made as.
	const answer = (status: number, schema: unknown): Record<number, unknown> => ({ [status]: schema })
	const answers = answer(200, shape.job)
	const submitRoute = {
		config: user,
		bodyLimit: mostSubmitBytes,
		schema: { body: shape.submit, response: answer(201, shape.job), tags: ["jobs"] },
	}

	app.post("/jobs", submitRoute, async (request, reply) => {
		const found = await submit(request)
		return sendJob(request, reply.code(201), found)
	})

	app.post("/queue/submit", submitRoute, async (request, reply) => {
		const found = await submit(request)
		return sendJob(request, reply.code(201), found, { job_id: found.record.id })
	})

	async function submit(request: FastifyRequest): Promise<Found> {
		if (service.closing.aborted)
			throw new HttpError(503, "The queue manager is stopping", { "retry-after": "10" })
		const body = await readSubmit(request.body)
		if (!mayActFor(request.principal, body.user)) {
			throw new HttpError(403, `${request.principal.name} may not submit for ${body.user}`)
		}
		allowPriority(request, body.priority)
		refuseUnfit(body.workflow)
		// Instructors fill the queue as they see fit; with AUTH_MODE=open nobody is known.
		const mostOwn = request.principal.role === "user" ? mostOwnOf(environment) : 0
		const submitted = await queue.submit({
			user: body.user,
			priority: body.priority,
			level: levelOf(environment, body.priority),
			kind: body.kind,
			workflow: body.workflow,
			metadata: body.metadata,
			mostWaiting: environment.MAX_QUEUE_DEPTH,
			mostOwn,
			idempotencyKey: idempotencyKeyOf(request),
		})
		if (submitted.state === "full") {
			throw new HttpError(429, `Queue is full (max depth: ${environment.MAX_QUEUE_DEPTH})`, {
				"retry-after": "10",
			})
		}
		if (submitted.state === "crowded") {
			throw new HttpError(429, `Too many of your jobs are waiting (max user depth: ${mostOwn})`, {
				"retry-after": "10",
			})
		}
		// Its client shows the result itself and waits for it.
		if (body.source !== "serverless_proxy") return submitted.found
		return heldUntilDone(service, submitted.found, request.socket)
	}

	/** What no endpoint could run, or whose files could not be found, is told now and not after a GPU was woken. */
	function refuseUnfit(workflow: Buffer): void {
		try {
			service.serverless?.checkWorkflow(workflow)
		} catch (error) {
			if (!(error instanceof WorkflowRefused)) throw error
			const msg = error.hint === undefined ? error.message : `${error.message}; ${error.hint}`
			throw new HttpError(422, [{ loc: ["body", "workflow"], msg, type: "workflow_refused" }])
		}
	}

	app.get(
		"/jobs/:id",
		{ config: user, schema: { params: shape.jobParams, response: answers, tags: ["jobs"] } },
		async (request, reply) => {
			return sendJob(request, reply, await visible(request, request.params.id))
		},
	)

	app.get(
		"/jobs",
		{
			config: user,
			schema: { querystring: shape.listQuery, response: answer(200, z.array(shape.job)), tags: ["jobs"] },
		},
		async (request, reply) => {
			const { status = "", limit } = request.query
			const { principal } = request
			const wanted = request.query.user_id ?? (isAdmin(principal) ? "" : principal.name)
			if (wanted !== "" && !mayActFor(principal, wanted)) throw new HttpError(403, "These are not your jobs")
			return sendList(reply, await queue.list(wanted, status, limit))
		},
	)

	async function sendList(reply: FastifyReply, found: readonly Found[]) {
		const texts = await Promise.all(found.map((one) => presentText(service, one)))
		return reply.type(json).send(`[${texts.join(",")}]`)
	}

	app.delete(
		"/jobs/:id",
		{ config: user, schema: { params: shape.jobParams, response: answer(204, z.null()), tags: ["jobs"] } },
		async (request, reply) => {
			await visible(request, request.params.id)
			const moved = await queue.cancel(request.params.id)
			if (moved.state === "missing") throw notFound()
			if (moved.state === "ended") throw new HttpError(400, `Job is already ${moved.status}`)
			return reply.code(204).send(null)
		},
	)

	app.patch(
		"/jobs/:id/priority",
		{
			config: user,
			schema: {
				params: shape.jobParams,
				querystring: shape.priorityQuery,
				body: shape.priorityBody.optional(),
				tags: ["jobs"],
			},
		},
		async (request) => {
			const { id } = request.params
			const given =
				bytesOf(request.body).length > 0
					? parseBody(shape.priorityBody, request.body)
					: request.query.priority
			if (given === undefined) {
				throw new HttpError(422, [{ loc: ["body", "priority"], msg: "Field required", type: "missing" }])
			}
			const priority = typeof given === "object" ? given.priority : given
			await visible(request, id)
			allowPriority(request, priority)
			const moved = await queue.reprioritise(id, priority, levelOf(environment, priority))
			if (moved.state === "missing") throw notFound()
			if (moved.state === "ended") throw new HttpError(400, `Job is ${moved.status}, not pending`)
			return { status: "success", job_id: id, priority }
		},
	)

	app.post(
		"/jobs/:id/retry",
		{
			config: { access: "admin" },
			schema: { params: shape.jobParams, response: answers, tags: ["admin"] },
		},
		async (request, reply) => {
			const { id } = request.params
			const moved = await queue.retry(id)
			if (moved.state === "missing") throw notFound()
			if (moved.state === "payload") throw new HttpError(400, "Its workflow is not kept any more")
			if (moved.state === "ended") throw new HttpError(400, `Job is ${moved.status}, not failed`)
			return sendJob(request, reply, await visible(request, id))
		},
	)

	app.get(
		"/dead",
		{
			config: { access: "admin" },
			schema: { querystring: shape.listQuery.pick({ limit: true }), tags: ["admin"] },
		},
		async (request, reply) => {
			const found = await queue.dead(request.query.limit)
			const texts = await Promise.all(
				found.map((one) =>
					presentText(service, one, { reason: one.record.dead, attempts: one.record.attempt }),
				),
			)
			return reply.type(json).send(`[${texts.join(",")}]`)
		},
	)

	/** A job that the asker may see. */
	async function visible(request: FastifyRequest, id: string): Promise<Found> {
		const found = await queue.find(id)
		if (found === undefined) throw notFound()
		if (!mayActFor(request.principal, found.record.user)) throw new HttpError(403, "This is not your job")
		return found
	}
}

function allowPriority({ principal }: FastifyRequest, priority: number): void {
	if (priority === 0 && !isAdmin(principal)) throw new HttpError(403, "Priority 0 is for instructors")
}

function idempotencyKeyOf(request: FastifyRequest): string | undefined {
	const key = request.headers["idempotency-key"]
	if (key === undefined) return undefined
	if (typeof key !== "string" || !/^[\x21-\x7e]{1,200}$/.test(key)) {
		throw new HttpError(422, [
			{ loc: ["header", "idempotency-key"], msg: "1 to 200 printable letters", type: "invalid" },
		])
	}
	return key
}
