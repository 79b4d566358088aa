// Transport 2: our agent behind a load balancer answers `POST /run` when the job is done, so that the balancer sees one
// request in flight for each GPU that works. The request is the job: closing it cancels, and when it breaks the job is
// tried again. Files go the same way as everywhere: the agent names them, they lie in the attempt's directory.
import { setTimeout as pause } from "node:timers/promises"
import { messageOf, OperatorError } from "../../lib/errors.ts"
import { attemptDirectory, planOutputs } from "../outputs/prefix.ts"
import { deliverWorkerOutputs } from "../outputs/worker-outputs.ts"
import { type Outcome, type Progress, StartFailed, type TransportJob } from "../transport.ts"
import { checkedWorkflow, keyOf, nameOf, type Run } from "./attempt.ts"
import { type Answer, causeCode, field, NoAnswer, parse, readText, retryAfter } from "./comfyui-client.ts"
import type { Endpoint } from "./endpoints.ts"
import { failed } from "./outcome.ts"
import { acceptedName, type SharedFilesystem, type SharedFilesystemOptions } from "./shared-filesystem.ts"
import { submit } from "./submit.ts"

export type HeldOptions = SharedFilesystemOptions & {
	/** Without a line for so long the connection counts as broken; 60 000. The agent says something every 10 s. */
	silenceMs?: number
}

/** A request that is under way: its lines, one JSON value each. */
type Held = { lines: AsyncIterator<unknown>; close(): void }

const preflightMs = 15_000
// As large as a result may be that a worker hands in.
const mostLineLength = 50 * 1024 * 1024

