// Gives each job a directory of its own on the share: every `filename_prefix` of its prompt is rewritten to
// `cq/<day>/<job>/a<attempt>/<node>~<base name>`. Counters race in a directory that jobs share, and ComfyUI's cache
// writes no file at all for a graph it has just run; with this, one readdir is one job.
import { exitCodes, OperatorError } from "../../lib/errors.ts"
import { promptIdOf } from "../../lib/formats/prompt-id.ts"

/** A node of a prompt as ComfyUI's API takes it. */
export type PromptNode = { class_type: string; inputs: Record<string, unknown> } & Record<string, unknown>
export type Prompt = Record<string, PromptNode>

/** A node that is expected to write files; how many is not known before (batches, previews, sound apart). */
export type OutputNode = {
	/** The node's id in the prompt. */
	node: string
	/** How the node's files begin, up to `~`. */
	token: string
	classType: string
	/** What its files must come to before it counts as done. */
	writes: "video" | "anything"
}

export type OutputPlan = {
	/** Of this attempt, below the root of outputs on the share. */
	directory: string
	/** The prompt to send. */
	prompt: Prompt
	/** What goes beside it, as the frontend does (`extra_pnginfo` and the like). */
	extraData: Record<string, unknown> | undefined
	nodes: readonly OutputNode[]
}

export type AttemptName = {
	/** The job's id: letters, digits, `_` and `-`. */
	job: string
	/** From 1. */
	attempt: number
	/** Further submissions of one attempt, where it isn't known whether an earlier one was accepted; from 1. */
	submission?: number
	createdAt: Date
}

/** The workflow can't be run with its outputs matched to it; for an answer with status 422. */
export class WorkflowRefused extends OperatorError {
	readonly statusCode = 422

	constructor(message: string, hint?: string) {
		super(message, { exitCode: exitCodes.usage, ...(hint === undefined ? {} : { hint }) })
		this.name = "WorkflowRefused"
	}
}

/** The id ComfyUI knows this attempt by. */
export function promptId({ job, attempt, submission = 1 }: AttemptName): string {
	return promptIdOf(job, attempt, submission)
}

/** The attempt's directory below the root of outputs on the share. */
export function attemptDirectory({ job, attempt, submission = 1, createdAt }: AttemptName): string {
	if (!/^[A-Za-z0-9_-]{1,100}$/.test(job)) throw new RangeError("a job's id is of letters, digits, _ and -")
	const day = createdAt.toISOString().slice(0, 10).replaceAll("-", "")
	return `cq/${day}/${job}/a${attempt}${submission === 1 ? "" : `-${submission}`}`
}

/**
 * Rewrites where a workflow's files go. Pure: the same job and attempt give the same plan, so that it needn't be kept.
 * @param workflow in ComfyUI's API format, or `{prompt, extra_data}` as the frontend posts it; it is not changed
 * @throws {WorkflowRefused} when it is no prompt, or none of its nodes writes a file
 */
export function planOutputs(workflow: Record<string, unknown>, name: AttemptName): OutputPlan {
	const directory = attemptDirectory(name)
	const isWrapped = isRecord(workflow["prompt"]) && workflow["prompt"]["class_type"] === undefined
	const given = isWrapped ? (workflow["prompt"] as Record<string, unknown>) : workflow
	const extraData = isWrapped && isRecord(workflow["extra_data"]) ? workflow["extra_data"] : undefined
	const taken: Tokens = new Map()
	const nodes: (OutputNode & { isUsed: boolean })[] = []
	const used = new Set<string>()
	const prompt = Object.fromEntries(
		Object.entries(given).map(([node, value]): [string, PromptNode] => {
			if (!isNode(value))
				throw new WorkflowRefused(
					`the workflow's entry ${JSON.stringify(node.slice(0, 40))} is no node (it has no class_type)`,
					"send the workflow in ComfyUI's API format: Workflow > Export (API)",
				)
			for (const input of Object.values(value.inputs)) if (isLink(input)) used.add(String(input[0]))
			if (!writesFiles(value)) return [node, value]
			const token = tokenOf(node, taken)
			const base = baseNameOf(value.inputs["filename_prefix"])
			nodes.push({ node, token, classType: value.class_type, writes: wants(value), isUsed: false })
			const inputs = { ...value.inputs, filename_prefix: `${directory}/${token}~${base}` }
			return [node, { ...value, inputs }]
		}),
	)
	if (nodes.length === 0)
		throw new WorkflowRefused(
			"none of the workflow's nodes writes a file (none has a filename_prefix): its results could not be found",
			"add a node that saves, such as Save Image or Save Video",
		)
	// What others build upon may be a helper that only passes its name on. It counts when nothing else is there.
	const ends = nodes.filter(({ node }) => !used.has(node))
	const expected = (ends.length > 0 ? ends : nodes).map(({ isUsed: _, ...node }) => node)
	return { directory, prompt, extraData, nodes: expected }
}

