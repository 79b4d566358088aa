// The workflow that a user's first page begins with, and ?workflow=NAME for links in the workshop's documents.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { isOn, settings } from "./lib/settings.js"

// Kept with the user's settings on the server: another browser is not a first time.
const doneSetting = "comfyume.DefaultWorkflow.Loaded"

let wanted

app.registerExtension({
	name: "comfyume.DefaultWorkflow",
	async setup() {
		if (await isOn("default-workflow")) wanted = await wantedWorkflow()
		// What is restored by ComfyUI on its own is a user's work: `wanted` was decided before.
		if (wanted !== undefined) await app.extensionManager?.setting.set("Comfy.TutorialCompleted", true)
	},
	// ComfyUI has put up the graph that it begins with; what is loaded now comes into a tab of its own.
	afterConfigureGraph() {
		if (wanted === undefined) return
		const name = wanted
		wanted = undefined
		setTimeout(() => void load(name))
	},
})

async function wantedWorkflow() {
	const linked = new URLSearchParams(location.search).get("workflow")
	if (linked !== null) return nameOf(linked)
	const { defaultWorkflow } = await settings()
	if (defaultWorkflow === undefined || hasWork()) return undefined
	const done = await api.getSetting(doneSetting).catch(() => true)
	return done ? undefined : nameOf(defaultWorkflow)
}

// Where ComfyUI keeps what was last on the screen.
function hasWork() {
	const keys = [...Object.keys(localStorage), ...Object.keys(sessionStorage)]
	return keys.some((key) => key === "workflow" || key.startsWith("workflow:"))
}

const nameOf = (text) => text.replace(/\.json$/, "")

async function load(name) {
	const path = `workflows/${name}.json`
	try {
		const answer = await api.getUserData(path)
		if (!answer.ok) throw new Error(`there is no workflow "${name}"`)
		const graph = await answer.json()
		const known = app.extensionManager?.workflow?.getWorkflowByPath?.(path)
		// One that is open may have been changed: it comes to the front as it is.
		if (known?.isLoaded !== true) await app.loadGraphData(graph, true, true, known ?? name)
		await api.storeSetting(doneSetting, name)
	} catch (error) {
		app.extensionManager?.toast?.add({
			severity: "warn",
			summary: "Workflow not loaded",
			detail: error.message,
			life: 8000,
		})
	}
	// Else a reload would load it again, over what was changed since.
	const address = new URL(location.href)
	address.searchParams.delete("workflow")
	history.replaceState(history.state, "", address)
}