/** @param shared what late files are waited for with, and directories removed */
export function heldRequest(options: HeldOptions, shared: SharedFilesystem): SharedFilesystem {
	const { endpoints, files, clock, shareRoot } = options
	const { acceptMs = 120_000, maxWaitMs: usualWaitMs = 590_000, silenceMs = 60_000 } = options
	const held = new Map<string, Held & { run: Run }>()

	return {
		...shared,
		endsWithUs: true,
		/** Sees whether our key is taken, so that a wrong one costs no second job. The share is proven by each job's files. */
		async preflight(name) {
			const endpoint = endpoints.find(name)
			const because = endpoint === undefined ? `there is no endpoint ${name}` : await whyNot(endpoint)
			if (because === undefined) return { state: "same-volume" }
			const isRefused = / answers 4/.test(because)
			return {
				...{ state: "failed", because, reason: isRefused ? "refused" : "unreachable" },
				hint: isRefused
					? "SERVERLESS_API_KEY is the agents' WORKER_TOKEN; SERVERLESS_ENDPOINT without /run"
					: "",
			}
		},
		async start(job, onProgress = () => {}, signal) {
			const endpoint = endpoints.find(job.endpoint ?? "") ?? endpoints.active()
			const workflow = checkedWorkflow(job)
			if (!endpoints.take(endpoint.name, keyOf(job)))
				throw new StartFailed(`${endpoint.name} runs as many jobs as it may`, { reason: "unavailable" })
			let request: Held | undefined
			try {
				onProgress({ phase: "submitting" })
				const accepted = await submit({
					...{ clock, acceptMs, onProgress, ...(signal && { signal }) },
					endpoint: {
						name: endpoint.name,
						client: {
							async prompt(body, { timeoutMs, signal }) {
								const opened = await openRun(endpoint, body, timeoutMs, signal)
								request = opened.held
								return opened.answer
							},
						},
					},
					async bodyOf(submission) {
						const plan = planOutputs(workflow, nameOf(job, submission))
						await files.makeShared({ root: shareRoot, path: plan.directory })
						const { prompt, extraData = {} } = plan
						return { id: job.id, attempt: job.attempt, submission, workflow: prompt, metadata: extraData }
					},
				})
				if (request === undefined) throw new OperatorError("accepted without a request")
				const run: Run = { ...accepted, endpoint: endpoint.name, acceptedMs: clock.nowMs() }
				held.set(keyOf(job), { ...request, run })
				// Who waits for late files reads it.
				const path = `${attemptDirectory(nameOf(job, run.submission))}/${acceptedName}`
				await files.write({ root: shareRoot, path, text: JSON.stringify(run) })
			} catch (error) {
				request?.close()
				held.delete(keyOf(job))
				endpoints.release(keyOf(job))
				if (signal?.aborted === true || error instanceof StartFailed) throw error
				throw new StartFailed(messageOf(error), { reason: "share", hint: `findmnt --target ${shareRoot}` })
			}
		},
		async observe(job, onProgress, signal) {
			const request = held.get(keyOf(job))
			if (request === undefined) {
				const because = "the request that held the job ended with the queue manager that had sent it"
				return failed(because, "unavailable", { retryable: true })
			}
			const maxWaitMs = job.maxWaitMs ?? usualWaitMs
			const over = AbortSignal.timeout(maxWaitMs)
			const { close } = request
			for (const one of [over, signal]) one.addEventListener("abort", close)
			try {
				signal.throwIfAborted()
				onProgress({ phase: "polling" })
				for (;;) {
					const line = await nextLine(request, silenceMs)
					signal.throwIfAborted()
					if (over.aborted) return failed(`not done within ${Math.round(maxWaitMs / 1000)} s`, "slow")
					if (line.state === "broken") {
						const because = `the connection to ${request.run.endpoint} broke while it ran: ${line.because}`
						return failed(because, "unavailable", { retryable: true })
					}
					const end = field(line.value, "end")
					if (end !== undefined) return await outcomeOf(job, request.run, end, onProgress)
					const progress = progressOf(field(line.value, "progress"))
					if (progress !== undefined) onProgress(progress)
				}
			} finally {
				for (const one of [over, signal]) one.removeEventListener("abort", close)
				close()
				held.delete(keyOf(job))
				endpoints.release(keyOf(job))
			}
		},
		async cancel(job) {
			held.get(keyOf(job))?.close()
			held.delete(keyOf(job))
			endpoints.release(keyOf(job))
		},
	}

	async function outcomeOf(
		job: TransportJob,
		run: Run,
		end: unknown,
		onProgress: (progress: Progress) => void,
	): Promise<Outcome> {
		const state = field(end, "state")
		const result = field(end, "result")
		if (state !== "completed" || typeof result !== "object" || result === null) {
			const said = field(end, "error") ?? field(end, "because")
			const because = typeof said === "string" ? said.slice(0, 4000) : "the agent gave no reason"
			const retryable = state === "handed back" || field(end, "retryable") === true
			return failed(because, retryable ? "unavailable" : "execution-error", { retryable })
		}
		const delivery = await deliverWorkerOutputs(
			{
				...options,
				files: options.deliveryFiles,
				onQuarantined: () =>
					options.say?.({ event: "quarantined", file: "", because: "another job's", job: job.id }),
			},
			{ id: job.id, user: job.user, attempt: job.attempt, submission: run.submission },
			result as Record<string, unknown>,
		)
		onProgress({ phase: "complete" })
		if (delivery.failure !== undefined) return failed(delivery.failure, "outputs-refused")
		return {
			state: "completed",
			result: Buffer.from(JSON.stringify(delivery.result)),
			refused: delivery.undelivered,
		}
	}
}

/** Asks in a way that an agent which takes our key answers with 405, whatever it does at the moment. */
async function whyNot({ name, url, key }: Endpoint): Promise<string | undefined> {
	const headers: Record<string, string> = key === undefined ? {} : { authorization: `Bearer ${key.reveal()}` }
	try {
		const signal = AbortSignal.timeout(preflightMs)
		const { status, body } = await fetch(`${url}/run`, { headers, redirect: "manual", signal })
		await body?.cancel()
		return status === 405 ? undefined : `${name} answers ${status}`
	} catch (error) {
		return `${name} gave no answer (${causeCode(error)})`
	}
}

