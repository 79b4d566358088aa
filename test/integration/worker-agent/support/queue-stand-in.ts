// A stand-in for the queue manager, for answers that the real one gives only when something is broken. What a worker may
// ask of it is as the contract says; who gets which job is not its business.
import { randomUUID } from "node:crypto"
import fastify, { type FastifyInstance } from "fastify"

export type StandInJob = {
	id: string
	status: "pending" | "running" | "completed" | "failed" | "cancelled"
	workflow: object
	metadata: object
	attempt: number
	token: string
	result?: Record<string, unknown>
	error?: string
	retryable?: boolean
	/** How often somebody ended it. */
	endings: number
	releases: number
	progress: Record<string, unknown>[]
}

export type QueueStandIn = Awaited<ReturnType<typeof startQueueStandIn>>

/** @param token the bearer token that it wants; undefined wants none */
export async function startQueueStandIn({ token }: { token?: string } = {}) {
	const jobs = new Map<string, StandInJob>()
	const seen = {
		claims: 0,
		heartbeats: [] as Record<string, unknown>[],
		refusals: 0,
		/** Answers of complete-job to give before it works, the next first. */
		completeAnswers: [] as number[],
	}
	let app: FastifyInstance | undefined
	let port = 0

	async function start(): Promise<void> {
		const server = fastify({ forceCloseConnections: true, bodyLimit: 64 * 1024 * 1024 })
		server.addHook("onRequest", async (request, reply) => {
			if (token === undefined || request.headers.authorization === `Bearer ${token}`) return
			seen.refusals++
			return reply.code(401).send({ detail: "no valid token" })
		})
		server.get("/api/workers/next-job", async (_, reply) => {
			seen.claims++
			const job = [...jobs.values()].find(({ status }) => status === "pending")
			if (job === undefined) return { job: null }
			Object.assign(job, { status: "running", attempt: job.attempt + 1, token: randomUUID() })
			const { id, workflow, metadata, attempt } = job
			reply.header("x-comfyume-lease", job.token).header("x-comfyume-attempt", attempt)
			return { job: { id, workflow, user_id: "user001", metadata } }
		})
		server.post("/api/workers/heartbeat", async (request) => {
			const body = request.body as Record<string, unknown>
			seen.heartbeats.push(body)
			if (body.job_id === undefined) return { state: "seen" }
			const job = jobs.get(String(body.job_id))
			if (job === undefined) return { state: "lost" }
			if (job.status === "cancelled") return { state: "cancelled" }
			if (job.status !== "running" || job.token !== request.headers["x-comfyume-lease"])
				return { state: "lost" }
			if (body.progress !== undefined) job.progress.push(body.progress as Record<string, unknown>)
			return { state: "held" }
		})
		for (const [route, change] of Object.entries(endings)) {
			server.post(`/api/workers/${route}`, async (request, reply) => {
				const job = jobs.get((request.query as { job_id: string }).job_id)
				if (job === undefined) return reply.code(404).send({ detail: "no such job" })
				if (route === "complete-job") {
					const status = seen.completeAnswers.shift()
					if (status !== undefined) return reply.code(status).send({ detail: `answered ${status}` })
				}
				const body = request.body as Record<string, unknown>
				job.endings++
				if (job.status !== "running" || job.token !== request.headers["x-comfyume-lease"])
					return reply.code(409).send({ detail: `it is ${job.status}` })
				change(job, body)
				return { status: "success", job_id: job.id }
			})
		}
		await server.listen({ host: "127.0.0.1", port })
		const address = server.server.address()
		port = typeof address === "object" && address !== null ? address.port : 0
		app = server
	}

	async function stop(): Promise<void> {
		await app?.close()
		app = undefined
	}

	await start()
	return {
		url: `http://127.0.0.1:${port}`,
		seen,
		add(workflow: object, metadata: object = {}): StandInJob {
			const id = randomUUID()
			const job: StandInJob = {
				...{ id, workflow, metadata, status: "pending", attempt: 0, token: "", endings: 0, releases: 0 },
				progress: [],
			}
			jobs.set(id, job)
			return job
		},
		stop,
		start,
		[Symbol.asyncDispose]: stop,
	}
}

const endings: Record<string, (job: StandInJob, body: Record<string, unknown>) => void> = {
	"complete-job": (job, { result }) => Object.assign(job, { status: "completed", result }),
	"fail-job": (job, { error, retryable }) => Object.assign(job, { status: "failed", error, retryable }),
	"release-job": (job) => Object.assign(job, { status: "pending", releases: job.releases + 1 }),
}
