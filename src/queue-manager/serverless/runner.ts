// The jobs of an endpoint: claims them as a worker does, sees each to its end, goes on with those that another queue
// manager had begun, and waits for files that come late.
import { setTimeout as pause } from "node:timers/promises"
import type { FastifyBaseLogger } from "fastify"
import { messageOf } from "../../lib/errors.ts"
import type { EventHub } from "../events.ts"
import type { Metrics } from "../metrics.ts"
import { withPngInfo } from "../outputs/png-info.ts"
import type { Queue } from "../queue/queue.ts"
import { type Outcome, type Progress, StartFailed, type TransportJob } from "../transport.ts"
import type { SharedFilesystem } from "../transports/shared-filesystem.ts"
import { withAmendment } from "./amendment.ts"
import type { EndpointTrust } from "./endpoint-watch.ts"

export type RunnerOptions = {
	queue: Queue
	hub: EventHub
	metrics: Metrics
	transport: SharedFilesystem
	log: FastifyBaseLogger
	now: () => number
	leaseMs: number
	jobTimeoutMs: number
	slots: number
	/** Where new jobs go, and for how long they are waited for. @throws when Redis is away */
	settings(): Promise<{ endpoint: string; maxWaitMs: number }>
	trust: {
		of(name: string): EndpointTrust
		mayStart(name: string): boolean
		distrust(name: string, because: string, hint: string | undefined): void
	}
}

type InHand = {
	job: TransportJob
	token: string
	worker: string
	stop: AbortController
	progress: string
	/** An endpoint is known to have it. */
	isAccepted: boolean
}
type Why = "cancelled" | "lost" | "closing"

const turnMs = 1000

