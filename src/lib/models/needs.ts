// Which workflow needs which model: a directory of workflows held against a manifest, or against what lies on a disk.
import { readFile, stat } from "node:fs/promises"
import { join } from "node:path"
import { codeOf, exitCodes, messageOf, OperatorError, systemError } from "../errors.ts"
import type { ModelReference, WorkflowFinding } from "../formats/workflow.ts"
import { folderTypeOf, listFiles } from "./directories.ts"
import type { ModelEntry } from "./manifest.ts"
import type { Verdict } from "./verify.ts"

/** A workflow's file: its text, or why it can't be read. */
export type WorkflowText = {
	/** Below the directory of workflows. */
	path: string
	text?: string | undefined
	because?: string | undefined
}

export type WorkflowFile = { path: string; finding: WorkflowFinding }

const longestBytes = 64 * 1024 * 1024

/**
 * Reads every `*.json` below a directory, links followed. A file that can't be read is a broken workflow.
 * @throws {OperatorError} (2) when there is no such directory
 */
export async function readWorkflows(directory: string, signal?: AbortSignal): Promise<WorkflowText[]> {
	const files: WorkflowText[] = []
	try {
		const paths = (await listFiles(directory, signal)).filter((path) => /\.json$/i.test(path))
		for (const path of paths) files.push({ path, ...(await readWorkflow(join(directory, path))) })
	} catch (error) {
		signal?.throwIfAborted()
		if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR")
			throw new OperatorError(`there is no directory of workflows at ${directory}`, {
				exitCode: exitCodes.usage,
				hint: "name the directory that holds the workflows' *.json files with --workflows",
			})
		throw systemError(error, `listing ${directory}`)
	}
	return files
}

async function readWorkflow(diskPath: string): Promise<Omit<WorkflowText, "path">> {
	try {
		// Reading a pipe would wait for ever.
		const facts = await stat(diskPath)
		if (!facts.isFile()) return { because: "it is no file" }
		if (facts.size > longestBytes) return { because: "it is larger than 64 MiB" }
		return { text: await readFile(diskPath, "utf8") }
	} catch (error) {
		const because = codeOf(error) === "ENOENT" ? "it is a link to nowhere" : messageOf(error)
		return { because: `it can't be read: ${because}` }
	}
}

/** A model that workflows can have. */
export type Provider = Pick<ModelEntry, "path" | "url" | "repository" | "gated"> & {
	/** Why it can't be used as it is now. */
	wrong?: string
}

/**
 * What is there for workflows: the manifest's models, as right as a look at the disk found them to be where there was
 * one; without a manifest what lies on the disk.
 */
export function providersOf(
	models: readonly ModelEntry[] | undefined,
	verdicts: readonly Verdict[] | undefined,
): Provider[] {
	const judged = new Map(verdicts?.map((verdict) => [verdict.path, verdict]))
	const known = new Set(models?.map(({ path }) => path))
	const wrongOf = ({ status, because }: Verdict) =>
		status === "ok" ? {} : { wrong: `${status}: ${because}` }
	const listed = (models ?? []).map((model) => {
		const verdict = judged.get(model.path)
		return { ...model, ...(verdict && wrongOf(verdict)) }
	})
	const others = (verdicts ?? [])
		.filter(({ path }) => !known.has(path))
		.map((verdict) => ({ path: verdict.path, ...wrongOf(verdict) }))
	return [...listed, ...others]
}

/** One model of a workflow, with all nodes that load it. */
export type Need = Pick<ModelReference, "name" | "directory" | "optional"> & {
	nodes: { type: string; id: string }[]
	/** The path of what provides it. Without `because` it is right. */
	providedBy?: string
	/** Why the workflow doesn't have it. */
	because?: string
	/** Where it can be had: what the workflow says, else what the manifest does. */
	url?: string
	repository?: string
	gated?: boolean
}

export type WorkflowNeeds = {
	workflow: string
	runs: boolean
	/** Why it can't be judged. */
	broken?: string
	needs: Need[]
}

/** Holds workflows against what is there. Files that are no workflow are left out. */
export function compareNeeds(
	files: readonly WorkflowFile[],
	providers: readonly Provider[],
): WorkflowNeeds[] {
	const find = finder(providers)
	return files.flatMap(({ path, finding }) => {
		if (finding.state !== "workflow")
			return finding.state === "none"
				? []
				: [{ workflow: path, runs: false, broken: finding.because, needs: [] }]
		const groups = Map.groupBy(finding.workflow.references, keyOf)
		const needs = [...groups.values()].map((references) => needOf(references, find))
		const runs = needs.every(({ optional, because }) => optional || because === undefined)
		return [{ workflow: path, runs, needs }]
	})
}

