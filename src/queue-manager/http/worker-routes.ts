// Workers that come for their jobs over HTTP: the one that only polls, and ours, which heartbeats.
import type { Socket } from "node:net"
import type { FastifyRequest } from "fastify"
import type { Principal } from "../identity.ts"
import { isolateWorkflow } from "../outputs/isolate.ts"
import { leaseMs, type Service } from "../service.ts"
import {
	bytesOf,
	type CompleteBody,
	mostResultBytes,
	parseBody,
	pickMembers,
	readComplete,
	withMembers,
} from "./body.ts"
import { HttpError } from "./errors.ts"
import * as shape from "./schemas.ts"
import type { App } from "./server.ts"

// The lease travels in headers, so that the answer's body is what older workers know.
const leaseHeader = "x-comfyume-lease"
const attemptHeader = "x-comfyume-attempt"
const recordedHeader = "x-comfyume-recorded"
const mostErrorLength = 10_000
// Longer than a delivery may take, and its end to be recorded.
const deliveringMs = 75_000

/** Registers the routes. */
export function workerRoutes(app: App, service: Service): void {
	const { queue, environment } = service
	const worker = { access: "worker" as const }
	const tags = ["workers"]
	const answered = new WeakMap<Socket, { worker: string; token: string }>()

	app.get(
		"/workers/next-job",
		{ config: worker, schema: { querystring: shape.claimQuery, tags } },
		async (request, reply) => {
			const { worker_id, heartbeat } = request.query
			reply.type("application/json; charset=utf-8")
			if (service.closing.aborted) return { job: null }
			const heartbeats = heartbeat === "true" || heartbeat === "1"
			const lease = leaseMs(environment, heartbeats)
			// Who asks again over the same connection has read what was sent before. Of a proxy's that says nothing.
			const isDirect = request.headers["x-forwarded-for"] === undefined
			const last = isDirect ? answered.get(request.socket) : undefined
			const read = last?.worker === worker_id ? last.token : undefined
			const job = await queue.claim(worker_id, nameOf(request.principal), lease, heartbeats, { read })
			if (job === undefined) return { job: null }
			answered.set(request.socket, { worker: worker_id, token: job.token })
			// Who has gone before the last byte was sent doesn't have the job.
			if (request.socket.destroyed) queue.unclaim(worker_id, job)
			else {
				reply.raw.once("close", () => {
					if (!reply.raw.writableFinished) queue.unclaim(worker_id, job)
				})
			}
			reply.header(leaseHeader, job.token).header(attemptHeader, String(job.attempt))
			// The workflow goes out as it came in, apart from where its files go when they are delivered from here.
			const name = { job: job.id, attempt: job.attempt, createdAt: new Date(job.createdMs) }
			const workflow =
				service.workerOutputs === undefined ? job.workflow : await isolateWorkflow(job.workflow, name)
			return reply.send(
				Buffer.concat([
					Buffer.from(
						`{"job":{"id":${JSON.stringify(job.id)},"user_id":${JSON.stringify(job.user)},"metadata":`,
					),
					job.metadata,
					Buffer.from(',"workflow":'),
					workflow,
					Buffer.from("}}"),
				]),
			)
		},
	)

	app.post(
		"/workers/complete-job",
		{
			config: worker,
			bodyLimit: mostResultBytes + 1024 * 1024,
			schema: { querystring: shape.jobQuery, tags },
		},
		async (request, reply) => {
			const { job_id: id } = request.query
			const said = await readComplete(request.body)
			const { result, failure, directory } = await delivered(request, id, said)
			const answer = await queue.settle({
				...holderOf(request),
				id,
				status: failure === undefined ? "completed" : "failed",
				error: failure ?? "",
				result,
				retryable: false,
			})
			if (answer.state === "done" && directory !== undefined) await service.workerOutputs?.clear(directory)
			reply.header(recordedHeader, String(answer.state === "done" || answer.state === "repeated"))
			return settled(request, id, answer)
		},
	)

	/** The result with its files in the user's directory, for the one who has the job; anybody else's stays untouched. */
	async function delivered(
		request: FastifyRequest,
		id: string,
		said: CompleteBody,
	): Promise<Omit<CompleteBody, "members"> & { directory?: string | undefined }> {
		if (service.workerOutputs === undefined || said.failure !== undefined) return said
		const { token, principal } = holderOf(request)
		const held = await queue.holder(id, token, principal, deliveringMs)
		if (held.state !== "held") return said
		const { user, attempt } = held
		// The rest of it may be megabytes, and nothing here needs to read it.
		const told = pickMembers(said, ["outputs", "output_path"])
		const delivery = await service.workerOutputs.deliver({ id, user, attempt }, told)
		const { failure, undelivered } = delivery
		// What was not delivered may yet come, or be fetched by hand: then the directory stays.
		const directory = failure === undefined && undelivered.length === 0 ? delivery.directory : undefined
		return { result: withMembers(said, delivery.result), failure, directory }
	}

	app.post(
		"/workers/fail-job",
		{ config: worker, schema: { querystring: shape.failQuery, body: shape.failBody.optional(), tags } },
		async (request, reply) => {
			const { job_id: id } = request.query
			const { error, retryable = false } = failureOf(request, request.query.error)
			const answer = await queue.settle({ ...holderOf(request), id, status: "failed", error, retryable })
			const recorded = ["done", "retried", "repeated"].includes(answer.state)
			reply.header(recordedHeader, String(recorded))
			return settled(request, id, answer)
		},
	)

	app.post(
		"/workers/release-job",
		{ config: worker, schema: { querystring: shape.jobQuery, tags } },
		async (request) => {
			const { job_id } = request.query
			const state = await queue.giveBack(job_id, holderOf(request).token)
			if (state === "lost") throw new HttpError(409, "The job is not yours any more")
			return { status: "success", job_id }
		},
	)

	app.post(
		"/workers/heartbeat",
		{ config: worker, schema: { body: shape.heartbeatBody, tags } },
		async (request) => {
			const beat = parseBody(shape.heartbeatBody, request.body)
			const state = await queue.heartbeat({
				worker: beat.worker_id,
				id: beat.job_id ?? "",
				...holderOf(request),
				leaseMs: leaseMs(environment, true),
				timeoutMs: environment.JOB_TIMEOUT * 1000,
				about: beat.about === undefined ? "" : JSON.stringify(beat.about),
				progress: beat.progress === undefined ? "" : JSON.stringify(beat.progress),
			})
			return { state }
		},
	)

	app.get("/workers", { config: { access: "admin" }, schema: { tags } }, async () => {
		const { workers, nowMs } = await queue.status(environment.WORKER_HEARTBEAT_TIMEOUT * 1000)
		return workers.map(({ name, seenMs, job, about, progress }) => ({
			worker_id: name,
			seen_at: new Date(seenMs).toISOString(),
			active: job !== null || nowMs - seenMs <= environment.WORKER_HEARTBEAT_TIMEOUT * 1000,
			job_id: job,
			about: about === null ? null : (JSON.parse(about) as unknown),
			progress: job === null || progress === null ? null : (JSON.parse(progress) as unknown),
		}))
	})
}