/** Starts it. Nothing is claimed before Redis answers. */
export function startRunner(options: RunnerOptions) {
	const { queue, hub, metrics, transport, log, now, leaseMs, jobTimeoutMs, slots, trust } = options
	const inHand = new Map<string, InHand>()
	const late = new Map<string, AbortController>()
	const tasks = new Set<Promise<void>>()
	const closing = new AbortController()
	let wake = new AbortController()
	const ring = () => wake.abort()

	const forget = hub.onChange((record) => {
		if (record.status === "cancelled") stop(record.id, "cancelled")
		if (record.status !== "running") ring()
	})
	const looping = loop()
	const beating = setInterval(() => void beatAll(), Math.max(250, Math.min(leaseMs / 3, 10_000)))

	function stop(id: string, why: Why): void {
		inHand.get(id)?.stop.abort(why)
	}

	async function loop(): Promise<void> {
		while (!closing.signal.aborted) {
			wake = new AbortController()
			const signal = AbortSignal.any([wake.signal, closing.signal])
			// Redis being away is told elsewhere; the next turn may do better.
			await turn().catch((error: unknown) => log.debug({ reason: messageOf(error) }, "no turn"))
			await pause(turnMs, undefined, { signal }).catch(() => undefined)
		}
	}

	async function turn(): Promise<void> {
		for (;;) {
			const worker = freeSlot()
			const adopted = await queue.adopt(worker, leaseMs, jobTimeoutMs, [...inHand.keys()])
			if (adopted === undefined) break
			log.info({ job: adopted.id, attempt: adopted.attempt }, "goes on with a job that was begun before")
			const workflow = await queue.workflowOf(adopted.id)
			begin({ ...adopted, workflow: workflow ?? Buffer.from("{}") }, worker, true, await options.settings())
		}
		for (;;) {
			const job = await queue.takeLate(leaseMs)
			if (job === undefined) break
			const workflow = await queue.workflowOf(job.id)
			if (workflow !== undefined && !late.has(job.id)) track(waitForLate({ ...job, workflow }))
		}
		const settings = await options.settings()
		while (!closing.signal.aborted && trust.mayStart(settings.endpoint)) {
			const worker = freeSlot()
			const endpoint = { name: settings.endpoint, slots }
			const claimed = await queue.claim(worker, "", leaseMs, true, { endpoint })
			if (claimed === undefined) break
			const workflow = withPngInfo(claimed.workflow, claimed.metadata)
			begin({ ...claimed, workflow, endpoint: settings.endpoint }, worker, false, settings)
		}
	}

	/** Slots have names that stay, so that the list of workers does. */
	function freeSlot(): string {
		const taken = new Set([...inHand.values()].map(({ worker }) => worker))
		for (let slot = 1; ; slot++) if (!taken.has(`serverless/${slot}`)) return `serverless/${slot}`
	}

	function track(task: Promise<void>): void {
		const kept = task
			.catch((error: unknown) => log.error({ err: error }, "a job ended badly"))
			.finally(() => tasks.delete(kept))
		tasks.add(kept)
	}

	function begin(
		given: TransportJob & { token: string },
		worker: string,
		isBegun: boolean,
		{ maxWaitMs }: { maxWaitMs: number },
	): void {
		const { id, user, attempt, createdMs, workflow, endpoint, token } = given
		const job = {
			id,
			user,
			attempt,
			createdMs,
			workflow,
			maxWaitMs,
			...(endpoint !== undefined && { endpoint }),
		}
		const held: InHand = {
			job,
			token,
			worker,
			stop: new AbortController(),
			progress: "",
			isAccepted: isBegun,
		}
		inHand.set(id, held)
		if (closing.signal.aborted) held.stop.abort("closing")
		track(
			see(held).finally(() => {
				inHand.delete(id)
				ring()
			}),
		)
	}

	async function see(held: InHand): Promise<void> {
		const { job, stop } = held
		try {
			if (!held.isAccepted) {
				await start(held)
				held.isAccepted = true
				if (closing.signal.aborted) stop.abort("closing")
			}
			const outcome = await transport.observe(job, (progress) => tell(held, progress), stop.signal)
			// What wasn't done in time may still be waiting for a GPU.
			const isLoose =
				outcome.state === "failed" && ["never-executed", "slow", "share"].includes(outcome.reason)
			if (isLoose) track(transport.cancel(job))
			await settle(held, outcome)
		} catch (error) {
			if (stop.signal.aborted) return await letGo(held, stop.signal.reason as Why)
			if (!(error instanceof StartFailed)) log.error({ err: error, job: job.id }, "a bug in a run")
			const isStart = error instanceof StartFailed
			if (isStart && error.reason === "misconfigured" && job.endpoint !== undefined)
				trust.distrust(job.endpoint, error.message, error.hint)
			const hint = isStart && error.hint !== undefined ? ` (${error.hint})` : ""
			await settle(held, {
				state: "failed",
				error: `${messageOf(error)}${hint}`,
				reason: isStart ? error.reason : "invalid",
				retryable: isStart && error.retryable,
				...(isStart && error.result !== undefined && { result: error.result }),
			})
		}
	}

	async function start(held: InHand): Promise<void> {
		const { job, stop } = held
		const startedMs = now()
		let isCold = false
		const onProgress = (progress: Progress) => {
			isCold ||= progress.message?.startsWith("cold start") === true
			tell(held, progress)
		}
		await transport.start(job, onProgress, stop.signal)
		if (isCold) metrics.coldStart((now() - startedMs) / 1000)
	}

	async function letGo({ job, token, isAccepted }: InHand, why: Why): Promise<void> {
		if (why === "cancelled") return transport.cancel(job)
		if (why === "closing") {
			if (isAccepted && transport.endsWithUs !== true) return queue.handOver(job.id, token)
			// Whether it was accepted isn't known, or nobody can go on with it: it is stopped, and begun anew elsewhere.
			track(transport.cancel(job))
			await queue.giveBack(job.id, token)
			return
		}
		// Another queue manager may be going on with this very attempt.
		const found = await queue.find(job.id)
		const isElsewhere = found?.record.status === "running" && found.record.attempt === job.attempt
		if (!isElsewhere) await transport.cancel(job)
	}

	/** Says how it ended, until Redis has heard it. Who comes after a crash finds the files delivered, and says the same. */
	async function settle({ job, token }: InHand, outcome: Outcome): Promise<void> {
		const isDone = outcome.state === "completed"
		const why = isDone ? {} : { error: outcome.error, reason: outcome.reason, retryable: outcome.retryable }
		const refused = isDone && outcome.refused.length > 0 ? { refused: outcome.refused } : {}
		log.info(
			{ job: job.id, attempt: job.attempt, state: outcome.state, ...why, ...refused },
			"a job's run ended",
		)
		for (;;) {
			try {
				const answer = await queue.settle({
					id: job.id,
					token,
					principal: "",
					status: outcome.state,
					error: isDone ? "" : outcome.error.slice(0, 10_000),
					...(outcome.result !== undefined && { result: outcome.result }),
					retryable: !isDone && outcome.retryable,
				})
				if (answer.state === "done" || answer.state === "retried") return
				log.warn({ job: job.id, answer: answer.state }, "the end of a run came too late")
				return
			} catch (error) {
				log.warn({ job: job.id, reason: messageOf(error) }, "the end of a run can't be recorded yet")
				if (closing.signal.aborted) return
				await pause(turnMs, undefined, { signal: closing.signal }).catch(() => undefined)
			}
		}
	}

	function tell(held: InHand, progress: Progress): void {
		const text = JSON.stringify(progress)
		if (text === held.progress) return
		held.progress = text
		void beat(held, text)
	}

	async function beatAll(): Promise<void> {
		const taken = new Set([...inHand.values()].map(({ worker }) => worker))
		for (let slot = 1; slot <= slots; slot++) {
			if (!taken.has(`serverless/${slot}`)) void beatIdle(`serverless/${slot}`)
		}
		await Promise.all([...inHand.values()].map((held) => beat(held, "")))
		for (const id of late.keys()) await queue.keepLate(id, leaseMs).catch(() => undefined)
	}

	async function beatIdle(worker: string): Promise<void> {
		const idle = { id: "", token: "", about: "", progress: "", leaseMs, timeoutMs: jobTimeoutMs }
		await queue.heartbeat({ worker, ...idle }).catch(() => undefined)
	}

	async function beat({ job, token, worker }: InHand, progress: string): Promise<void> {
		const beat = { worker, id: job.id, token, leaseMs, timeoutMs: jobTimeoutMs, about: "", progress }
		const state = await queue.heartbeat(beat).catch(() => "held" as const)
		if (state === "cancelled" || state === "lost") stop(job.id, state)
	}

	async function waitForLate(job: TransportJob): Promise<void> {
		const ending = new AbortController()
		late.set(job.id, ending)
		try {
			await transport.watchLate(
				job,
				async (amendment) => {
					const done = await queue.amend(job.id, (result) => withAmendment(result, amendment))
					if (done === "done") log.info({ job: job.id, file: amendment.file.filename }, "a file came late")
				},
				ending.signal,
			)
			await queue.keepLate(job.id, null)
		} catch (error) {
			if (!ending.signal.aborted) throw error
			await queue.keepLate(job.id, 0)
		} finally {
			late.delete(job.id)
		}
	}

	return {
		/** How many jobs it sees to at present. */
		running: () => inHand.size,
		/** Claims nothing more, and lets go of what it has: endpoints go on with it. At most `mostMs`. */
		async close(mostMs: number): Promise<void> {
			closing.abort()
			forget()
			// What is being submitted may be accepted at this moment: it would be run twice.
			for (const { stop, isAccepted } of inHand.values()) if (isAccepted) stop.abort("closing")
			const hurry = setTimeout(() => {
				for (const { stop } of inHand.values()) stop.abort("closing")
			}, mostMs / 2)
			for (const ending of late.values()) ending.abort()
			clearInterval(beating)
			const all = looping.then(() => Promise.all([...tasks]))
			await Promise.race([all, pause(mostMs, undefined, { ref: false })])
			clearTimeout(hurry)
		},
	}
}
