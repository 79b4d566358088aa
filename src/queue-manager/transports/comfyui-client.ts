// ComfyUI's HTTP interface as a load-balanced endpoint offers it: each request may reach another replica.
import { OperatorError } from "../../lib/errors.ts"
import type { Secret } from "../../lib/secret.ts"
import type { FarSide } from "../outputs/preflight.ts"

export type Answer = { status: number; text: string; body: unknown; retryAfterMs: number | undefined }

/** What a replica knew of a prompt when it was asked. */
export type Sighting =
	| { state: "unseen" | "pending" | "running" | "succeeded" | "interrupted" }
	| { state: "failed"; error: string; details: unknown }

export type ComfyuiClient = {
	/** @throws {NoAnswer} when none came */
	prompt(body: unknown, options: { timeoutMs: number; signal?: AbortSignal }): Promise<Answer>
	/**
	 * Asks whichever replica answers; `unseen` proves nothing, and so does no answer.
	 * @param round how often it was asked before
	 */
	sight(promptId: string, round: number, signal?: AbortSignal): Promise<Sighting>
	/** Takes a prompt out of the queue, and interrupts it where it runs. @param round how often it was tried before */
	stop(promptId: string, round: number): Promise<void>
	far: FarSide
}

/** No HTTP answer came. `isSent`: the request may have arrived all the same. */
export class NoAnswer extends OperatorError {
	readonly isSent: boolean

	constructor(message: string, isSent: boolean, cause?: unknown) {
		super(message, { cause })
		this.name = "NoAnswer"
		this.isSent = isSent
	}
}

const mostAnswerBytes = 16 * 1024 * 1024
const smallTimeoutMs = 15_000

/**
 * @param endpoint.url of the deployment, with no slash at its end
 * @param endpoint.key sent as bearer token; redirects are never followed with it
 */
