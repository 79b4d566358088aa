// A stand-in for one ComfyUI: its queue, history, interrupts and WebSocket, as its server.py answers them. It executes
// one prompt at a time. What a prompt does stands in its nodes' inputs:
//   work_ms: how long it takes · hold: until `letGo()` · fails: [exception type, message] · invalid: refused at once
//   filename_prefix: writes a file · silent: says success without outputs
import { mkdir, writeFile } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import websocket from "@fastify/websocket"
import fastify, { type FastifyInstance } from "fastify"
import { poll } from "../../../support/poll.ts"

type Node = { class_type: string; inputs: Record<string, unknown> }
type Prompt = { id: string; number: number; nodes: Record<string, Node>; clientId: string }
type Entry = { prompt: unknown; outputs: Record<string, unknown>; status: object }

export type LocalComfyui = Awaited<ReturnType<typeof startLocalComfyui>>

const mib = 1024 * 1024

/** @param outputDirectory where it writes */
export async function startLocalComfyui(outputDirectory: string) {
	let app: FastifyInstance | undefined
	let port = 0
	let life = new AbortController()
	let waiting: Prompt[] = []
	let running: { prompt: Prompt; interrupted: AbortController } | undefined
	const history = new Map<string, Entry>()
	const sockets = new Map<string, { send(text: string): void }>()
	let counter = 0
	const held = new Set<() => void>()
	const seen = {
		/** Prompt ids in the order they were executed. */
		executed: [] as string[],
		interrupts: [] as unknown[],
		/** What came beside each prompt. */
		extraData: [] as unknown[],
		/** The most prompts that were ever in its queue at once. */
		mostQueued: 0,
		refuseQueue: false,
		memory: { vram_total: 24_576 * mib, vram_free: 20_000 * mib, torch_vram_total: 0, torch_vram_free: 0 },
	}

	async function start(): Promise<void> {
		life = new AbortController()
		const server = fastify({ forceCloseConnections: true, bodyLimit: 64 * mib })
		await server.register(websocket)
		server.get("/ws", { websocket: true }, (socket, request) => {
			const { clientId = "" } = request.query as { clientId?: string }
			sockets.set(clientId, socket)
			socket.send(JSON.stringify({ type: "status", data: { status: {}, sid: clientId } }))
			// A preview, which is binary.
			socket.send(Buffer.from([0, 0, 0, 1, 0, 0, 0, 2]))
		})
		server.post("/prompt", async (request, reply) => {
			const body = request.body as {
				prompt: Record<string, Node>
				prompt_id: string
				client_id: string
				extra_data?: unknown
			}
			seen.extraData.push(body.extra_data)
			const bad = Object.entries(body.prompt).find(([, node]) => node.inputs?.invalid)
			if (bad !== undefined) {
				const errors = [{ type: "value", message: "Value not in list", details: "ckpt_name: 'x'" }]
				const nodeErrors = { [bad[0]]: { errors, class_type: bad[1].class_type } }
				const error = { type: "invalid", message: "Prompt outputs failed validation", details: "" }
				return reply.code(400).send({ error, node_errors: nodeErrors })
			}
			if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(body.prompt_id))
				return reply.code(400).send({ error: { message: "prompt_id must be a valid UUID" }, node_errors: {} })
			const prompt = { id: body.prompt_id, number: ++counter, nodes: body.prompt, clientId: body.client_id }
			waiting.push(prompt)
			seen.mostQueued = Math.max(seen.mostQueued, waiting.length + (running === undefined ? 0 : 1))
			void work()
			return { prompt_id: prompt.id, number: prompt.number, node_errors: {} }
		})
		server.get("/queue", async (_, reply) => {
			if (seen.refuseQueue) return reply.code(500).send()
			const item = (prompt: Prompt) => [prompt.number, prompt.id, prompt.nodes, {}, []]
			return {
				queue_running: running === undefined ? [] : [item(running.prompt)],
				queue_pending: waiting.map(item),
			}
		})
		server.post("/queue", async (request) => {
			const { delete: ids = [] } = request.body as { delete?: string[] }
			waiting = waiting.filter(({ id }) => !ids.includes(id))
			return ""
		})
		server.post("/interrupt", async (request) => {
			const { prompt_id: id } = (request.body ?? {}) as { prompt_id?: string }
			seen.interrupts.push(id)
			if (id === undefined || running?.prompt.id === id) running?.interrupted.abort()
			return ""
		})
		server.get("/history/:id", async (request) => {
			const { id } = request.params as { id: string }
			const entry = history.get(id)
			return entry === undefined ? {} : { [id]: entry }
		})
		server.get("/system_stats", async () => ({
			system: {},
			devices: [{ name: "cuda:0 Test GPU", type: "cuda", index: 0, ...seen.memory }],
		}))
		await server.listen({ host: "127.0.0.1", port })
		const address = server.server.address()
		port = typeof address === "object" && address !== null ? address.port : 0
		app = server
	}

	async function work(): Promise<void> {
		const prompt = running === undefined ? waiting.shift() : undefined
		if (prompt === undefined) return
		const interrupted = new AbortController()
		running = { prompt, interrupted }
		const here = life.signal
		seen.executed.push(prompt.id)
		const messages: [string, object][] = []
		const say = (type: string, data: object, isKept = false) => {
			if (isKept) messages.push([type, { prompt_id: prompt.id, ...data, timestamp: Date.now() }])
			sockets.get(prompt.clientId)?.send(JSON.stringify({ type, data: { prompt_id: prompt.id, ...data } }))
		}
		const outputs: Record<string, unknown> = {}
		let ending = "execution_success"
		say("execution_start", {}, true)
		for (const [id, node] of Object.entries(prompt.nodes)) {
			const inputs = node.inputs ?? {}
			say("executing", { node: id })
			const workMs = typeof inputs.work_ms === "number" ? inputs.work_ms : 20
			for (let step = 1; step <= 2 && !interrupted.signal.aborted; step++) {
				say("progress", { node: id, value: step, max: 2 })
				await pause(workMs / 2, undefined, { signal: AbortSignal.any([interrupted.signal, here]) }).catch(
					() => undefined,
				)
			}
			if (inputs.hold === true && !interrupted.signal.aborted) await holding(interrupted.signal, here)
			// It was killed: nothing of it is left.
			if (here.aborted) return
			if (interrupted.signal.aborted) {
				ending = "execution_interrupted"
				say(ending, { node_id: id, node_type: node.class_type, executed: [] }, true)
				break
			}
			if (Array.isArray(inputs.fails)) {
				ending = "execution_error"
				const [type, message] = inputs.fails
				const data = {
					node_id: id,
					node_type: node.class_type,
					exception_type: type,
					exception_message: message,
				}
				say(ending, data, true)
				break
			}
			if (typeof inputs.filename_prefix === "string" && inputs.silent !== true) {
				const prefix = inputs.filename_prefix
				const filename = `${basename(prefix)}_00001_.png`
				const subfolder = dirname(prefix) === "." ? "" : dirname(prefix)
				await mkdir(join(outputDirectory, subfolder), { recursive: true })
				if (inputs.forgets !== true) await writeFile(join(outputDirectory, subfolder, filename), "picture")
				outputs[id] = { images: [{ filename, subfolder, type: "output" }] }
				say("executed", { node: id, output: outputs[id] })
			}
		}
		const isGood = ending === "execution_success"
		if (isGood) messages.push([ending, { prompt_id: prompt.id, timestamp: Date.now() }])
		const status = { status_str: isGood ? "success" : "error", completed: isGood, messages }
		history.set(prompt.id, { prompt: [prompt.number, prompt.id, prompt.nodes], outputs, status })
		running = undefined
		if (isGood) say(ending, {})
		void work()
	}

	function holding(...signals: AbortSignal[]): Promise<void> {
		return new Promise((resolve) => {
			held.add(resolve)
			for (const signal of signals) signal.addEventListener("abort", () => resolve())
		})
	}

	async function crash(): Promise<void> {
		life.abort()
		waiting = []
		running = undefined
		history.clear()
		sockets.clear()
		await app?.close()
		app = undefined
	}

	await start()
	return {
		url: `http://127.0.0.1:${port}`,
		seen,
		/** Lets the prompt that holds go on, as soon as one does. */
		async letGo(): Promise<void> {
			await poll(() => held.size > 0, { what: "a prompt holds", deadlineMs: 5000 })
			for (const go of held) go()
			held.clear()
		},
		/** Puts a prompt into its queue as if somebody had opened its own page. */
		async putForeign(nodes: Record<string, Node>): Promise<string> {
			const id = crypto.randomUUID()
			waiting.push({ id, number: ++counter, nodes, clientId: "" })
			void work()
			return id
		},
		/** Ends it as a kill would: queue and history are gone. */
		crash,
		/** Starts it anew on the same port. */
		start,
		async [Symbol.asyncDispose]() {
			await crash()
		},
	}
}
