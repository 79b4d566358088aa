// A stand-in for ComfyUI 0.11: its HTTP interface, queue, validation, cache and events, and its way of writing files.
// There is no GPU and no model here: nodes of a few classes write files that are prepared. What it doesn't do is said
// by 404.
import { randomUUID } from "node:crypto"
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import { join, normalize } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import {
	measured,
	type SavedFile,
	type Saving,
	saveImages,
	saveOther,
	saveVideo,
	type Timing,
} from "./comfyui-files.ts"
import { type Problem, type Prompt, type PromptNode, validate } from "./comfyui-validation.ts"
import { acceptSocket, type ServerSocket } from "./web-socket.ts"

export type ComfyuiOptions = {
	/** As `--output-directory`. */
	outputDirectory: string
	timing?: Partial<Timing>
	/** As `--disable-metadata`. */
	noMetadata?: boolean
	/** Accepts prompts and never runs them, as a replica that is about to go away. */
	neverExecutes?: boolean
	/** As newer ones do: a prompt's id is a UUID, or the prompt is refused. */
	wantsUuids?: boolean
	port?: number
	/** As `--listen`. */
	host?: string
	/** Asked first; true when it has answered. */
	answer?: (request: IncomingMessage, response: ServerResponse) => boolean
	/** Bytes, for `/system_stats`. */
	vram?: { total: number; free: number }
}

type Item = {
	number: number
	promptId: string
	prompt: Prompt
	extraData: Record<string, unknown>
	outputs: string[]
}
type HistoryEntry = {
	prompt: unknown[]
	outputs: Record<string, Record<string, unknown>>
	status: { status_str: "success" | "error"; completed: boolean; messages: [string, unknown][] }
}

export type Comfyui = Awaited<ReturnType<typeof startComfyui>>

