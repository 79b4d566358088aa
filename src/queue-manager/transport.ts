// How a job gets onto a GPU that doesn't come for it: the seam for transports that push (held request, vanilla ComfyUI
// over a shared file system). A worker that pulls needs none: it claims over HTTP.

/** A job as a transport gets it. `workflow` and `metadata` are JSON text. */
export type TransportJob = { id: string; user: string; attempt: number; workflow: Buffer; metadata: Buffer }

export type Progress = {
	phase: "submitting" | "polling" | "complete"
	value?: number
	max?: number
	node?: string
	message?: string
}

/** How a run ended. `retryable`: another attempt may help (the worker was lost, 502, 503). */
export type Outcome =
	| { state: "completed"; result: Buffer }
	| { state: "failed"; error: string; retryable: boolean; result?: Buffer }

export type Transport = {
	/** Hands the job over. Resolves when it was accepted. @throws when it was not */
	start(job: TransportJob): Promise<void>
	/** Follows it to its end. */
	observe(job: TransportJob, onProgress: (progress: Progress) => void, signal: AbortSignal): Promise<Outcome>
	/** Stops it: out of the other side's queue, or interrupted. */
	cancel(job: TransportJob): Promise<void>
}
