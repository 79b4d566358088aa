// How far ComfyUI is, from its WebSocket: only for show and to look sooner. What counts is its history.
import { z } from "zod"

/** What users see of a running job. The names are those of the browser's overlay. */
export type Progress = {
	prompt_id: string
	phase: "submitting" | "polling" | "complete"
	/** The node at work, and how far it is. */
	node?: string
	value?: number
	max?: number
	/** Nodes that have given outputs. */
	executed: number
}

const messageSchema = z.object({
	type: z.string(),
	data: z
		.object({
			prompt_id: z.string().optional(),
			node: z.string().nullish(),
			value: z.number().optional(),
			max: z.number().optional(),
		})
		.catch({}),
})

// After these, history has an entry or will have one at once.
const endings = new Set(["execution_success", "execution_error", "execution_interrupted"])

/**
 * Reads one text message of ComfyUI's WebSocket about a prompt.
 * @returns the progress after it (the same object when it says nothing new), and whether the prompt is at its end
 */
export function progressAfter(progress: Progress, text: string): { progress: Progress; ended: boolean } {
	const same = { progress, ended: false }
	let json: unknown
	try {
		json = JSON.parse(text)
	} catch {
		return same
	}
	const parsed = messageSchema.safeParse(json)
	if (!parsed.success || parsed.data.data.prompt_id !== progress.prompt_id) return same
	const { type, data } = parsed.data
	if (endings.has(type)) return { progress, ended: true }
	if (type === "executing") {
		// Before `execution_success` was invented, a null node was the end.
		if (data.node == null) return { progress, ended: true }
		const { prompt_id, executed } = progress
		return { progress: { prompt_id, executed, phase: "polling", node: data.node }, ended: false }
	}
	if (type === "executed") return { progress: { ...progress, executed: progress.executed + 1 }, ended: false }
	if (type !== "progress" || data.value === undefined || data.max === undefined) return same
	const node = data.node ?? progress.node
	const { value, max } = data
	return { progress: { ...progress, value, max, ...(node === undefined ? {} : { node }) }, ended: false }
}

/**
 * Keeps a WebSocket open until the signal, across ComfyUI's restarts, and hands on every text message.
 * @param onOpen told whenever it is open (again): what was said before was missed
 */
export function followMessages(
	comfyuiUrl: string,
	clientId: string,
	onMessage: (text: string) => void,
	onOpen: () => void,
	signal: AbortSignal,
): void {
	const address = `${comfyuiUrl.replace(/^http/, "ws")}/ws?clientId=${clientId}`
	let waitMs = 100
	let timer: NodeJS.Timeout | undefined
	let socket: WebSocket | undefined

	function connect(): void {
		socket = new WebSocket(address)
		// Previews come as binary messages, and nobody looks at them here.
		socket.binaryType = "arraybuffer"
		socket.onopen = () => {
			waitMs = 100
			onOpen()
		}
		socket.onmessage = ({ data }) => {
			if (typeof data === "string") onMessage(data)
		}
		socket.onclose = () => {
			if (signal.aborted) return
			timer = setTimeout(connect, waitMs)
			waitMs = Math.min(waitMs * 2, 5000)
		}
	}

	if (signal.aborted) return
	connect()
	signal.addEventListener("abort", () => {
		clearTimeout(timer)
		socket?.close()
	})
}
