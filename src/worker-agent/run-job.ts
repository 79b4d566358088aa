// One attempt at a job, from ComfyUI's queue to what ComfyUI's history says of it.
import type { Logger } from "pino"
import { messageOf } from "../lib/errors.ts"
import { bell } from "./bell.ts"
import type { Comfyui, HistoryEntry } from "./comfyui.ts"
import type { Heart } from "./heart.ts"
import type { Ending, Note } from "./note.ts"
import { outputsOf, wrongFile } from "./outputs.ts"
import { followMessages, type Progress, progressAfter } from "./progress.ts"

export type Attempt = {
	note: Note
	/** Undefined: it was submitted before the agent was restarted, and is only watched. */
	workflow: Record<string, unknown> | undefined
	/** What ComfyUI writes into pictures beside the prompt: `metadata.extra_pnginfo` of the job. */
	pngInfo: object | undefined
	comfyui: Comfyui
	comfyuiUrl: string
	/** The name under which ComfyUI sends its messages. */
	clientId: string
	/** Silence of ComfyUI after which the job is given up. */
	silenceMs: number
	outputsPath: string | undefined
	heart: Heart
	/** Aborted when the agent has to go before the job is done. */
	handBack: AbortSignal
	log: Logger
	now: () => number
}

export type AttemptEnd = Ending | { state: "dropped"; because: string }

// How often history is asked, and every how many of these the queue too: it answers with whole workflows.
const tickMs = 1000
const ticksPerQueue = 5

/** Runs one attempt to its end. Doesn't throw for what ComfyUI does: that is an ending. */
export async function runAttempt(attempt: Attempt): Promise<AttemptEnd> {
	const { note, comfyui, heart, handBack, log, now } = attempt
	const closed = new AbortController()
	const wake = bell(heart.gone, handBack)
	let progress: Progress = { prompt_id: note.promptId, phase: "submitting", executed: 0 }
	let asksQueue = true
	let number = 0
	let nodeErrors: Record<string, unknown> = {}

	heart.tell(progress)
	const onMessage = (text: string) => {
		const next = progressAfter(progress, text)
		progress = next.progress
		heart.tell(progress)
		if (next.ended) look()
	}
	const look = () => {
		asksQueue = true
		wake.ring()
	}
	followMessages(attempt.comfyuiUrl, attempt.clientId, onMessage, look, closed.signal)
	try {
		return (await submit()) ?? (await watch())
	} finally {
		closed.abort()
	}

	async function submit(): Promise<AttemptEnd | undefined> {
		if (attempt.workflow === undefined) return undefined
		const giveUpAt = now() + attempt.silenceMs
		for (;;) {
			const stopped = await stoppedEarly()
			if (stopped !== undefined) return stopped
			try {
				const submitted = await comfyui.submit(
					attempt.workflow,
					note.promptId,
					attempt.clientId,
					attempt.pngInfo,
				)
				if (submitted.state === "refused") return failed(`ComfyUI refused the workflow: ${submitted.because}`)
				number = submitted.number
				nodeErrors = submitted.nodeErrors
				return undefined
			} catch (error) {
				log.warn({ job: note.id, error: messageOf(error) }, "ComfyUI didn't take the prompt")
				// It may have been taken all the same, and must not be run twice.
				if (await isKnown()) return undefined
				if (now() > giveUpAt) return lost(`ComfyUI took no prompt: ${messageOf(error)}`)
				await wake.wait(tickMs)
			}
		}
	}

	async function isKnown(): Promise<boolean> {
		try {
			if ((await comfyui.queued()).includes(note.promptId)) return true
			return (await comfyui.history(note.promptId)) !== undefined
		} catch {
			return false
		}
	}

	async function watch(): Promise<AttemptEnd> {
		let heardMs = now()
		progress = { ...progress, phase: "polling" }
		heart.tell(progress)
		for (let tick = 0; ; tick++) {
			const stopped = await stoppedEarly()
			if (stopped !== undefined) return stopped
			try {
				// The queue first: what has left it stands in history by then.
				const asks = asksQueue || tick % ticksPerQueue === 0
				asksQueue = false
				const isQueued = !asks || (await comfyui.queued()).includes(note.promptId)
				const entry = await comfyui.history(note.promptId)
				heardMs = now()
				if (entry !== undefined) return await judged(entry)
				if (!isQueued) return lost("ComfyUI knows nothing of the prompt any more: it was restarted meanwhile")
			} catch (error) {
				log.debug({ job: note.id, error: messageOf(error) }, "ComfyUI doesn't answer")
				if (now() - heardMs > attempt.silenceMs) {
					const seconds = Math.round(attempt.silenceMs / 1000)
					return lost(`ComfyUI has not answered for ${seconds} s: ${messageOf(error)}`)
				}
			}
			await wake.wait(tickMs)
		}
	}

	async function stoppedEarly(): Promise<AttemptEnd | undefined> {
		if (!heart.gone.aborted && !handBack.aborted) return undefined
		// Whoever asks for work next makes sure that it has really ended.
		await comfyui.stop(note.promptId).catch((error) => {
			log.warn({ job: note.id, error: messageOf(error) }, "ComfyUI was not told to stop")
		})
		if (heart.gone.aborted) return { state: "dropped", because: String(heart.gone.reason) }
		return { state: "handed back", because: "the worker is being stopped" }
	}

	async function judged(entry: HistoryEntry): Promise<Ending> {
		const wrong = failureOf(entry, note.saving)
		if (wrong !== undefined) return failed(wrong)
		const { outputs, files } = outputsOf(entry)
		if (attempt.outputsPath !== undefined) {
			const missing = await wrongFile(attempt.outputsPath, files)
			if (missing !== undefined) return failed(`ComfyUI reported success, but ${missing}`)
		}
		const result = {
			prompt_id: note.promptId,
			number,
			node_errors: nodeErrors,
			status: "success",
			execution_status: "success",
			outputs,
			execution_time: Math.round(secondsOf(entry) ?? (now() - note.startedMs) / 1000),
			output_path: attempt.outputsPath ?? null,
			timestamp: new Date(now()).toISOString(),
		}
		return { state: "completed", result }
	}
}

