// ComfyUI's own queue and history panels, and its buttons to interrupt and delete, over the queue manager's jobs.
import { api } from "../../../scripts/api.js"
import { active, hasEnded } from "./jobs.js"
import { outputsOf } from "./native-events.js"
import { cancelJob, listJobs } from "./queue-manager.js"
import { settings } from "./settings.js"

// What was submitted from here, for "open workflow" in the panels: the queue manager gives out no workflows.
const mostPrompts = 100
const prompts = new Map()

// A job's record is kept for a week and can't be deleted: what is deleted here is only shown no more.
const hiddenKey = "comfyume.hidden"
const hidden = readHidden()

function readHidden() {
	try {
		return { before: 0, ids: [], ...JSON.parse(localStorage.getItem(hiddenKey) ?? "{}") }
	} catch {
		return { before: 0, ids: [] }
	}
}

function hide(change) {
	Object.assign(hidden, change)
	try {
		localStorage.setItem(hiddenKey, JSON.stringify({ ...hidden, ids: hidden.ids.slice(-500) }))
	} catch {
		// It comes back with the next reload.
	}
}

/** Keeps what was submitted, for the panels. */
export function keepPrompt(id, output, workflow) {
	prompts.set(id, { output, workflow })
	if (prompts.size > mostPrompts) prompts.delete(prompts.keys().next().value)
}

// [number, id, prompt, extra data, outputs to execute], as ComfyUI's server has it.
function itemOf({ id }, number) {
	const { output, workflow } = prompts.get(id) ?? {}
	const extra = {
		client_id: api.clientId,
		...(workflow === undefined ? {} : { extra_pnginfo: { workflow } }),
	}
	return [number, id, output ?? {}, extra, []]
}

const endedMs = ({ completed_at, created_at }) => Date.parse(completed_at ?? created_at)

function historyItem(job, userId) {
	const messages = [
		["execution_start", { prompt_id: job.id, timestamp: Date.parse(job.started_at ?? job.created_at) }],
	]
	const last = {
		completed: "execution_success",
		failed: "execution_error",
		cancelled: "execution_interrupted",
	}
	messages.push([last[job.status], { prompt_id: job.id, timestamp: endedMs(job) }])
	return {
		taskType: "History",
		// The number must grow with the time of the end: the panel takes larger ones as new.
		prompt: itemOf(job, endedMs(job)),
		outputs: outputsOf(job.result, userId),
		status: {
			status_str: job.status === "completed" ? "success" : "error",
			completed: job.status === "completed",
			messages,
		},
	}
}

/** Replaces what the panels and buttons ask; what is not a job of the queue goes on to this ComfyUI as before. */
export function replacePanels() {
	const native = Object.fromEntries(
		["getQueue", "getHistory", "interrupt", "deleteItem", "clearItems"].map((name) => [
			name,
			api[name].bind(api),
		]),
	)

	api.getQueue = async () => {
		const jobs = active()
		const running = jobs.filter(({ status }) => status === "running")
		const pending = jobs.filter(({ status }) => status === "pending")
		return {
			Running: running.map((job) => ({
				taskType: "Running",
				prompt: itemOf(job, Date.parse(job.created_at)),
				remove: { name: "Cancel", cb: () => api.interrupt(job.id) },
			})),
			Pending: pending.map((job) => ({
				taskType: "Pending",
				prompt: itemOf(job, Date.parse(job.created_at)),
			})),
		}
	}

	api.getHistory = async (most = 200, options) => {
		try {
			const { userId } = await settings()
			const jobs = await listJobs(userId, Math.min(1000, most + (options?.offset ?? 0)))
			const ended = jobs.filter(
				(job) => hasEnded(job) && endedMs(job) > hidden.before && !hidden.ids.includes(job.id),
			)
			return { History: ended.slice(options?.offset ?? 0).map((job) => historyItem(job, userId)) }
		} catch {
			return { History: [] }
		}
	}

	api.interrupt = async (id) => {
		const running = active().filter((job) => job.isOurs && job.status === "running")
		const ids = id ? [id] : running.map((job) => job.id)
		await Promise.all([native.interrupt(id), ...ids.map(cancel)])
	}

	api.deleteItem = async (type, id) => {
		if (type === "queue") await cancel(id)
		else hide({ ids: [...hidden.ids, id] })
	}

	api.clearItems = async (type) => {
		if (type !== "queue") return hide({ before: Date.now(), ids: [] })
		await Promise.all(
			active()
				.filter(({ status }) => status === "pending")
				.map(({ id }) => cancel(id)),
		)
	}
}

async function cancel(id) {
	try {
		await cancelJob(id)
	} catch (error) {
		console.warn(`comfyume: ${id} was not cancelled: ${error.message}`)
	}
}