export function comfyuiClient(endpoint: {
	name: string
	url: string
	key: Secret | undefined
}): ComfyuiClient {
	const headers = (): Record<string, string> =>
		endpoint.key === undefined ? {} : { authorization: `Bearer ${endpoint.key.reveal()}` }

	async function ask(
		path: string,
		{
			timeoutMs,
			signal,
			...request
		}: Omit<RequestInit, "signal"> & { timeoutMs: number; signal?: AbortSignal | undefined },
	): Promise<Answer> {
		const timeout = AbortSignal.timeout(Math.ceil(timeoutMs))
		try {
			const response = await fetch(`${endpoint.url}${path}`, {
				...request,
				headers: { ...headers(), ...(request.headers as Record<string, string> | undefined) },
				redirect: "manual",
				signal: signal === undefined ? timeout : AbortSignal.any([signal, timeout]),
			})
			const text = await readText(response)
			return { status: response.status, text, body: parse(text), retryAfterMs: retryAfter(response.headers) }
		} catch (error) {
			signal?.throwIfAborted()
			if (timeout.aborted)
				throw new NoAnswer(`${endpoint.name} gave no answer in ${timeoutMs} ms`, true, error)
			const code = causeCode(error)
			const isSent = !["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "EHOSTUNREACH"].includes(code)
			throw new NoAnswer(`${endpoint.name} gave no answer (${code})`, isSent, error)
		}
	}
	const post = (path: string, body: unknown, timeoutMs: number, signal?: AbortSignal) =>
		ask(path, {
			method: "POST",
			headers: { "content-type": "application/json" },
			body: JSON.stringify(body),
			timeoutMs,
			signal,
		})
	const get = (path: string, signal?: AbortSignal) => ask(path, { timeoutMs: smallTimeoutMs, signal })

	return {
		prompt: (body, { timeoutMs, signal }) => post("/prompt", body, timeoutMs, signal),
		async sight(promptId, round, signal) {
			const inHistory = async (): Promise<Sighting> => {
				const { body } = await get(`/history/${encodeURIComponent(promptId)}`, signal)
				const entry = field(body, promptId)
				return entry === undefined ? { state: "unseen" } : fromHistory(entry)
			}
			const inQueue = async (): Promise<Sighting> => {
				const { body } = await get("/queue", signal)
				const holds = (list: unknown) =>
					Array.isArray(list) && list.some((item) => Array.isArray(item) && item[1] === promptId)
				if (holds(field(body, "queue_running"))) return { state: "running" }
				return { state: holds(field(body, "queue_pending")) ? "pending" : "unseen" }
			}
			for (const ask of outOfStep(inHistory, inQueue, round)) {
				const sighting = await ask()
				if (sighting.state !== "unseen") return sighting
			}
			return { state: "unseen" }
		},
		async stop(promptId, round) {
			const unqueue = () => post("/queue", { delete: [promptId] }, smallTimeoutMs)
			const interrupt = () => post("/interrupt", { prompt_id: promptId }, smallTimeoutMs)
			for (const ask of outOfStep(unqueue, interrupt, round)) await ask()
		},
		far: {
			async read({ subfolder, filename }) {
				const query = new URLSearchParams({ filename, subfolder, type: "output" })
				const answer = await get(`/view?${query}`)
				if (answer.status === 404) return undefined
				if (answer.status !== 200)
					throw new OperatorError(`${endpoint.name} answers ${answer.status} to /view`)
				return answer.text
			},
			async write({ subfolder, filename }, text) {
				const form = new FormData()
				form.set("type", "output")
				form.set("subfolder", subfolder)
				form.set("image", new Blob([text]), filename)
				const answer = await ask("/upload/image", { method: "POST", body: form, timeoutMs: smallTimeoutMs })
				if (answer.status !== 200)
					throw new OperatorError(`${endpoint.name} answers ${answer.status} to /upload/image`)
			},
		},
	}
}

/**
 * Two questions in turn would each reach the same replicas for ever, where a balancer deals them out one after the
 * other: so their order and number differ from round to round.
 */
function outOfStep<T>(one: () => Promise<T>, other: () => Promise<T>, round: number): (() => Promise<T>)[] {
	const orders = [
		[one, other],
		[other, one],
		[one, one, other],
		[other, other, one],
	]
	return orders[round % orders.length] ?? []
}

/** @throws {OperatorError} for an answer that is too long */
export async function readText(response: Response): Promise<string> {
	const chunks: Uint8Array[] = []
	let sizeBytes = 0
	for await (const chunk of response.body ?? []) {
		sizeBytes += chunk.length
		if (sizeBytes > mostAnswerBytes) throw new OperatorError("the answer is too long")
		chunks.push(chunk)
	}
	return Buffer.concat(chunks).toString("utf8")
}

/** JSON's value; the text itself where it is none. */
export function parse(text: string): unknown {
	try {
		return JSON.parse(text)
	} catch {
		return text
	}
}

/** In ms; undefined where the header says nothing. */
export function retryAfter(headers: Headers): number | undefined {
	const seconds = Number(headers.get("retry-after") ?? "none")
	return Number.isFinite(seconds) && seconds >= 0 ? seconds * 1000 : undefined
}

/** undici wraps what the system said. */
export function causeCode(error: unknown): string {
	const cause = error instanceof Error ? error.cause : undefined
	return String(field(cause, "code") ?? field(error, "code") ?? "connection lost")
}

/** A member of what came as JSON; undefined where there is none. */
export function field(value: unknown, key: string): unknown {
	return typeof value === "object" && value !== null && key in value
		? (value as Record<string, unknown>)[key]
		: undefined
}

function fromHistory(entry: unknown): Sighting {
	const status = field(entry, "status")
	const messages = field(status, "messages")
	const list: unknown[] = Array.isArray(messages) ? messages : []
	const named = (name: string) => list.find((message) => Array.isArray(message) && message[0] === name)
	if (named("execution_interrupted") !== undefined) return { state: "interrupted" }
	const failure = named("execution_error")
	if (failure === undefined && field(status, "status_str") !== "error") return { state: "succeeded" }
	const details: unknown = Array.isArray(failure) ? failure[1] : undefined
	const [type, message, node] = ["exception_type", "exception_message", "node_type"].map((key) =>
		String(field(details, key) ?? "")
			.trim()
			.slice(0, 500),
	)
	return { state: "failed", error: `${node || "a node"}: ${type} ${message}`.trim(), details }
}
