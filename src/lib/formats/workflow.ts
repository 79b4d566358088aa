// ComfyUI's workflow files: which models their nodes load. The UI format with its subgraphs, and the API format. What
// such a file says is foreign: nothing in it makes this throw, recurse, or work longer than its length asks for.
import { isModelName } from "./model-name.ts"
import { loaders, type Selected, selectedBy, silentNodes } from "./workflow-loaders.ts"

export type ModelReference = Omit<Selected, "directory"> & {
	/** With `/` between its parts, as in `directory`. */
	name: string
	/** Undefined where the node is none that is known: it may be any. */
	directory?: string
	/** Where the workflow says that it can be had. */
	url?: string
	nodeType: string
	/** With the instances of subgraphs that lead to it, as ComfyUI writes it: `57:12`. */
	nodeId: string
	/** Muted, bypassed, or listed without being selected: the workflow runs without it. */
	optional: boolean
	found: "properties" | "widget"
}

export type Workflow = { format: "ui" | "api"; references: ModelReference[] }

/** `none` where it is JSON and no workflow; `broken` where it can't be told. */
export type WorkflowFinding =
	| { state: "workflow"; workflow: Workflow }
	| { state: "none" | "broken"; because: string }

const longestText = 64 * 1024 * 1024
const mostNodes = 100_000
const deepestNesting = 32
// Texts of prompts may end in a file's name; a model's name isn't as long.
const longestName = 512
// Ids are repeated for every node below a subgraph's instance.
const longestId = 100
const longestUrl = 4096
// What subgraphs hold is noted for each that holds them.
const mostHeld = 1_000_000

/** Reads a workflow's text. Never throws. */
export function parseWorkflow(text: string): WorkflowFinding {
	if (text.length > longestText) return { state: "broken", because: "it is larger than 64 MiB" }
	let value: unknown
	try {
		value = JSON.parse(text.replace(/^\uFEFF/, ""))
	} catch {
		return { state: "broken", because: text.trim() === "" ? "it is empty" : "it is not JSON" }
	}
	const root = record(value)
	if (root === undefined) return { state: "none", because: "it is JSON, and no workflow" }
	if (Array.isArray(root["nodes"])) return readGraphs(root)
	const wrapped = apiNodes(record(root["prompt"]) ?? {})
	const nodes = wrapped.length > 0 ? wrapped : apiNodes(root)
	if (nodes.length === 0) return { state: "none", because: "it is JSON, and no workflow" }
	if (nodes.length > mostNodes) return tooMany
	return { state: "workflow", workflow: { format: "api", references: nodes.flatMap(readApiNode) } }
}

const tooMany = { state: "broken", because: `it has more than ${mostNodes} nodes` } as const

type Json = Readonly<Record<string, unknown>>

const isRecord = (value: unknown): value is Json =>
	typeof value === "object" && value !== null && !Array.isArray(value)
const record = (value: unknown): Json | undefined => (isRecord(value) ? value : undefined)
const list = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : [])

type ApiNode = { id: string; type: string; inputs: Json }

const apiNodes = (prompt: Json): ApiNode[] =>
	Object.entries(prompt).flatMap(([id, node]) => {
		const { class_type: type, inputs } = record(node) ?? {}
		return typeof type === "string"
			? [{ id: short(id), type: short(type), inputs: record(inputs) ?? {} }]
			: []
	})

function readApiNode({ id, type, inputs }: ApiNode): ModelReference[] {
	const about = { nodeType: type, nodeId: id, optional: false }
	const known = loaders.get(type)
	if (known === undefined) return unknownNode(type, Object.values(inputs), about)
	return known.flatMap((widget) => {
		// A list is a link to another node.
		const value = inputs[widget.input]
		return typeof value === "string" ? selectedBy(widget, value).map((one) => fromWidget(one, about)) : []
	})
}

type About = Pick<ModelReference, "nodeType" | "nodeId" | "optional">

const slashes = (name: string) => name.slice(0, longestName).replaceAll("\\", "/")
const short = (id: string) => id.slice(0, longestId)