const nameOf = ({ role, name }: Principal) => (name === "" ? "" : `${role}:${name}`)

function holderOf(request: FastifyRequest): { token: string; principal: string } {
	const token = request.headers[leaseHeader]
	return { token: typeof token === "string" ? token : "", principal: nameOf(request.principal) }
}

function failureOf(
	request: FastifyRequest,
	query: string | undefined,
): { error: string; retryable?: boolean } {
	if (bytesOf(request.body).length > 0) {
		const { error, retryable } = parseBody(shape.failBody, request.body)
		return { error, ...(retryable === undefined ? {} : { retryable }) }
	}
	const error = (query ?? "").trim().slice(0, mostErrorLength)
	if (error === "")
		throw new HttpError(422, [{ loc: ["body", "error"], msg: "Field required", type: "missing" }])
	return { error }
}

type Answer = { state: string; status?: string }

/** What a worker is told. One that showed a lease learns that it has lost it; others know no such answer. */
function settled(request: FastifyRequest, id: string, { state, status }: Answer) {
	if (state === "missing") throw new HttpError(404, "Job not found")
	const isRefused = state === "waiting" || state === "lost" || state === "ended"
	if (isRefused && (holderOf(request).token !== "" || state !== "ended")) {
		const what = state === "ended" ? `it is already ${status}` : "its lease has ended"
		throw new HttpError(409, `The job is not yours any more: ${what}`)
	}
	return { status: "success", job_id: id }
}
