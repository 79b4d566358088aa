// Jobs go to the workshop's queue instead of this ComfyUI's own. Only the transport of `api.queuePrompt` is replaced: who
// calls it, how batches are made, when seeds change and what an error looks like stay ComfyUI's own.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { addOurs, say, start } from "./lib/jobs.js"
import { tellNatively } from "./lib/native-events.js"
import { keepPrompt, replacePanels } from "./lib/native-panels.js"
import { submitJob } from "./lib/queue-manager.js"
import { isOn, settings } from "./lib/settings.js"

const frontendPriority = 1
// Of the 1 MiB that the queue manager takes as metadata.
const mostGraphLength = 900_000

app.registerExtension({
	name: "comfyume.QueueRedirect",
	async setup() {
		if (!(await isOn("queue-redirect"))) return
		const batchOf = followBatches()
		api.queuePrompt = (_number, data, options) => queuePrompt(data, options, batchOf)
		replacePanels()
		tellNatively()
		await start()
	},
})

/** What ComfyUI throws when its server refuses a prompt: its dialogue and red nodes come from it. */
function refusal(type, message, details, nodeErrors = {}) {
	const response = { error: { type, message, details, extra_info: {} }, node_errors: nodeErrors }
	const Native = window.comfyAPI?.api?.PromptExecutionError
	return Native === undefined
		? Object.assign(new Error(`${message}: ${details}`), { response })
		: new Native(response)
}

async function queuePrompt({ output, workflow }, options, batchOf) {
	const batch = batchOf.next()
	try {
		const key = crypto.randomUUID()
		const { prompt, nodeErrors } = await validated(output, workflow, options)
		const { userId } = await settings()
		const isGraphSmall = JSON.stringify(workflow).length <= mostGraphLength
		const metadata = {
			batch_index: batch.index,
			batch_total: batch.total,
			// What ComfyUI writes into a picture, so that it can be dropped onto the page again.
			...(isGraphSmall && { extra_pnginfo: { workflow } }),
		}
		const job = await submit({ user_id: userId, workflow: prompt, priority: frontendPriority, metadata }, key)
		keepPrompt(job.id, prompt, workflow)
		addOurs(job, batch)
		return { prompt_id: job.id, number: batch.index, node_errors: nodeErrors }
	} catch (error) {
		// ComfyUI ends the batch here.
		batchOf.end()
		throw error
	}
}

/**
 * Has this ComfyUI check the prompt, as its own queue would.
 * @returns the prompt to run: without the outputs that are wrong or not asked for
 */
async function validated(output, workflow, options) {
	const targets = options?.partialExecutionTargets
	const plain = { prompt: targets ? upstreamOf(output, targets) : output, nodeErrors: {} }
	let answer
	let body
	try {
		answer = await api.fetchApi("/comfyume/validate", {
			method: "POST",
			headers: { "Content-Type": "application/json" },
			body: JSON.stringify({
				prompt: output,
				client_id: api.clientId,
				extra_data: { extra_pnginfo: { workflow } },
				...(targets && { partial_execution_targets: targets }),
			}),
		})
		body = await answer.json()
	} catch (error) {
		console.warn("comfyume: workflows are not checked here; the GPU's ComfyUI will", error)
		return plain
	}
	if (answer.status === 400 && body.error !== undefined) {
		const { type, message, details } = body.error
		throw refusal(type, message, details, body.node_errors ?? {})
	}
	if (!answer.ok) {
		console.warn(`comfyume: workflows are not checked here (${body.unavailable ?? answer.status})`)
		return plain
	}
	return { prompt: upstreamOf(body.prompt, body.outputs), nodeErrors: body.node_errors ?? {} }
}

/** The nodes that are needed for some outputs. */
function upstreamOf(prompt, outputs) {
	const needed = new Set()
	const left = outputs.map(String)
	for (let id = left.pop(); id !== undefined; id = left.pop()) {
		if (needed.has(id) || prompt[id] === undefined) continue
		needed.add(id)
		// A link is [node, output].
		for (const input of Object.values(prompt[id].inputs ?? {}))
			if (Array.isArray(input)) left.push(String(input[0]))
	}
	return Object.fromEntries(Object.entries(prompt).filter(([id]) => needed.has(id)))
}

async function submit(job, key) {
	try {
		return await submitJob(job, key, () =>
			say({
				tone: "wait",
				title: "The queue doesn't answer",
				detail: "Your job is kept here and sent again.",
			}),
		)
	} catch (error) {
		const [type, message, details] = said(error)
		say({ tone: "bad", title: message, detail: details })
		throw refusal(type, message, details, error.body?.node_errors)
	}
}

function said({ status, message }) {
	if (status === 429) {
		return ["queue_full", "The queue is full", `${message}. Wait until some jobs are done, then queue again.`]
	}
	if (status === 401 || status === 403) {
		return ["refused", "The queue doesn't know you", `${message}. Reload the page and sign in again.`]
	}
	if (status === 422) return ["refused", "The queue refused the workflow", message]
	return [
		"unreachable",
		"The queue can't be reached",
		`${message}. Nothing was queued; try again in a minute.`,
	]
}

/**
 * Which of how many a prompt is. ComfyUI tells only `app.queuePrompt`, which calls `api.queuePrompt` once for each, and
 * takes what was asked for last first.
 */
function followBatches() {
	const asked = []
	let current
	const native = app.queuePrompt
	app.queuePrompt = function (number, batchCount = 1, ...rest) {
		asked.push(batchCount)
		return native.call(this, number, batchCount, ...rest).then((isDone) => {
			// It says so when it has taken everything; what is left over was never begun.
			if (app.processingQueue !== true) {
				asked.length = 0
				current = undefined
			}
			return isDone
		})
	}
	return {
		next() {
			current ??= { index: -1, total: asked.pop() ?? 1 }
			current.index += 1
			const { index, total } = current
			if (index + 1 >= total) current = undefined
			return { index, total }
		},
		end() {
			current = undefined
		},
	}
}
