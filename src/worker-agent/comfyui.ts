// The ComfyUI beside the agent, over its own HTTP API.
import { z } from "zod"
import { ask, RefusedError } from "./http.ts"

/** What ComfyUI's history says of a prompt that has ended. */
export type HistoryEntry = z.infer<typeof entrySchema>

/** `refused`: the workflow is not valid, and says why. */
export type Submitted =
	| { state: "accepted"; number: number; nodeErrors: Record<string, unknown> }
	| { state: "refused"; because: string }

/** The GPU's memory in MB. `obtainable`: free, or held by ComfyUI's own models, which it drops when it needs room. */
export type GpuMemory = { name: string; totalMb: number; obtainableMb: number }

export type Comfyui = ReturnType<typeof comfyuiAt>

const object = z.record(z.string(), z.unknown())
const message = z.tuple([z.string(), object.catch({})])
const entrySchema = z.object({
	outputs: z.record(z.string(), object.catch({})).catch({}),
	status: z
		.object({
			status_str: z.string().optional(),
			completed: z.boolean().optional(),
			messages: z.array(message.catch(["", {}])).catch([]),
		})
		.nullish(),
})
const submittedSchema = z.object({ number: z.number().catch(0), node_errors: object.catch({}) })
// A queue item is [number, prompt id, workflow, …].
const item = z.tuple([z.unknown(), z.string()], z.unknown())
const queueSchema = z.object({ queue_running: z.array(item), queue_pending: z.array(item) })
const bytes = z.number().nonnegative().catch(0)
const statsSchema = z.object({
	devices: z
		.array(
			z.object({
				name: z.string().catch("GPU"),
				vram_total: bytes,
				vram_free: bytes,
				torch_vram_total: bytes,
				torch_vram_free: bytes,
			}),
		)
		.catch([]),
})
const problem = z.object({ message: z.string(), details: z.string().catch("") })
const refusalSchema = z.object({
	error: z.union([problem, z.string().transform((text) => ({ message: text, details: "" }))]).catch({
		message: "the workflow is not valid",
		details: "",
	}),
	node_errors: z
		.record(
			z.string(),
			z.object({ class_type: z.string().catch("node"), errors: z.array(problem).catch([]) }),
		)
		.catch({}),
})

/** Every call throws `UnreachableError` when ComfyUI doesn't answer. */
export function comfyuiAt(url: string) {
	return {
		/**
		 * Puts a workflow into ComfyUI's queue, which checks it first.
		 * @param pngInfo what is written into pictures beside the prompt: the graph as its user sees it
		 */
		async submit(workflow: object, promptId: string, clientId: string, pngInfo?: object): Promise<Submitted> {
			try {
				const extra = pngInfo === undefined ? {} : { extra_data: { extra_pnginfo: pngInfo } }
				const body = { prompt: workflow, prompt_id: promptId, client_id: clientId, ...extra }
				// Loading custom nodes holds up the first answer.
				const answer = await ask(`${url}/prompt`, { body, timeoutMs: 60_000 })
				const { number, node_errors } = submittedSchema.parse(answer ?? {})
				return { state: "accepted", number, nodeErrors: node_errors }
			} catch (error) {
				if (!(error instanceof RefusedError)) throw error
				return { state: "refused", because: refusalOf(error) }
			}
		},

		/** The ids of all prompts that run or wait. */
		async queued(): Promise<string[]> {
			const { queue_running, queue_pending } = queueSchema.parse(await ask(`${url}/queue`))
			return [...queue_running, ...queue_pending].map(([, id]) => id)
		},

		/** How a prompt ended; undefined while it hasn't, or when ComfyUI knows nothing of it. */
		async history(promptId: string): Promise<HistoryEntry | undefined> {
			const answer = await ask(`${url}/history/${promptId}`, { timeoutMs: 30_000 })
			return z.record(z.string(), entrySchema).parse(answer ?? {})[promptId]
		},

		/** Takes a prompt out of the queue, and interrupts it if it is the one that runs. */
		async stop(promptId: string): Promise<void> {
			// In this order: a prompt that begins in between is met by the interrupt.
			await ask(`${url}/queue`, { body: { delete: [promptId] } })
			await ask(`${url}/interrupt`, { body: { prompt_id: promptId } })
		},

		/** The first GPU's memory while ComfyUI is idle; undefined when it doesn't say. */
		async memory(): Promise<GpuMemory | undefined> {
			const [device] = statsSchema.parse(await ask(`${url}/system_stats`)).devices
			if (device === undefined || device.vram_total === 0) return undefined
			const own = Math.max(0, device.torch_vram_total - device.torch_vram_free)
			const mb = (size: number) => Math.floor(size / 1024 / 1024)
			return {
				name: device.name,
				totalMb: mb(device.vram_total),
				obtainableMb: mb(Math.min(device.vram_total, device.vram_free + own)),
			}
		},
	}
}

function refusalOf(error: RefusedError): string {
	const parsed = refusalSchema.safeParse(error.answer)
	if (!parsed.success) return error.message
	const said = ({ message: what, details }: z.infer<typeof problem>) =>
		details === "" ? what : `${what} (${details})`
	const nodes = Object.entries(parsed.data.node_errors).map(
		([id, { class_type, errors }]) => `${class_type} ${id}: ${errors.map(said).join(", ")}`,
	)
	return [said(parsed.data.error), ...nodes].join("; ").slice(0, 4000)
}