/** Opens a request, and waits for its first line. @throws {NoAnswer} */
async function openRun(
	{ name, url, key }: Endpoint,
	body: unknown,
	timeoutMs: number,
	signal: AbortSignal | undefined,
): Promise<{ answer: Answer; held: Held | undefined }> {
	const closed = new AbortController()
	const close = () => closed.abort()
	const timer = setTimeout(close, timeoutMs)
	signal?.addEventListener("abort", close)
	try {
		const response = await fetch(`${url}/run`, {
			method: "POST",
			headers: {
				"content-type": "application/json",
				...(key !== undefined && { authorization: `Bearer ${key.reveal()}` }),
			},
			body: JSON.stringify(body),
			redirect: "manual",
			signal: closed.signal,
		})
		const { status, headers } = response
		const answerOf = (text: string, body: unknown): Answer => ({
			...{ status, text, body },
			retryAfterMs: retryAfter(headers),
		})
		if (status !== 200) {
			const text = await readText(response)
			return { answer: answerOf(text, parse(text)), held: undefined }
		}
		const lines = linesOf(response.body ?? [])
		const first = await lines.next()
		if (first.done === true) throw new NoAnswer(`${name} closed the request`, true)
		return { answer: answerOf("", field(first.value, "accepted")), held: { lines, close } }
	} catch (error) {
		signal?.throwIfAborted()
		close()
		if (error instanceof NoAnswer) throw error
		const why = closed.signal.aborted ? `in ${timeoutMs} ms` : `(${causeCode(error)})`
		throw new NoAnswer(`${name} gave no answer ${why}`, causeCode(error) !== "ECONNREFUSED", error)
	} finally {
		clearTimeout(timer)
		signal?.removeEventListener("abort", close)
	}
}

async function* linesOf(chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): AsyncGenerator<unknown> {
	const decoder = new TextDecoder()
	let parts: string[] = []
	let length = 0
	for await (const chunk of chunks) {
		const [head = "", ...rest] = decoder.decode(chunk, { stream: true }).split("\n")
		parts.push(head)
		length += head.length
		for (const next of rest) {
			yield parse(parts.join(""))
			parts = [next]
			length = next.length
		}
		if (length > mostLineLength) throw new OperatorError("a line is too long")
	}
}

type Line = { state: "line"; value: unknown } | { state: "broken"; because: string }

async function nextLine({ lines }: Held, silenceMs: number): Promise<Line> {
	const heard = new AbortController()
	try {
		const silence = pause(silenceMs, undefined, { signal: heard.signal }).then(
			() => ({ state: "broken", because: `nothing was heard for ${silenceMs / 1000} s` }) as const,
		)
		silence.catch(() => undefined)
		const next = lines
			.next()
			.then(
				({ done, value }): Line =>
					done === true ? { state: "broken", because: "it ended too early" } : { state: "line", value },
			)
		return await Promise.race([next, silence])
	} catch (error) {
		return { state: "broken", because: messageOf(error) }
	} finally {
		heard.abort()
	}
}

/** What is shown to users of it; the GPU's side may say anything. */
function progressOf(said: unknown): Progress | undefined {
	if (typeof said !== "object" || said === null) return undefined
	const phase = field(said, "phase") === "submitting" ? "submitting" : "polling"
	const node = field(said, "node")
	const numbers = ["value", "max", "executed"].flatMap((name) => {
		const value = field(said, name)
		return typeof value === "number" && Number.isFinite(value) ? [[name, value]] : []
	})
	return {
		phase,
		...(typeof node === "string" && { node: node.slice(0, 100) }),
		...(Object.fromEntries(numbers) as Pick<Progress, "value" | "max" | "executed">),
	}
}