const failed = (error: string): Ending => ({ state: "failed", error, retryable: false })
// The worker's fault and not the job's: another attempt may do.
const lost = (why: string): Ending => ({ state: "failed", error: `worker lost: ${why}`, retryable: true })

/**
 * Why a prompt that has ended counts as failed; undefined when it did what it should.
 * @param saving ids of nodes that save files: with some of them, success without any output is none
 */
export function failureOf(entry: HistoryEntry, saving: readonly string[]): string | undefined {
	const messages = new Map(entry.status?.messages ?? [])
	const error = messages.get("execution_error")
	if (error !== undefined) {
		const where = `${text(error.node_type) ?? "node"} ${text(error.node_id) ?? "?"}`
		const what = (text(error.exception_message) ?? "no reason was given").trim()
		const memory = /out ?of ?memory/i.test(`${text(error.exception_type)} ${what}`)
		return `${memory ? "the GPU ran out of memory in " : ""}${where}: ${what}`.slice(0, 4000)
	}
	if (messages.has("execution_interrupted")) return "interrupted at the worker, by nobody we know"
	const status = entry.status?.status_str
	if (status !== undefined && status !== "success") return `ComfyUI reported ${status} without a reason`
	if (entry.status?.completed === false) return "ComfyUI ended it before it was complete"
	if (saving.length > 0 && Object.keys(entry.outputs).length === 0)
		return `ComfyUI reported success and saved nothing (expected of node ${saving.join(", ")})`
	return undefined
}

const text = (value: unknown) =>
	typeof value === "string" || typeof value === "number" ? String(value) : undefined

function secondsOf(entry: HistoryEntry): number | undefined {
	const messages = new Map(entry.status?.messages ?? [])
	const start = messages.get("execution_start")?.timestamp
	const end = messages.get("execution_success")?.timestamp
	return typeof start === "number" && typeof end === "number" ? (end - start) / 1000 : undefined
}

/**
 * The graph as its user sees it, of a job's metadata; ComfyUI writes it into pictures, so that they can be opened as
 * workflows. Undefined where there is none.
 */
export function pngInfoOf({ extra_pnginfo }: Record<string, unknown>): object | undefined {
	return typeof extra_pnginfo === "object" && extra_pnginfo !== null ? extra_pnginfo : undefined
}