const keyOf = ({ directory, name }: ModelReference) =>
	directory === undefined ? name : `${folderTypeOf(directory)}\0${name}`

type Found = { provider?: Provider; because?: string; elsewhere?: Provider }

function needOf(references: readonly ModelReference[], find: (reference: ModelReference) => Found): Need {
	const [first] = references
	if (first === undefined) throw new Error("a group has a member")
	const { provider, because, elsewhere } = find(first)
	const url = references.find((one) => one.url !== undefined)?.url
	const source = provider ?? elsewhere
	const from = url ?? source?.url
	return {
		name: first.anyEnding ? `${first.name}.*` : first.name,
		...(first.directory !== undefined && { directory: first.directory }),
		optional: references.every(({ optional }) => optional),
		nodes: references.map(({ nodeType, nodeId }) => ({ type: nodeType, id: nodeId })),
		...(provider && { providedBy: provider.path }),
		...(because !== undefined && { because }),
		...(from !== undefined && { url: from }),
		...(source?.repository !== undefined && { repository: source.repository }),
		...(source?.gated !== undefined && { gated: source.gated }),
	}
}

function finder(providers: readonly Provider[]): (reference: ModelReference) => Found {
	const byPath = Map.groupBy(providers, ({ path }) => canonical(path))
	const byName = Map.groupBy(providers, ({ path }) => below(path))
	const byFile = Map.groupBy(providers, ({ path }) => fileOf(path))
	const candidates = ({ directory, name, anyEnding }: ModelReference) => {
		if (directory === undefined) return byName.get(name) ?? []
		const path = canonical(`${directory}/${name}`)
		if (anyEnding !== true) return byPath.get(path) ?? []
		return providers.filter((provider) => canonical(provider.path).startsWith(`${path}.`))
	}
	return (reference) => {
		const all = candidates(reference)
		const provider = all.find(({ wrong }) => wrong === undefined) ?? all[0]
		if (provider !== undefined)
			return { provider, ...(provider.wrong !== undefined && { because: provider.wrong }) }
		const alike = byFile.get(fileOf(reference.name)) ?? []
		const elsewhere = alike.find(({ wrong }) => wrong === undefined) ?? alike[0]
		if (elsewhere === undefined) return { because: "nothing provides it" }
		return {
			elsewhere,
			because: `nothing provides it there; ${elsewhere.path} has its name, and isn't found`,
		}
	}
}

const below = (path: string) => path.slice(path.indexOf("/") + 1)
const fileOf = (path: string) => path.slice(path.lastIndexOf("/") + 1).toLowerCase()

/** The path with its first part as the folder type: `unet/x` and `diffusion_models/x` are found alike. */
function canonical(path: string): string {
	const slash = path.indexOf("/")
	return slash === -1 ? path : `${folderTypeOf(path.slice(0, slash))}${path.slice(slash)}`
}

/** Where the manifest's lists of workflows and the workflows disagree, each a sentence. It makes nothing fail. */
export function listingNotes(all: readonly WorkflowNeeds[], models: readonly ModelEntry[]): string[] {
	const judged = all.filter(({ broken }) => broken === undefined)
	const users = new Map<string, Set<string>>()
	for (const { workflow, needs } of judged)
		for (const { providedBy } of needs)
			if (providedBy !== undefined) users.set(providedBy, (users.get(providedBy) ?? new Set()).add(workflow))
	const isNamed = (workflow: string, name: string) => workflow === name || workflow.endsWith(`/${name}`)
	return models.flatMap(({ path, workflows = [] }) => {
		const using = [...(users.get(path) ?? [])]
		const unused = judged
			.map(({ workflow }) => workflow)
			.filter((workflow) => !using.includes(workflow) && workflows.some((name) => isNamed(workflow, name)))
		const unlisted = using.filter((workflow) => !workflows.some((name) => isNamed(workflow, name)))
		return [
			...unused.map((workflow) => `${path}: the manifest says that ${workflow} uses it, and it doesn't`),
			...unlisted.map((workflow) => `${path}: ${workflow} uses it, and the manifest doesn't say so`),
		]
	})
}
