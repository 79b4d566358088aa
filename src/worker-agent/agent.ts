// The agent's loop: when ComfyUI is free, ask for a job, run it, hand in how it ended. One job at a time.
import { randomUUID } from "node:crypto"
import type { Logger } from "pino"
import { messageOf } from "../lib/errors.ts"
import { promptIdOf } from "../lib/formats/prompt-id.ts"
import { bell } from "./bell.ts"
import type { Comfyui, GpuMemory } from "./comfyui.ts"
import type { AgentConfiguration } from "./configuration.ts"
import { deliver } from "./deliver.ts"
import { fitOf, type MemorySource, neededMb } from "./gpu.ts"
import { startHeart } from "./heart.ts"
import { RefusedError, UnreachableError } from "./http.ts"
import type { Ending, Note, Notebook } from "./note.ts"
import { isolateOutputs } from "./outputs.ts"
import type { Claim, QueueClient } from "./queue-client.ts"
import { pngInfoOf, runAttempt } from "./run-job.ts"

export type AgentParts = {
	configuration: AgentConfiguration
	queue: QueueClient
	comfyui: Comfyui
	memory: MemorySource
	notebook: Notebook
	log: Logger
	now: () => number
	/** Kept up to date, for the health page. */
	state: AgentState
}

/** What the health page tells. */
export type AgentState = {
	job: string | undefined
	/** Why no job is asked for at the moment. */
	waitingBecause: string | undefined
	queueManagerAnswers: boolean
	memory: GpuMemory | undefined
}

const longestBackoffMs = 30_000
// A job that is too large for this GPU is offered to others so often before it fails.
const mostRefusals = 3
const mostRefusalMs = 60_000

/** The state before anything was asked. */
export const freshState = (): AgentState => ({
	job: undefined,
	waitingBecause: "it has just been started",
	queueManagerAnswers: false,
	memory: undefined,
})

/**
 * Runs until `stop` is aborted; then the job at hand may end within `drainMs`, or is handed back.
 * @throws {OperatorError} when its own notes can't be written: it would lose results
 */
