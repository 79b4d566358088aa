// verify-models of a directory of this machine, without a configuration: a vault on a laptop, a copy in CI.
import { homedir } from "node:os"
import { isAbsolute, join, resolve } from "node:path"
import { exitCodes } from "../errors.ts"
import { openHashing } from "../models/hashing.ts"
import { listSizes } from "../models/list-sizes.ts"
import type { ModelEntry } from "../models/manifest.ts"
import { readWorkflows } from "../models/needs.ts"
import { judgeModelPaths, judgeWorkflows, readModelPaths, type Said } from "../models/needs-report.ts"
import { readManifest } from "../models/read-manifest.ts"
import { tally } from "../models/tally.ts"
import { type Verdict, verifyModels } from "../models/verify.ts"
import { type EventBody, eventsVersion } from "../plan/events.ts"
import { modelsTable } from "../plan/reporters/models.ts"
import { modelPathsLine, workflowLines } from "../plan/reporters/workflows.ts"
import { printable } from "../ui/format.ts"
import type { CommandRun, Surroundings } from "../ui/surroundings.ts"
import type { ModelsRequest } from "./verify-models.ts"

export type DirectoryRequest = {
	/** Relative to the working directory, as the others. Without it no model is looked at. */
	models?: string
	/** What must be there; without it structure alone is judged. */
	manifest?: string
	/** Workflows that need models, and an extra_model_paths.yaml, with where ComfyUI sees the models. */
	workflows?: string
	modelPaths?: string
	modelsSeenAt?: string
	request: ModelsRequest
	json?: boolean
	quiet?: boolean
}

/**
 * Judges the models below a directory, a line for each with `json`, else a table; then what workflows need of them and
 * where ComfyUI looks for them.
 * @throws {OperatorError} (2) when there is no such directory, or the manifest isn't right
 */
export async function verifyDirectory(run: CommandRun, options: DirectoryRequest): Promise<void> {
	const { surroundings, finish } = run
	const { models: directory, manifest: named, workflows, modelPaths, modelsSeenAt } = options
	// Without a manifest a disk is judged by itself, but workflows need something to be held against.
	const manifest =
		named === undefined && directory !== undefined ? undefined : await readManifest(surroundings, named)
	const models = manifest?.models
	const judged =
		directory === undefined ? undefined : await judgeDirectory(surroundings, directory, models, options)
	const sayWorkflows = async (named: string) => {
		const directory = resolve(surroundings.workingDirectory, named)
		const texts = await readWorkflows(directory, surroundings.signal)
		const said = judgeWorkflows(texts, { directory, models, verdicts: judged?.verdicts })
		return say(surroundings, options, said, (facts) => ({
			body: { event: "workflow", ...facts },
			lines: workflowLines(facts),
		}))
	}
	const sayModelPaths = async (named: string) => {
		const file = await readModelPaths(surroundings.workingDirectory, named, modelsSeenAt)
		return say(surroundings, options, judgeModelPaths(file, models), (facts) => ({
			body: { event: "model-paths", ...facts },
			lines: [modelPathsLine(facts)],
		}))
	}
	const rights = [
		judged?.right ?? true,
		workflows === undefined || (await sayWorkflows(workflows)),
		modelPaths === undefined || (await sayModelPaths(modelPaths)),
	]
	if (rights.includes(false)) finish(exitCodes.incomplete)
}

/** Facts on stdout, as events or as lines; the sum and what is worth knowing beside it. */
function say<Facts>(
	{ terminal, now }: Surroundings,
	{ json = false, quiet = false }: DirectoryRequest,
	{ facts, notes, right, text, hint }: Said<Facts>,
	render: (facts: Facts) => { body: EventBody; lines: readonly string[] },
): boolean {
	const emit = (body: EventBody) =>
		terminal.out(`${JSON.stringify({ version: eventsVersion, at: now().toISOString(), ...body })}\n`)
	const silent = quiet && right
	for (const { body, lines } of facts.map(render))
		if (json) emit(body)
		else if (!silent) for (const line of lines) terminal.out(`${line}\n`)
	for (const note of notes)
		if (json) emit({ event: "note", level: "info", text: note })
		else if (!quiet) terminal.talk(`note: ${printable(note)}\n`)
	if (!silent) terminal.talk(`${printable(text)}\n${hint === undefined ? "" : `  next: ${hint}\n`}`)
	return right
}

async function judgeDirectory(
	surroundings: Surroundings,
	named: string,
	models: readonly ModelEntry[] | undefined,
	{ request, json = false, quiet = false }: DirectoryRequest,
): Promise<{ verdicts: Verdict[]; right: boolean }> {
	const { terminal, signal, workingDirectory, now } = surroundings
	const { level, deep, scrub } = request
	const directory = resolve(workingDirectory, named)
	const emit = (body: EventBody) =>
		terminal.out(`${JSON.stringify({ version: eventsVersion, at: now().toISOString(), ...body })}\n`)

	const files = await listSizes(directory, signal)
	const hashing =
		level === "digest"
			? await openHashing({
					...{ directory, files, deep, now },
					cacheDirectory: cacheDirectoryOf(surroundings),
					models,
					...(scrub && { scrub }),
					onProgress: () => {},
				})
			: undefined
	const found: Verdict[] = []
	try {
		const asked = { level, listed: files.keys(), signal, ...(hashing && { hashing }) }
		for await (const verdict of verifyModels(directory, models, asked)) {
			found.push(verdict)
			if (json) emit({ event: "model", place: directory, ...verdict })
			// Hashing 200 GB takes minutes; the table comes at its end.
			else if (level === "digest" && terminal.interactive)
				terminal.talk(`${verdict.status}: ${printable(verdict.path)}\n`)
		}
	} finally {
		for (const text of (await hashing?.close()) ?? [])
			if (json) emit({ event: "note", level: "info", text })
			else if (!quiet) terminal.talk(`note: ${printable(text)}\n`)
	}

	const { none, wrong, text } = tally(found)
	const silent = quiet && !none && !wrong
	const facts = found.map((verdict) => ({ place: directory, ...verdict }))
	if (!json && !silent && found.length > 0)
		for (const line of modelsTable(facts, terminal.columns)) terminal.out(`${line}\n`)
	// An empty directory is what a share that isn't mounted looks like.
	if (none) terminal.talk(`there is no model below ${directory}\n  next: findmnt --target ${directory}\n`)
	else if (!silent) terminal.talk(`${printable(text)}\n`)
	return { verdicts: found, right: !none && !wrong }
}

function cacheDirectoryOf({ variables }: Surroundings): string {
	const named = variables["XDG_CACHE_HOME"]
	const base =
		named !== undefined && isAbsolute(named) ? named : join(variables["HOME"] ?? homedir(), ".cache")
	return join(base, "comfyume/digests")
}