/** Starts one on a free port of loopback. Disposing ends it at once, whatever it is writing. */
export async function startComfyui(options: ComfyuiOptions) {
	const timing = { ...measured, ...options.timing }
	const pending: Item[] = []
	const history = new Map<string, HistoryEntry>()
	const cache = new Set<string>()
	const sockets = new Map<ServerSocket, string>()
	const executed: string[] = []
	const requests: { method: string; path: string; body: unknown }[] = []
	const life = new AbortController()
	let running: { item: Item; stop: AbortController } | undefined
	let counter = 0
	let vram = options.vram ?? { total: 24 * 2 ** 30, free: 20 * 2 ** 30 }

	const emit = (type: string, data: Record<string, unknown>, client?: unknown) => {
		const text = JSON.stringify({ type, data })
		for (const [socket, id] of sockets) if (client === undefined || client === id) socket.send(text)
	}
	const status = () => ({ status: { exec_info: { queue_remaining: pending.length + (running ? 1 : 0) } } })

	async function execute(item: Item): Promise<void> {
		const stop = new AbortController()
		running = { item, stop }
		const { promptId, prompt } = item
		const client = item.extraData["client_id"]
		const messages: [string, unknown][] = []
		const outputs: HistoryEntry["outputs"] = {}
		const tell = (type: string, data: Record<string, unknown>, isKept = true) => {
			const whole = { ...data, prompt_id: promptId, timestamp: Date.now() }
			if (isKept) messages.push([type, whole])
			emit(type, whole, client)
		}
		const end = (status_str: "success" | "error") => {
			const status = { status_str, completed: status_str === "success", messages }
			history.set(promptId, { prompt: row(item), outputs, status })
		}
		const signal = AbortSignal.any([stop.signal, life.signal])
		tell("execution_start", {})
		const nodes = Object.keys(prompt)
		const cached = nodes.filter((node) => cache.has(signatureOf(prompt, node)))
		tell("execution_cached", { nodes: cached })
		try {
			await pause(timing.runMs, undefined, { signal })
			for (const node of nodes.filter((name) => !cached.includes(name))) {
				const given = prompt[node]
				if (given === undefined) continue
				tell("executing", { node, display_node: node }, false)
				tell("progress", { node, value: 1, max: 1 }, false)
				const output = await run(given, item, signal)
				cache.add(signatureOf(prompt, node))
				if (output === undefined) continue
				outputs[node] = output
				tell("executed", { node, display_node: node, output }, false)
			}
			executed.push(promptId)
			end("success")
			tell("execution_success", {})
			emit("executing", { node: null, prompt_id: promptId }, client)
		} catch (error) {
			if (life.signal.aborted) return
			if (stop.signal.aborted) tell("execution_interrupted", { node_id: "?", node_type: "?", executed: [] })
			else {
				const message = error instanceof Error ? error.message : String(error)
				const exception = {
					exception_type: "torch.OutOfMemoryError",
					exception_message: message,
					traceback: [],
				}
				tell("execution_error", { node_id: "?", node_type: "StandInFail", executed: [], ...exception })
			}
			end("error")
		} finally {
			running = undefined
			if (!life.signal.aborted) {
				emit("status", status())
				next()
			}
		}
	}
	const next = () => {
		if (running !== undefined || options.neverExecutes === true || life.signal.aborted) return
		const item = pending.shift()
		if (item !== undefined) void execute(item)
	}

	async function run(
		{ class_type, inputs }: PromptNode,
		{ prompt, promptId, extraData }: Item,
		signal: AbortSignal,
	): Promise<Record<string, unknown> | undefined> {
		if (class_type === "StandInFail") throw new Error("Allocation on device 0 would exceed allowed memory.")
		if (class_type === "StandInSleep") {
			await pause(Number(inputs["ms"]), undefined, { signal })
			return undefined
		}
		const prefix = inputs["filename_prefix"]
		if (typeof prefix !== "string") return undefined
		const info = extraData["extra_pnginfo"] as { workflow?: unknown } | undefined
		const saving: Saving = {
			outputDirectory: options.outputDirectory,
			prefix,
			prompt,
			workflow: info?.workflow,
			timing,
			signal,
			...(options.noMetadata === true && { noMetadata: true }),
		}
		const savers: Record<string, () => Promise<Record<string, SavedFile[] | true[]>>> = {
			SaveImage: async () => ({ images: await saveImages(saving, Number(inputs["batch"] ?? 1), promptId) }),
			SaveVideo: async () => ({ images: await saveVideo(saving), animated: [true] }),
			SaveAudio: async () => ({ audio: await saveOther(saving, "encoder.flac", "_.flac") }),
			VHS_VideoCombine: async () => {
				await saveImages(saving, 1, promptId)
				return { gifs: await saveVideo(saving, ".mp4") }
			},
		}
		return await savers[class_type]?.()
	}

	function post(path: string, body: Record<string, unknown>): [number, unknown] {
		if (path === "/prompt") {
			if (!isRecord(body["prompt"])) return [400, { error: noPrompt, node_errors: {} }]
			if (options.wantsUuids === true && !uuid.test(String(body["prompt_id"])))
				return [400, { error: { ...noPrompt, message: "prompt_id must be a valid UUID" }, node_errors: {} }]
			const found = validate(body["prompt"] as Prompt)
			if (found.state === "invalid") return [400, { error: found.error, node_errors: found.nodeErrors }]
			const promptId = String(body["prompt_id"] ?? randomUUID())
			const extraData = { ...(isRecord(body["extra_data"]) ? body["extra_data"] : {}) }
			if (body["client_id"] !== undefined) extraData["client_id"] = body["client_id"]
			const prompt = body["prompt"] as Prompt
			const number = counter++
			pending.push({
				number,
				promptId,
				prompt: only(prompt, found.outputs),
				extraData,
				outputs: found.outputs,
			})
			setImmediate(next)
			return [200, { prompt_id: promptId, number, node_errors: found.nodeErrors }]
		}
		if (path === "/queue") {
			const gone = body["clear"] === true ? pending.map(({ promptId }) => promptId) : body["delete"]
			for (const promptId of Array.isArray(gone) ? gone : []) {
				const at = pending.findIndex((item) => item.promptId === promptId)
				if (at >= 0) pending.splice(at, 1)
			}
			return [200, undefined]
		}
		if (path === "/interrupt") {
			const wanted = body["prompt_id"]
			if (wanted === undefined || wanted === running?.item.promptId) running?.stop.abort()
			return [200, undefined]
		}
		return [404, undefined]
	}

	function get(url: URL): [number, unknown] {
		if (url.pathname === "/queue")
			return [200, { queue_running: running ? [row(running.item)] : [], queue_pending: pending.map(row) }]
		if (url.pathname === "/history") return [200, Object.fromEntries(history)]
		if (url.pathname.startsWith("/history/")) {
			const promptId = decodeURIComponent(url.pathname.slice("/history/".length))
			const entry = history.get(promptId)
			return [200, entry === undefined ? {} : { [promptId]: entry }]
		}
		if (url.pathname === "/prompt") return [200, { exec_info: status().status.exec_info }]
		if (url.pathname === "/system_stats") {
			const device = {
				name: "cuda:0 stand-in",
				type: "cuda",
				index: 0,
				vram_total: vram.total,
				vram_free: vram.free,
			}
			return [200, { system: { os: "posix", comfyui_version: "0.11.0" }, devices: [device] }]
		}
		if (url.pathname === "/view") {
			const file = below(url.searchParams.get("subfolder") ?? "", url.searchParams.get("filename") ?? "")
			try {
				return [200, file === undefined ? Buffer.alloc(0) : readFileSync(file)]
			} catch {
				return [404, undefined]
			}
		}
		return [404, undefined]
	}
	const below = (subfolder: string, filename: string) => {
		const path = normalize(join(options.outputDirectory, subfolder, filename))
		return path.startsWith(`${options.outputDirectory}/`) ? path : undefined
	}
	async function upload(request: IncomingMessage, body: Buffer): Promise<[number, unknown]> {
		const headers = { "content-type": request.headers["content-type"] ?? "" }
		const form = await new Response(new Uint8Array(body), { headers }).formData()
		const [image, subfolder] = [form.get("image"), String(form.get("subfolder") ?? "")]
		if (!(image instanceof File)) return [400, undefined]
		const path = below(subfolder, image.name)
		if (path === undefined || form.get("type") !== "output") return [400, undefined]
		mkdirSync(join(path, ".."), { recursive: true })
		writeFileSync(path, Buffer.from(await image.arrayBuffer()))
		return [200, { name: image.name, subfolder, type: "output" }]
	}

	async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
		const url = new URL(request.url ?? "/", "http://localhost")
		const chunks: Buffer[] = []
		for await (const chunk of request) chunks.push(chunk as Buffer)
		const body = Buffer.concat(chunks)
		const isUpload = url.pathname === "/upload/image"
		const parsed: unknown = isUpload || body.length === 0 ? {} : JSON.parse(body.toString("utf8"))
		requests.push({ method: request.method ?? "", path: url.pathname, body: parsed })
		const [code, value] =
			request.method !== "POST"
				? get(url)
				: isUpload
					? await upload(request, body)
					: post(url.pathname, isRecord(parsed) ? parsed : {})
		response.writeHead(code, { "content-type": Buffer.isBuffer(value) ? "text/plain" : "application/json" })
		response.end(Buffer.isBuffer(value) ? value : value === undefined ? "" : JSON.stringify(value))
	}

	const server = createServer((request, response) => {
		if (options.answer?.(request, response) === true) return
		answer(request, response).catch((error: unknown) => {
			response.writeHead(500)
			response.end(String(error))
		})
	})
	server.on("upgrade", (request, stream) => {
		const id = new URL(request.url ?? "/", "http://localhost").searchParams.get("clientId") ?? randomUUID()
		const socket = acceptSocket(request, stream, () => sockets.delete(socket))
		sockets.set(socket, id)
		socket.send(JSON.stringify({ type: "status", data: { ...status(), sid: id } }))
	})
	await new Promise<void>((resolve) => server.listen(options.port ?? 0, options.host ?? "127.0.0.1", resolve))

	return {
		url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
		/** Ids of prompts that ran to their end. */
		executed,
		requests,
		/** Which prompt runs now. */
		runningId: () => running?.item.promptId,
		setVram: (bytes: { total: number; free: number }) => {
			vram = bytes
		},
		[Symbol.asyncDispose]: async () => {
			life.abort()
			for (const socket of sockets.keys()) socket.close()
			server.closeAllConnections()
			await new Promise((resolve) => server.close(resolve))
		},
	}
}

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/
const noPrompt: Problem = { type: "no_prompt", message: "No prompt provided", details: "", extra_info: {} }

const row = ({ number, promptId, prompt, extraData, outputs }: Item) => [
	number,
	promptId,
	prompt,
	extraData,
	outputs,
]

function isRecord(value: unknown): value is Record<string, unknown> {
	return typeof value === "object" && value !== null && !Array.isArray(value)
}

/** What the cache goes by: a node's class and inputs, and those of the nodes behind its inputs. */
function signatureOf(prompt: Prompt, node: string): string {
	const { class_type, inputs } = prompt[node] ?? { class_type: "", inputs: {} }
	const parts = Object.entries(inputs).map(([name, value]) => [
		name,
		Array.isArray(value) ? signatureOf(prompt, String(value[0])) : value,
	])
	return JSON.stringify([class_type, parts])
}

/** The outputs that are valid, and what they are made of. */
function only(prompt: Prompt, outputs: readonly string[]): Prompt {
	const kept = new Set<string>()
	const keep = (node: string) => {
		if (kept.has(node)) return
		kept.add(node)
		for (const value of Object.values(prompt[node]?.inputs ?? {}))
			if (Array.isArray(value)) keep(String(value[0]))
	}
	for (const node of outputs) keep(node)
	return Object.fromEntries(Object.entries(prompt).filter(([node]) => kept.has(node)))
}
