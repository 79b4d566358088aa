// The queue manager as a worker sees it: claim, heartbeat, complete, fail, hand back.
import { z } from "zod"
import type { Secret } from "../lib/secret.ts"
import { ask, askFully, RefusedError, UnreachableError } from "./http.ts"

/** A job in this worker's hands. */
export type Claim = {
	id: string
	userId: string
	workflow: Record<string, unknown>
	metadata: Record<string, unknown>
	attempt: number
	/** Proves that it is ours; undefined from a queue manager that gives none. */
	leaseToken: string | undefined
}

/** What proves that a job is ours. */
export type Lease = Pick<Claim, "id" | "leaseToken">

/** `seen`: heard without a job. `cancelled`, `lost`: the job isn't ours any more. */
export type HeartbeatAnswer = "seen" | "held" | "cancelled" | "lost"

/** What the queue manager made of a job's end. `refused`: it will never take it, and says why. */
export type Taken = { state: "taken" } | { state: "refused"; status: number; because: string }

export type QueueClient = ReturnType<typeof queueClient>

const object = z.record(z.string(), z.unknown())
const claimSchema = z.object({
	job: z
		.object({
			id: z.string().min(1).max(200),
			user_id: z.string(),
			workflow: object,
			metadata: object.nullish(),
		})
		.nullable(),
})
// The lease travels in headers, so that bodies are what older workers know.
const leaseHeader = "x-comfyume-lease"
const attemptHeader = "x-comfyume-attempt"
const heartbeatSchema = z.object({ state: z.enum(["seen", "held", "cancelled", "lost"]) })

/** Every call throws `UnreachableError` when the queue manager is away, and `RefusedError` when it says no. */
export function queueClient(url: string, workerId: string, token: Secret | undefined) {
	const route = (name: string, query: Record<string, string>) =>
		`${url}/api/workers/${name}?${new URLSearchParams(query)}`

	const leaseOf = ({ leaseToken }: Lease): Record<string, string> =>
		leaseToken === undefined ? {} : { [leaseHeader]: leaseToken }

	async function end(name: string, lease: Lease, body: Record<string, unknown>): Promise<Taken> {
		try {
			// A result may have 50 MiB.
			await ask(route(name, { job_id: lease.id, worker_id: workerId }), {
				token,
				timeoutMs: 60_000,
				headers: leaseOf(lease),
				body,
			})
			return { state: "taken" }
		} catch (error) {
			if (!(error instanceof RefusedError)) throw error
			return { state: "refused", status: error.status, because: error.message }
		}
	}

	return {
		/**
		 * The next job, if there is one. Says that heartbeats will follow: the lease is short then.
		 * @throws {UnreachableError} the queue manager is away
		 */
		async claim(): Promise<Claim | undefined> {
			const { json, headers } = await askFully(
				route("next-job", { worker_id: workerId, heartbeat: "true" }),
				{
					token,
					timeoutMs: 30_000,
				},
			)
			const parsed = claimSchema.safeParse(json)
			if (!parsed.success) throw new UnreachableError(`next-job: ${z.prettifyError(parsed.error)}`)
			const { job } = parsed.data
			if (job === null) return undefined
			return {
				id: job.id,
				userId: job.user_id,
				workflow: job.workflow,
				metadata: job.metadata ?? {},
				attempt: Math.max(1, Math.trunc(Number(headers.get(attemptHeader))) || 1),
				leaseToken: headers.get(leaseHeader) ?? undefined,
			}
		},

		/**
		 * Says that the worker is alive, and perhaps how far it is with a job.
		 * @throws {UnreachableError} the queue manager is away
		 */
		async heartbeat(
			lease: Lease | undefined,
			progress: object | undefined,
			about: object | undefined,
		): Promise<HeartbeatAnswer> {
			const answer = await ask(`${url}/api/workers/heartbeat`, {
				token,
				headers: lease === undefined ? {} : leaseOf(lease),
				body: {
					worker_id: workerId,
					...(lease === undefined ? {} : { job_id: lease.id }),
					...(progress === undefined ? {} : { progress }),
					...(about === undefined ? {} : { about }),
				},
			})
			const parsed = heartbeatSchema.safeParse(answer)
			if (!parsed.success) throw new UnreachableError(`heartbeat: ${z.prettifyError(parsed.error)}`)
			return parsed.data.state
		},

		/** @throws {UnreachableError} the queue manager is away: the result is still ours to keep */
		complete: (lease: Lease, result: object) => end("complete-job", lease, { result }),

		/** @param retryable another attempt may help @throws {UnreachableError} as `complete` */
		fail: (lease: Lease, error: string, retryable: boolean) => end("fail-job", lease, { error, retryable }),

		/** Gives a job back as it came: nobody's fault. @throws {UnreachableError} as `complete` */
		release: (lease: Lease, because: string) => end("release-job", lease, { reason: because }),
	}
}
