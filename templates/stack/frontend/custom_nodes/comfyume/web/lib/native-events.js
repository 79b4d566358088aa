// What happens to this tab's jobs, told to ComfyUI's frontend in its own events: progress bars, previews, the count of
// what waits, error dialogues. The names and shapes are those of ComfyUI's server (server.py, execution.py).
import { api } from "../../../scripts/api.js"
import { active, hasEnded, onChange } from "./jobs.js"
import { findJob } from "./queue-manager.js"
import { settings } from "./settings.js"

// The frontend shows one prompt at a time; several of ours may run at once on several GPUs.
let shown
// Results come one after the other, so that no two are mixed.
let showing = Promise.resolve()

const tell = (type, detail) => api.dispatchCustomEvent(type, detail)

/** Begins to tell. */
export function tellNatively() {
	onChange((job, before, event) => {
		if (job === undefined) return
		// ComfyUI reads its lists anew each time that it is told.
		if (job.status !== before?.status) tellCount()
		if (!job.isOurs) return
		if (hasEnded(job)) {
			if (before !== undefined && hasEnded(before)) return
			showing = showing.then(() => end(job)).catch((error) => console.warn("comfyume:", error))
			return
		}
		if (job.status !== "running") {
			// Its worker was lost: it waits again.
			if (shown === job.id) leave(job.id)
			return
		}
		if (shown === undefined) show(job.id)
		if (shown === job.id && event?.type === "comfyume_progress") tellProgress(job)
	})
	// This ComfyUI's own server says that nothing waits here, which is true and not what is meant.
	api.addEventListener("status", ({ detail }) => {
		if (detail !== null && detail?.comfyume !== true && active().length > 0) tellCount()
	})
}

function tellCount() {
	tell("status", { exec_info: { queue_remaining: active().length }, comfyume: true })
}

function show(id) {
	shown = id
	tell("execution_start", { prompt_id: id, timestamp: Date.now() })
}

function leave(id) {
	shown = undefined
	tell("execution_interrupted", { prompt_id: id, node_id: "", node_type: "", executed: [] })
}

function tellProgress({ id, progress }) {
	const { node, value, max } = progress
	if (node === undefined) return
	const hasValue = value !== undefined && max !== undefined
	tell("executing", node)
	const state = { value: value ?? 0, max: max ?? 1, state: "running", node_id: node, prompt_id: id }
	const nodes = { [node]: { ...state, display_node_id: node, real_node_id: node } }
	tell("progress_state", { prompt_id: id, nodes })
	if (hasValue) tell("progress", { value, max, prompt_id: id, node })
}

/** A job's end: its pictures, or what went wrong. */
async function end(job) {
	const { id, status } = job
	const result = status === "cancelled" ? undefined : await resultOf(job)
	const other = shown !== undefined && shown !== id ? shown : undefined
	if (shown !== id) show(id)
	const { userId } = await settings()
	for (const [node, output] of Object.entries(outputsOf(result, userId))) {
		tell("executed", { node, display_node: node, output, prompt_id: id })
	}
	shown = undefined
	if (status === "completed") {
		tell("execution_success", { prompt_id: id, timestamp: Date.now() })
	} else if (status === "cancelled") {
		tell("execution_interrupted", { prompt_id: id, node_id: "", node_type: "", executed: [] })
	} else {
		tell("execution_error", errorOf(job, result))
	}
	tell("executing", null)
	tellCount()
	const next = active().find((one) => one.isOurs && one.status === "running")?.id
	if (other !== undefined || next !== undefined) show(other ?? next)
}

async function resultOf({ id, result }) {
	if (result != null) return result
	try {
		return (await findJob(id)).result ?? undefined
	} catch {
		return undefined
	}
}

/**
 * The outputs of a result, with files named as this ComfyUI names them: a user's own directory is its output directory.
 */
export function outputsOf(result, userId) {
	const outputs = result?.outputs
	if (outputs === null || typeof outputs !== "object") return {}
	const within = (subfolder) =>
		subfolder === userId
			? ""
			: subfolder.startsWith(`${userId}/`)
				? subfolder.slice(userId.length + 1)
				: subfolder
	const fileOf = (file) =>
		typeof file?.filename === "string" ? { ...file, subfolder: within(file.subfolder ?? "") } : file
	return Object.fromEntries(
		Object.entries(outputs).map(([node, output]) => [
			node,
			Object.fromEntries(
				Object.entries(output ?? {}).map(([kind, items]) => [
					kind,
					Array.isArray(items) ? items.map(fileOf) : items,
				]),
			),
		]),
	)
}

function errorOf({ id, error }, result) {
	const known = result?.execution_error
	const of = (name, otherwise) =>
		typeof known === "object" && known !== null ? (known[name] ?? otherwise) : otherwise
	return {
		prompt_id: id,
		timestamp: Date.now(),
		node_id: of("node_id", ""),
		node_type: of("node_type", "The job failed"),
		executed: of("executed", []),
		exception_type: of("exception_type", ""),
		exception_message: of("exception_message", error ?? "The job failed"),
		traceback: of("traceback", []),
	}
}
