// Hands one prompt to a load-balanced endpoint, within a time that lets a GPU wake up.
import { messageOf } from "../../lib/errors.ts"
import type { Clock } from "../outputs/watch.ts"
import { type Progress, StartFailed } from "../transport.ts"
import { type Answer, type ComfyuiClient, field, NoAnswer } from "./comfyui-client.ts"

export type Accepted = { submission: number; number: number; nodeErrors: Record<string, unknown> }

export type SubmitOptions = {
	endpoint: { name: string; client: Pick<ComfyuiClient, "prompt"> }
	/** The body for the n-th submission: each that may have been accepted unseen gets a directory of its own. */
	bodyOf(submission: number): Promise<unknown>
	clock: Clock
	acceptMs: number
	onProgress: (progress: Progress) => void
	signal?: AbortSignal
}

const saidColdAfterMs = 5_000
const firstPauseMs = 1_000
const longestPauseMs = 15_000

/**
 * Submits until it is accepted, refused for good, or the time is over.
 * @throws {StartFailed}
 */
export async function submit(options: SubmitOptions): Promise<Accepted> {
	const { endpoint, clock, onProgress, signal } = options
	const untilMs = clock.nowMs() + options.acceptMs
	let pauseMs = firstPauseMs
	let submission = 1
	let last = "no answer"
	for (;;) {
		const leftMs = untilMs - clock.nowMs()
		if (leftMs < 1)
			throw new StartFailed(
				`${endpoint.name} did not take the job within ${options.acceptMs / 1000} s (the last: ${last})`,
				{ reason: "unavailable", hint: "look at the deployment's replicas, or switch to another endpoint" },
			)
		const body = await options.bodyOf(submission)
		const answered = new AbortController()
		const sayCold = clock.wait(saidColdAfterMs, answered.signal).then(
			() => onProgress({ phase: "submitting", message: `cold start: ${endpoint.name} wakes a GPU` }),
			() => {},
		)
		let answer: Answer | undefined
		let mayBeAccepted = false
		try {
			answer = await endpoint.client.prompt(body, { timeoutMs: leftMs, ...(signal && { signal }) })
		} catch (error) {
			if (!(error instanceof NoAnswer)) throw error
			last = messageOf(error)
			mayBeAccepted = error.isSent
		} finally {
			answered.abort()
			await sayCold
		}
		if (answer !== undefined) {
			const accepted = judge(endpoint.name, answer)
			if (accepted !== undefined) return { ...accepted, submission }
			last = `HTTP ${answer.status}`
			mayBeAccepted = answer.status === 502 || answer.status === 504
			onProgress({ phase: "submitting", message: `${endpoint.name} answers ${answer.status}; trying again` })
		}
		// Two replicas that run one prompt would count up in one directory and mix their files.
		if (mayBeAccepted) submission++
		const waitMs = Math.min(
			answer?.retryAfterMs ?? pauseMs,
			longestPauseMs,
			Math.max(0, untilMs - clock.nowMs()),
		)
		await clock.wait(waitMs, signal)
		pauseMs = Math.min(pauseMs * 2, longestPauseMs)
	}
}

/** Undefined where trying again can help. @throws {StartFailed} where it can't */
function judge(name: string, { status, body }: Answer): Omit<Accepted, "submission"> | undefined {
	if (status === 200) {
		const number = field(body, "number")
		if (typeof field(body, "prompt_id") !== "string")
			throw new StartFailed(`${name} answers 200, and not as ComfyUI does`, {
				reason: "misconfigured",
				hint: "check the endpoint's address: is ComfyUI behind it?",
			})
		return {
			number: typeof number === "number" ? number : 0,
			nodeErrors: recordOf(field(body, "node_errors")),
		}
	}
	if ([429, 502, 503, 504].includes(status)) return undefined
	if (status === 400) {
		const error = field(body, "error")
		const said = typeof error === "string" ? error : String(field(error, "message") ?? "invalid prompt")
		const nodeErrors = recordOf(field(body, "node_errors"))
		const nodes = Object.keys(nodeErrors)
		throw new StartFailed(
			`ComfyUI refuses the workflow: ${said}${nodes.length ? ` (nodes ${nodes.join(", ")})` : ""}`,
			{
				reason: "invalid",
				result: { node_errors: nodeErrors, execution_error: error ?? said, execution_status: "error" },
			},
		)
	}
	const isKey = status === 401 || status === 403
	throw new StartFailed(`${name} answers ${status} to a job`, {
		reason: "misconfigured",
		hint: isKey
			? "check SERVERLESS_API_KEY"
			: "check SERVERLESS_ENDPOINT: the deployment's name is part of it",
	})
}

const recordOf = (value: unknown): Record<string, unknown> =>
	typeof value === "object" && value !== null && !Array.isArray(value)
		? (value as Record<string, unknown>)
		: {}