const fromWidget = (
	{ name, ...selected }: Omit<Selected, "directory"> & { directory?: string },
	about: About,
) => ({
	name: slashes(name),
	...selected,
	...about,
	found: "widget" as const,
})

/** The names of models in the widgets of a node that isn't known; what directory they are for can't be said. */
function unknownNode(type: string, values: readonly unknown[], about: About): ModelReference[] {
	if (silentNodes.has(type)) return []
	const names = values.flatMap((value) => {
		if (typeof value !== "string" || value.length > longestName) return []
		const name = value.trim()
		return isModelName(name) && !/[\n\r]|:\/\//.test(name) ? [name] : []
	})
	return [...new Set(names)].map((name) => fromWidget({ name }, about))
}

type Node = {
	id: string
	type: string
	off: boolean
	values: Json | readonly unknown[]
	models: readonly unknown[]
}
type Graph = { id: string; name: string; nodes: readonly Node[] }

const rootId = ""

function readGraphs(root: Json): WorkflowFinding {
	const graphs = new Map<string, Graph>([[rootId, { id: rootId, name: "", nodes: readNodes(root) }]])
	let definitions = definitionsOf(root)
	for (let depth = 0; definitions.length > 0; depth++) {
		if (depth === deepestNesting)
			return { state: "broken", because: `its subgraphs are nested deeper than ${deepestNesting}` }
		for (const definition of definitions) {
			const id = textOf(definition["id"])
			if (id === "" || graphs.has(id)) continue
			graphs.set(id, { id, name: short(textOf(definition["name"]) || id), nodes: readNodes(definition) })
		}
		definitions = definitions.flatMap(definitionsOf)
	}
	const all = [...graphs.values()]
	if (all.reduce((sum, { nodes }) => sum + nodes.length, 0) > mostNodes) return tooMany
	const placed = place(graphs)
	if (typeof placed === "string")
		return { state: "broken", because: `its subgraph ${JSON.stringify(placed)} contains itself` }
	if (placed === undefined)
		return { state: "broken", because: `its subgraphs are nested deeper than ${deepestNesting}` }
	let held = 0
	const inside = new Map<string, ReadonlySet<string>>()
	// Inner graphs first: what a subgraph's instance repeats of its inner nodes is no news.
	const references = placed.toReversed().map(({ graph, path, active }) => {
		const own = graph.nodes.flatMap((node) => {
			const about = { nodeType: short(node.type), nodeId: `${path}${node.id}`, optional: node.off || !active }
			const inner = inside.get(node.type)
			return readUiNode(node, about).filter(({ name }) => inner?.has(name) !== true)
		})
		const names = new Set(own.map(({ name }) => name))
		for (const type of new Set(graph.nodes.map((node) => node.type)))
			for (const name of (held < mostHeld && inside.get(type)) || []) {
				names.add(name)
				held++
			}
		inside.set(graph.id, names)
		return own
	})
	if (held >= mostHeld) return { state: "broken", because: "its subgraphs hold too much of each other" }
	return { state: "workflow", workflow: { format: "ui", references: references.reverse().flat() } }
}

const definitionsOf = (graph: Json): Json[] =>
	list(record(graph["definitions"])?.["subgraphs"]).filter(isRecord)

const textOf = (value: unknown): string =>
	typeof value === "string" ? value : typeof value === "number" ? String(value) : ""

function readNodes(graph: Json): Node[] {
	return list(graph["nodes"]).flatMap((value) => {
		const node = record(value)
		const type = textOf(node?.["type"])
		if (node === undefined || type === "") return []
		return {
			id: short(textOf(node["id"])),
			type,
			// ComfyUI's modes: 2 is muted, 4 bypassed.
			off: node["mode"] === 2 || node["mode"] === 4,
			values: Array.isArray(node["widgets_values"])
				? node["widgets_values"]
				: (record(node["widgets_values"]) ?? []),
			models: list(record(node["properties"])?.["models"]),
		}
	})
}

type Placed = { graph: Graph; path: string; depth: number; active: boolean }

