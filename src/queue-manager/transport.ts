// How a job gets onto a GPU that doesn't come for it: one interface for every way of running it.
import { OperatorError } from "../lib/errors.ts"

/** A job as a transport gets it; `workflow` is JSON text. */
export type TransportJob = {
	id: string
	user: string
	/** From 1. */
	attempt: number
	createdMs: number
	workflow: Buffer
	/** Where it goes, by name; without one, to the endpoint that is active when it starts. */
	endpoint?: string
	/** From acceptance to its end, where that is another time than the transport's own. */
	maxWaitMs?: number
}

export type Progress = {
	phase: "submitting" | "polling" | "complete"
	message?: string
	/** The node at work, how far it is, and how many have given outputs: where the other side says it. */
	node?: string
	value?: number
	max?: number
	executed?: number
}

/** Why a job failed, for metrics and tests; the message says it to people. */
export type FailureReason =
	/** The workflow is wrong; another try would be as wrong. */
	| "invalid"
	/** Nobody took it: the endpoint is down, full or still starting. */
	| "unavailable"
	/** The endpoint refuses us, or isn't what we take it for. */
	| "misconfigured"
	/** Taken, and then nothing at all was seen of it. */
	| "never-executed"
	/** Seen running or writing, and not done in time. */
	| "slow"
	/** ComfyUI says that it failed. */
	| "execution-error"
	/** ComfyUI says that it is done, and no file came. */
	| "no-files"
	/** Files came, and none that may be delivered for some node. */
	| "outputs-refused"
	/** The share didn't answer. */
	| "share"

/** A run ended. `retryable`: another attempt may help. `result` is JSON text. */
export type Outcome =
	| { state: "completed"; result: Buffer; refused: readonly { file: string; because: string }[] }
	| { state: "failed"; error: string; reason: FailureReason; retryable: boolean; result?: Buffer }

/** The job was not accepted. */
export class StartFailed extends OperatorError {
	readonly reason: FailureReason
	readonly retryable: boolean
	/** JSON text: `{node_errors, execution_error}` where ComfyUI said what is wrong with the workflow. */
	readonly result: Buffer | undefined

	constructor(
		message: string,
		{ reason, hint, result }: { reason: FailureReason; hint?: string; result?: unknown },
	) {
		super(message, hint === undefined ? {} : { hint })
		this.name = "StartFailed"
		this.reason = reason
		this.retryable = reason === "unavailable" || reason === "share"
		this.result = result === undefined ? undefined : Buffer.from(JSON.stringify(result))
	}
}

export type Transport = {
	/** How many more jobs it can start now. */
	freeSlots(): number
	/** Hands the job over; resolves when it was accepted. @throws {StartFailed} when it was not */
	start(job: TransportJob, onProgress?: (progress: Progress) => void, signal?: AbortSignal): Promise<void>
	/** Follows it to its end, also after a restart. @throws when the signal aborts */
	observe(job: TransportJob, onProgress: (progress: Progress) => void, signal: AbortSignal): Promise<Outcome>
	/** Stops it as far as it can be reached: out of the other side's queue, or interrupted. */
	cancel(job: TransportJob): Promise<void>
	/** A job doesn't outlive the queue manager that started it: nobody can go on observing it. */
	endsWithUs?: boolean
}