export async function runAgent(
	{ configuration, queue, comfyui, memory, notebook, log, now, state }: AgentParts,
	stop: AbortSignal,
): Promise<void> {
	const { pollMs, drainMs } = configuration
	const clientId = randomUUID()
	const handBack = new AbortController()
	const rest = bell(stop)
	const refusals = new Map<string, number>()
	let lastPromptId: string | undefined
	let drain: NodeJS.Timeout | undefined

	stop.addEventListener("abort", () => {
		drain = setTimeout(() => handBack.abort(), drainMs)
	})
	try {
		await run()
	} finally {
		clearTimeout(drain)
	}

	async function run(): Promise<void> {
		const left = await notebook.read()
		if (left !== undefined) await resume(left)
		let failures = 0
		while (!stop.aborted) {
			const waitMs = await turn().then(
				(next) => {
					failures = 0
					state.queueManagerAnswers = true
					return next
				},
				(error: unknown) => {
					// Anything else is a bug or a full disk: better to end than to claim jobs and lose them.
					if (!(error instanceof UnreachableError || error instanceof RefusedError)) throw error
					state.queueManagerAnswers = false
					state.waitingBecause = messageOf(error)
					log.warn({ error: messageOf(error) }, "no job could be asked for")
					return Math.min(pollMs * 2 ** failures++, longestBackoffMs)
				},
			)
			if (waitMs > 0) await rest.wait(waitMs)
		}
	}

	/** Asks for one job at most, and sees it through. @returns how long to wait before the next */
	async function turn(): Promise<number> {
		const because = await whyNotNow()
		if (because !== state.waitingBecause) log.info({ because }, because ? "asks for no job" : "asks for jobs")
		state.waitingBecause = because
		if (because !== undefined) {
			await queue.heartbeat(undefined, undefined, about())
			return pollMs
		}
		const claim = await queue.claim()
		if (claim === undefined) return pollMs
		return (await takes(claim)) ? 0 : refusalMs(claim.id)
	}

	/** Two prompts at once would share the GPU's memory; and what doesn't fit at all is better left to others. */
	async function whyNotNow(): Promise<string | undefined> {
		try {
			const queued = await comfyui.queued()
			if (lastPromptId !== undefined && queued.includes(lastPromptId)) {
				await comfyui.stop(lastPromptId)
				return "ComfyUI is still ending the job before"
			}
			if (queued.length > 0) return "ComfyUI is busy with a prompt that came another way"
			state.memory = await memory()
			const fit = fitOf(state.memory, configuration.vramDefaultMb, configuration.vramMarginMb)
			// A GPU that is small for good still takes jobs that say they need less.
			return fit.state === "not now" ? `a usual job ${fit.because}` : undefined
		} catch (error) {
			return `ComfyUI doesn't answer: ${messageOf(error)}`
		}
	}

	function about(): object {
		const { waitingBecause: because, memory: gpu } = state
		return {
			ready: because === undefined,
			...(because === undefined ? {} : { because }),
			...(gpu === undefined
				? {}
				: { gpu: gpu.name, vram_total_mb: gpu.totalMb, vram_obtainable_mb: gpu.obtainableMb }),
		}
	}

	/** @returns false when the job was handed back because it doesn't fit */
	async function takes(claim: Claim): Promise<boolean> {
		const isolated = isolateOutputs(claim.workflow, claim, new Date(now()))
		const note: Note = {
			version: 1,
			id: claim.id,
			attempt: claim.attempt,
			...(claim.leaseToken === undefined ? {} : { leaseToken: claim.leaseToken }),
			promptId: promptIdOf(claim.id, claim.attempt),
			saving: isolated.saving,
			startedMs: now(),
		}
		const fit = fitOf(
			state.memory,
			neededMb(claim.metadata, configuration.vramDefaultMb),
			configuration.vramMarginMb,
		)
		if (fit.state === "fits") {
			refusals.delete(claim.id)
			await see(note, isolated.workflow, pngInfoOf(claim.metadata))
			return true
		}
		const refused = (refusals.get(claim.id) ?? 0) + 1
		// Only those that were refused last matter.
		if (refusals.size > 100) refusals.clear()
		refusals.set(claim.id, refused)
		log.warn({ job: claim.id, because: fit.because, refused }, "the job doesn't fit")
		const ending: Ending =
			fit.state === "never" && refused >= mostRefusals
				? { state: "failed", error: `no worker took it: it ${fit.because}`, retryable: false }
				: { state: "handed back", because: `it ${fit.because}` }
		await handIn({ ...note, ending, endedMs: now() })
		return false
	}

	function refusalMs(id: string): number {
		return Math.min(pollMs * 2 ** (refusals.get(id) ?? 1), mostRefusalMs)
	}

	/** After a restart: what was done is handed in, what was running is watched on. */
	async function resume(note: Note): Promise<void> {
		log.info({ job: note.id, ended: note.ending !== undefined }, "goes on with the job of before its restart")
		if (note.ending === undefined) await see(note, undefined, undefined)
		else await handIn({ ...note, ending: note.ending })
	}

	async function see(
		note: Note,
		workflow: Record<string, unknown> | undefined,
		pngInfo: object | undefined,
	): Promise<void> {
		await notebook.write(note)
		lastPromptId = note.promptId
		state.job = note.id
		log.info({ job: note.id, attempt: note.attempt, prompt: note.promptId }, "runs a job")
		const beatMs = Math.min(configuration.leaseMs / 3, pollMs)
		const lease = { id: note.id, leaseToken: note.leaseToken }
		const heart = startHeart(queue, lease, beatMs, about, log)
		try {
			const end = await runAttempt({
				...{ note, workflow, pngInfo, comfyui, clientId, heart, log, now },
				comfyuiUrl: configuration.comfyuiUrl,
				silenceMs: configuration.comfyuiSilenceMs,
				outputsPath: configuration.outputsPath,
				handBack: handBack.signal,
			})
			const ms = now() - note.startedMs
			if (end.state === "dropped") {
				log.info({ job: note.id, ms, because: end.because }, "a job was dropped")
				await notebook.clear()
			} else {
				const why = end.state === "failed" ? { error: end.error, retryable: end.retryable } : {}
				log.info({ job: note.id, ms, ...why }, `a job was ${end.state}`)
				await handIn({ ...note, ending: end, endedMs: now() }, heart.gone)
			}
		} finally {
			await heart.stop()
			state.job = undefined
		}
	}

	async function handIn(note: Note & { ending: Ending }, gone?: AbortSignal): Promise<void> {
		await notebook.write(note)
		const delivery = await deliver(note, queue, notebook, stop, {
			...{ log, now },
			...(gone === undefined ? {} : { gone }),
		})
		if (delivery === "interrupted") {
			log.warn({ job: note.id }, "how the job ended is kept for the next start")
			return
		}
		if (delivery === "given up") log.error({ job: note.id }, "nobody took how the job ended for a day")
		await notebook.clear()
	}
}
