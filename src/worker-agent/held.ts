// The other way of getting jobs: `POST /run` is answered when the job is done, so that a load balancer in front of many
// agents sees one request in flight for each GPU that works. Whoever closes the request doesn't want the job any more.
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http"
import type { Logger } from "pino"
import { z } from "zod"
import { messageOf, systemError } from "../lib/errors.ts"
import { promptIdOf } from "../lib/formats/prompt-id.ts"
import { isSameText } from "../lib/formats/service-token.ts"
import type { Secret } from "../lib/secret.ts"
import type { AgentState } from "./agent.ts"
import type { Comfyui } from "./comfyui.ts"
import type { AgentConfiguration } from "./configuration.ts"
import { fitOf, type MemorySource, neededMb } from "./gpu.ts"
import type { Note } from "./note.ts"
import { isolateOutputs } from "./outputs.ts"
import { pngInfoOf, runAttempt } from "./run-job.ts"

export type HeldParts = {
	configuration: AgentConfiguration
	/** What a request must show. */
	token: Secret
	comfyui: Comfyui
	memory: MemorySource
	log: Logger
	now: () => number
	/** Kept up to date, for the health page. */
	state: AgentState
}

const mostBodyBytes = 16 * 1024 * 1024
// Balancers close what is silent for a minute.
const aliveEveryMs = 10_000
const retryAfterSeconds = 2

const object = z.record(z.string(), z.unknown())
const runSchema = z.object({
	id: z.string().regex(/^[A-Za-z0-9_-]{1,100}$/),
	attempt: z.number().int().min(1),
	submission: z.number().int().min(1).default(1),
	workflow: object,
	metadata: object.default({}),
})

/**
 * Serves `POST /run` until `stop` is aborted; then the job at hand may end within `drainMs`.
 * The answer is one JSON object a line: `{accepted: {prompt_id}}`, any number of `{progress}` and `{}`, and `{end}`,
 * which is an ending as the queue manager is told it. Without the last line the job has not ended.
 * @throws {OperatorError} when the port is taken
 */