/**
 * The graphs, each before those that it holds instances of, and whether any way to it leads through active instances
 * alone. A subgraph without any instance counts as active: why it is there can't be told.
 * @returns the name of a subgraph that contains itself, where there is one; undefined where they are nested too deeply
 */
function place(graphs: ReadonlyMap<string, Graph>): Placed[] | string | undefined {
	const waiting = new Map([...graphs.keys()].map((id) => [id, 0]))
	for (const { nodes } of graphs.values())
		for (const { type } of nodes) if (graphs.has(type)) waiting.set(type, (waiting.get(type) ?? 0) + 1)
	const found = new Map<string, Placed>()
	const ready = [...graphs.values()].filter(({ id }) => waiting.get(id) === 0)
	for (const graph of ready)
		found.set(graph.id, { graph, path: graph.id === rootId ? "" : `${graph.name}:`, depth: 0, active: true })
	const ordered: Placed[] = []
	for (const graph of ready) {
		const outer = found.get(graph.id)
		if (outer === undefined) continue
		if (outer.depth > deepestNesting) return undefined
		ordered.push(outer)
		for (const node of graph.nodes) {
			const inner = graphs.get(node.type)
			if (inner === undefined) continue
			const active = outer.active && !node.off
			const known = found.get(inner.id)
			if (known === undefined || (active && !known.active)) {
				const path = `${outer.path}${node.id}:`
				found.set(inner.id, { graph: inner, path, depth: outer.depth + 1, active })
			}
			const left = (waiting.get(inner.id) ?? 0) - 1
			waiting.set(inner.id, left)
			// Grows while it is gone through: the last instance of a subgraph makes it ready.
			if (left === 0) ready.push(inner)
		}
	}
	const stuck = new Map([...graphs].filter(([id]) => (waiting.get(id) ?? 0) > 0))
	return stuck.size === 0 ? ordered : nameInCircle(stuck)
}

/** Goes outwards, from graph to graph that holds it, until it comes by one again. */
function nameInCircle(stuck: ReadonlyMap<string, Graph>): string {
	const outerOf = new Map<string, Graph>()
	for (const graph of stuck.values()) for (const { type } of graph.nodes) outerOf.set(type, graph)
	const passed = new Set<string>()
	let [graph] = stuck.values()
	while (graph !== undefined && !passed.has(graph.id)) {
		passed.add(graph.id)
		graph = outerOf.get(graph.id)
	}
	return graph?.name ?? ""
}

function readUiNode({ type, values, models }: Node, about: About): ModelReference[] {
	const known = loaders.get(type)
	const byWidget: ModelReference[] =
		known === undefined
			? unknownNode(type, Object.values(values), about)
			: known.flatMap((widget) => {
					const value = Array.isArray(values) ? values[widget.index] : record(values)?.[widget.input]
					return typeof value === "string"
						? selectedBy(widget, value).map((one) => fromWidget(one, about))
						: []
				})
	const declared = models.flatMap((value) => {
		const model = record(value)
		const name = slashes(textOf(model?.["name"]).trim())
		if (model === undefined || name === "") return []
		const directory = slashes(textOf(model["directory"])).replaceAll(/^\/+|\/+$/g, "")
		const url = textOf(model["url"])
		const isUrl = url !== "" && url.length <= longestUrl
		return { name, ...(directory !== "" && { directory }), ...(isUrl && { url }) }
	})
	const declaredByName = new Map(declared.map((model) => [model.name, model]))
	const taken = new Set<string>()
	const selected = byWidget.map((reference) => {
		const model = declaredByName.get(reference.name) ?? declaredByName.get(baseName(reference.name))
		if (model === undefined) return reference
		taken.add(model.name)
		return { ...reference, ...model, name: reference.name, found: "properties" as const }
	})
	const others = declared
		.filter(({ name }) => !taken.has(name))
		// As ComfyUI's own check does it: what a widget has been changed away from isn't loaded.
		.map((model) => ({
			...model,
			...about,
			optional: about.optional || byWidget.length > 0,
			found: "properties" as const,
		}))
	return [...selected, ...others]
}

const baseName = (name: string) => name.slice(name.lastIndexOf("/") + 1)