/** The path below the root of outputs that a node's `filename_prefix` was given. */
export function prefixOf(plan: OutputPlan, node: string): string | undefined {
	const prefix = Object.hasOwn(plan.prompt, node) ? plan.prompt[node]?.inputs["filename_prefix"] : undefined
	return typeof prefix === "string" ? prefix : undefined
}

/** Which node wrote a file, by the file's name; undefined when none of this job has written it. */
export function nodeOfFile(
	plan: OutputPlan,
	fileName: string,
): { node: string; classType: string } | undefined {
	const end = fileName.indexOf("~")
	if (end <= 0) return undefined
	const start = `${plan.directory}/${fileName.slice(0, end + 1)}`
	for (const [node, { class_type }] of Object.entries(plan.prompt)) {
		if (prefixOf(plan, node)?.startsWith(start)) return { node, classType: class_type }
	}
	return undefined
}

function writesFiles({ inputs }: PromptNode): boolean {
	// Video Helper Suite writes to the temporary directory when asked not to save.
	return Object.hasOwn(inputs, "filename_prefix") && inputs["save_output"] !== false
}

/** Nodes that leave a picture first and the film after it: the picture alone isn't what they are for. */
function wants({ class_type, inputs }: PromptNode): OutputNode["writes"] {
	if (/^Save(Video|WEBM)$/.test(class_type)) return "video"
	const format = inputs["format"]
	return class_type.startsWith("VHS_") && typeof format === "string" && format.startsWith("video/")
		? "video"
		: "anything"
}

/** Tokens that are given away, each with the number that the next one like it may have. */
export type Tokens = Map<string, number>

/** How a node's files begin; ids of nodes inside of subgraphs have colons (`57:8`). */
export function tokenOf(node: string, taken: Tokens): string {
	const plain = node.slice(0, 60).replaceAll(/[^A-Za-z0-9_-]/g, "-") || "node"
	let token = plain
	// Not from 2 on each time: a workflow may have 200 000 ids that come out alike.
	let count = taken.get(plain) ?? 2
	for (; taken.has(token); count++) token = `${plain}-${count}`
	if (token !== plain) taken.set(plain, count)
	taken.set(token, 2)
	return token
}

const longestBaseBytes = 100
// A prefix may be megabytes; what is looked at of it is more than can be kept.
const mostLookedAt = 1000
// ComfyUI itself fills these in.
const placeholders = /%(year|month|day|hour|minute|second|width|height|batch_num)%/g

/**
 * The last part of a prefix, without what is special to paths, shells or ComfyUI. Directories in it are dropped: what
 * is delivered lies directly in the user's directory.
 */
export function baseNameOf(prefix: unknown): string {
	if (typeof prefix !== "string") return "ComfyUI"
	const start = Math.max(prefix.lastIndexOf("/"), prefix.lastIndexOf("\\")) + 1
	const last = prefix.slice(start, start + mostLookedAt).normalize("NFC")
	const kept = [...last.matchAll(placeholders)].map(([text]) => text)
	let base = last
		.split(/%(?:year|month|day|hour|minute|second|width|height|batch_num)%/)
		.map((text) => text.replaceAll(/[^\p{L}\p{N} ._()+=-]/gu, "-"))
		.map((text, index) => text + (kept[index] ?? ""))
		.join("")
		.replace(/^[\s.]+/, "")
		.trimEnd()
	base = beginningOf(base, longestBaseBytes)
	return base === "" ? "ComfyUI" : base
}

/** As much of a text as fits, without half a character at its end. */
function beginningOf(text: string, mostBytes: number): string {
	let sizeBytes = 0
	let end = 0
	for (const character of text) {
		sizeBytes += Buffer.byteLength(character)
		if (sizeBytes > mostBytes) break
		end += character.length
	}
	return text.slice(0, end)
}

function isRecord(value: unknown): value is Record<string, unknown> {
	return typeof value === "object" && value !== null && !Array.isArray(value)
}

function isNode(value: unknown): value is PromptNode {
	return isRecord(value) && typeof value["class_type"] === "string" && isRecord(value["inputs"])
}

/** An input that comes from another node: `[node, slot]`. */
function isLink(value: unknown): value is [string | number, number] {
	return Array.isArray(value) && value.length === 2 && typeof value[1] === "number"
}