export async function serveHeld(parts: HeldParts, stop: AbortSignal): Promise<void> {
	const { configuration, token, comfyui, memory, log, now, state } = parts
	const handBack = new AbortController()
	let running: Promise<void> | undefined
	state.waitingBecause = undefined
	state.queueManagerAnswers = true

	const server = createServer((request, response) => {
		answer(request, response).catch((error: unknown) => {
			log.error({ error: messageOf(error) }, "a request ended badly")
			response.destroy()
		})
	})

	async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
		if (!isSameText(request.headers.authorization ?? "", `Bearer ${token.reveal()}`))
			return say(response, 401, "no valid token")
		if (request.url?.split("?")[0] !== "/run") return say(response, 404, "POST /run")
		// By this a queue manager sees that its token is taken, also while there is a job.
		if (request.method !== "POST") return say(response, 405, "POST /run")
		const because = stop.aborted ? "it is being stopped" : running === undefined ? undefined : "it has a job"
		if (because !== undefined) return say(response, 503, because)
		// From here on it is taken: a second request meets a busy agent, whatever the first still waits for.
		let free: () => void = () => undefined
		running = new Promise((resolve) => {
			free = resolve
		})
		// Who closes the request, at whatever moment, doesn't want the job.
		const gone = new AbortController()
		response.once("close", () => gone.abort("cancelled"))
		try {
			await take(request, response, gone.signal)
		} finally {
			running = undefined
			state.job = undefined
			free()
		}
	}

	async function take(request: IncomingMessage, response: ServerResponse, gone: AbortSignal): Promise<void> {
		const body = await bodyOf(request)
		const run = runSchema.safeParse(body)
		if (!run.success) return say(response, 400, z.prettifyError(run.error))
		const because = await whyNot(run.data.metadata)
		state.waitingBecause = because
		if (because !== undefined) {
			log.info({ job: run.data.id, because }, "takes no job")
			return say(response, 503, because)
		}
		if (gone.aborted) return
		await see(run.data, response, gone)
	}

	async function whyNot(metadata: Record<string, unknown>): Promise<string | undefined> {
		try {
			if ((await comfyui.queued()).length > 0) return "ComfyUI is busy with another prompt"
			state.memory = await memory()
			const needMb = neededMb(metadata, configuration.vramDefaultMb)
			const fit = fitOf(state.memory, needMb, configuration.vramMarginMb)
			return fit.state === "fits" ? undefined : `it ${fit.because}`
		} catch (error) {
			return `ComfyUI doesn't answer: ${messageOf(error)}`
		}
	}

	async function see(
		run: z.infer<typeof runSchema>,
		response: ServerResponse,
		gone: AbortSignal,
	): Promise<void> {
		const { id, attempt, submission } = run
		const { workflow, saving } = isolateOutputs(run.workflow, run, new Date(now()))
		const promptId = promptIdOf(id, attempt, submission)
		const note: Note = { version: 1, id, attempt, promptId, saving, startedMs: now() }
		response.writeHead(200, { "content-type": "application/x-ndjson", "x-accel-buffering": "no" })
		const tell = (line: object) => void (gone.aborted || response.write(`${JSON.stringify(line)}\n`))
		tell({ accepted: { prompt_id: promptId } })
		state.job = id
		log.info({ job: id, attempt, prompt: promptId }, "runs a job")
		let told = ""
		const alive = setInterval(() => tell({}), aliveEveryMs)
		const heart = {
			gone,
			tell(progress: object) {
				const text = JSON.stringify(progress)
				if (text !== told) tell({ progress })
				told = text
			},
			stop: async () => undefined,
		}
		try {
			const end = await runAttempt({
				...{ note, workflow, comfyui, heart, log, now, clientId: promptId, handBack: handBack.signal },
				pngInfo: pngInfoOf(run.metadata),
				comfyuiUrl: configuration.comfyuiUrl,
				silenceMs: configuration.comfyuiSilenceMs,
				outputsPath: configuration.outputsPath,
			})
			const why = end.state === "completed" ? {} : { why: "error" in end ? end.error : end.because }
			log.info({ job: id, ms: now() - note.startedMs, ...why }, `a job was ${end.state}`)
			if (end.state !== "dropped") tell({ end })
		} finally {
			clearInterval(alive)
			if (!gone.aborted) await ended(response)
		}
	}

	const { runHost, runPort } = configuration
	await listen(server, runHost, runPort)
	const address = server.address()
	log.info({ port: typeof address === "object" ? address?.port : runPort }, "waits for requests")
	await new Promise<void>((resolve) => {
		if (stop.aborted) resolve()
		stop.addEventListener("abort", () => resolve())
	})
	server.close()
	const drain = setTimeout(() => handBack.abort(), configuration.drainMs)
	await running
	clearTimeout(drain)
	server.closeAllConnections()
}

/** Ends an answer. The callback alone may never come: a connection that is lost in this moment has no end. */
async function ended(response: ServerResponse): Promise<void> {
	await new Promise<void>((resolve) => {
		response.once("close", resolve)
		response.end(resolve)
	})
}

async function listen(server: Server, host: string, port: number): Promise<void> {
	await new Promise<void>((resolve, reject) => {
		server.once("error", (error) => reject(systemError(error, `serving jobs on ${host}:${port}`)))
		server.listen(port, host, resolve)
	})
}

/** `undefined` for what is no JSON, or too long. */
async function bodyOf(request: IncomingMessage): Promise<unknown> {
	const chunks: Buffer[] = []
	let sizeBytes = 0
	for await (const chunk of request as AsyncIterable<Buffer>) {
		sizeBytes += chunk.length
		if (sizeBytes > mostBodyBytes) return undefined
		chunks.push(chunk)
	}
	try {
		return JSON.parse(Buffer.concat(chunks).toString("utf8")) as unknown
	} catch {
		return undefined
	}
}

function say(response: ServerResponse, status: number, detail: string): void {
	const retry = status === 503 ? { "retry-after": String(retryAfterSeconds) } : {}
	// What of the request wasn't read is not waited for.
	response.writeHead(status, { "content-type": "application/json", connection: "close", ...retry })
	response.end(JSON.stringify({ detail }))
}
