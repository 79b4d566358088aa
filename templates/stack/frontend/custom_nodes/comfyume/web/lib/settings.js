// Whose page this is, what is switched on, and where the queue manager answers.
import { api } from "../../../scripts/api.js"

const all = ["queue-redirect", "default-workflow", "status-banner", "console-reports"]

/** The user whose door this page lies behind (/user003/…), or undefined where there is no door. */
const doorOf = (path) => /^\/(user\d{3})\//.exec(path)?.[1]

let asked

/** @returns {Promise<{userId: string | undefined, extensions: string[], defaultWorkflow: string | undefined}>} */
export function settings() {
	asked ??= ask()
	return asked
}

async function ask() {
	const door = doorOf(location.pathname)
	// Without the workshop's door in front, /api/jobs of this address would be ComfyUI's own server.
	if (door === undefined) {
		console.info("comfyume: this page isn't behind the workshop's door; jobs stay with this ComfyUI")
		return { userId: undefined, extensions: ["default-workflow"], defaultWorkflow: undefined }
	}
	try {
		const answer = await api.fetchApi("/comfyume/settings", { cache: "no-store" })
		if (!answer.ok) throw new Error(`HTTP ${answer.status}`)
		const { extensions, default_workflow } = await answer.json()
		// The door and not the container's name: it is the door that the queue manager is told of.
		return { userId: door, extensions, defaultWorkflow: default_workflow ?? undefined }
	} catch (error) {
		console.warn("comfyume: /comfyume/settings doesn't answer; everything is on", error)
		return { userId: door, extensions: all, defaultWorkflow: undefined }
	}
}

/** Whether an extension is on for this page. */
export const isOn = async (name) => (await settings()).extensions.includes(name)
