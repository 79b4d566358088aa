// The workflow that a user's first page begins with, and ?workflow=NAME for links in the workshop's documents.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { isOn, settings } from "./lib/settings.js"

// Kept with the user's settings on the server: another browser is not a first time.
const doneSetting = "comfyume.DefaultWorkflow.Loaded"
// Where ComfyUI keeps what was last on the screen, and finds it again.
const graphKey = "workflow"
const nameKey = "Comfy.PreviousWorkflow"

let linked

app.registerExtension({
	name: "comfyume.DefaultWorkflow",
	async setup() {
		if (!(await isOn("default-workflow"))) return
		const name = new URLSearchParams(location.search).get("workflow")?.replace(/\.json$/, "")
		try {
			if (!hasWork()) await begin(name)
			else linked = name
		} catch (error) {
			complain(error)
		}
		if (linked === undefined) forgetLink()
	},
	// ComfyUI has put up what was there before: what is loaded now comes into a tab of its own.
	afterConfigureGraph() {
		const name = linked
		linked = undefined
		if (name !== undefined) setTimeout(() => void open(name).catch(complain).finally(forgetLink))
	},
})

function hasWork() {
	const keys = [...Object.keys(localStorage), ...Object.keys(sessionStorage)]
	return keys.some((key) => key === graphKey || key.startsWith(`${graphKey}:`))
}

/** Leaves the workflow where ComfyUI, which starts after this, looks for the last one: there is none to lose. */
async function begin(name) {
	const { defaultWorkflow } = await settings()
	const wanted = name ?? ((await isFirstTime()) ? defaultWorkflow : undefined)
	if (wanted === undefined) return
	const graph = await read(wanted)
	localStorage.setItem(graphKey, JSON.stringify(graph))
	localStorage.setItem(nameKey, `${wanted}.json`)
	await api.storeSetting(doneSetting, wanted)
}

const isFirstTime = async () => !(await api.getSetting(doneSetting).catch(() => true))

async function read(name) {
	const answer = await api.getUserData(`workflows/${name}.json`)
	if (!answer.ok) throw new Error(`There is no workflow "${name}".`)
	return answer.json()
}

async function open(name) {
	const graph = await read(name)
	const known = app.extensionManager?.workflow?.getWorkflowByPath?.(`workflows/${name}.json`)
	// One that is open may have been changed: it stays as it is.
	if (known?.isLoaded !== true) await app.loadGraphData(graph, true, true, known ?? name)
}

function complain({ message }) {
	app.extensionManager?.toast?.add({
		severity: "warn",
		summary: "Workflow not loaded",
		detail: message,
		life: 8000,
	})
}

// Else a reload would load it again, over what was changed since.
function forgetLink() {
	const address = new URL(location.href)
	if (!address.searchParams.has("workflow")) return
	address.searchParams.delete("workflow")
	history.replaceState(history.state, "", address)
}
