// A job's outputs: a directory of its own before it runs, and exactly its files when it has run.
import { lstat, realpath } from "node:fs/promises"
import { join, relative, sep } from "node:path"
import type { HistoryEntry } from "./comfyui.ts"

/** Outputs by node and kind, as ComfyUI gives them: `{"9": {images: [{filename, subfolder, type}]}}`. */
export type Outputs = Record<string, Record<string, unknown>>
export type OutputFile = { filename: string; subfolder: string; type: "output" }

const isObject = (value: unknown): value is Record<string, unknown> =>
	typeof value === "object" && value !== null && !Array.isArray(value)

/**
 * The workflow with a directory of its own for one attempt: names are counted in it alone, and a graph that ran before
 * for somebody else writes files of its own instead of naming theirs. Every `filename_prefix` given as text becomes
 * `cq/<yyyymmdd>/<job>/a<attempt>/<node>~<base name>`; one that the queue manager has already made so stays.
 * @returns the changed copy, and the ids of the nodes that are expected to save something
 */
export function isolateOutputs(
	workflow: Record<string, unknown>,
	job: { id: string; attempt: number },
	now: Date,
): { workflow: Record<string, unknown>; saving: string[] } {
	const day = now.toISOString().slice(0, 10).replaceAll("-", "")
	const directory = `cq/${day}/${plain(job.id)}/a${job.attempt}`
	const isOwn = new RegExp(
		`^cq/\\d{8}/${plain(job.id).replaceAll(".", "\\.")}/a${job.attempt}(?:-\\d+)?/[^/]+$`,
	)
	const saving: string[] = []
	const nodes = Object.entries(workflow).map(([id, node]) => {
		if (!isObject(node) || !isObject(node.inputs)) return [id, node]
		const prefix = node.inputs.filename_prefix
		if (typeof prefix !== "string") return [id, node]
		saving.push(id)
		if (isOwn.test(prefix)) return [id, node]
		const base = plain(prefix.split(/[/\\]/).at(-1) ?? "") || "output"
		const inputs = { ...node.inputs, filename_prefix: `${directory}/${plain(id)}~${base}` }
		return [id, { ...node, inputs }]
	})
	return { workflow: Object.fromEntries(nodes), saving }
}

// `%` would be ComfyUI's own replacement of names; a dot in front would hide the file.
const plain = (text: string) =>
	text
		.replaceAll(/[^A-Za-z0-9._-]+/g, "_")
		.replace(/^\.+/, "")
		.slice(0, 80)

/**
 * What of a prompt's outputs can be handed on. Files that lie in ComfyUI's temporary directory are previews and are left
 * out; texts and other values stay as they are.
 * @returns them, and the files among them
 */
export function outputsOf(entry: HistoryEntry): { outputs: Outputs; files: OutputFile[] } {
	const files: OutputFile[] = []
	const outputs: Outputs = {}
	for (const [node, kinds] of Object.entries(entry.outputs)) {
		const kept = Object.entries(kinds).flatMap(([kind, values]) => {
			if (!Array.isArray(values)) return [[kind, values]]
			const rest = values.flatMap((value): unknown[] => {
				if (!isObject(value) || typeof value.filename !== "string") return [value]
				if ((value.type ?? "output") !== "output") return []
				const subfolder = typeof value.subfolder === "string" ? value.subfolder : ""
				const file = { filename: value.filename, subfolder, type: "output" as const }
				files.push(file)
				return [{ ...value, ...file }]
			})
			return rest.length === 0 && values.length > 0 ? [] : [[kind, rest]]
		})
		if (kept.length > 0) outputs[node] = Object.fromEntries(kept)
	}
	return { outputs, files }
}

/**
 * Looks at the files themselves: each must be a regular file with content, below ComfyUI's output directory.
 * @returns what is wrong, or undefined
 */
export async function wrongFile(root: string, files: readonly OutputFile[]): Promise<string | undefined> {
	if (files.length === 0) return undefined
	const top = await realpath(root).catch(() => undefined)
	if (top === undefined) return `the output directory ${root} is not there`
	for (const { filename, subfolder } of files) {
		const name = `${subfolder === "" ? "" : `${subfolder}/`}${filename}`
		const path = join(top, subfolder, filename)
		if (!isBelow(top, path)) return `${name} lies outside of the output directory`
		const found = await lstat(path).catch(() => undefined)
		if (found === undefined) return `ComfyUI names ${name}, and it is not in ${root}`
		// A link somewhere on the way leads elsewhere.
		if (!found.isFile() || (await realpath(path)) !== path) return `${name} is no regular file`
		if (found.size === 0) return `${name} is empty`
	}
	return undefined
}

function isBelow(top: string, path: string): boolean {
	const way = relative(top, path)
	return way !== "" && way !== ".." && !way.startsWith(`..${sep}`)
}
