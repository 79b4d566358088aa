// What is said of workflows and of extra_model_paths.yaml: read, compared, printed. Each gives whether all is right.
import { readFile } from "node:fs/promises"
import { dirname, resolve } from "node:path"
import { exitCodes, OperatorError, systemError } from "../errors.ts"
import { printable } from "../ui/format.ts"
import type { Surroundings } from "../ui/surroundings.ts"
import type { ModelEntry } from "./manifest.ts"
import { parseModelPaths, unreachable } from "./model-paths.ts"
import {
	compareNeeds,
	listingNotes,
	type Need,
	providersOf,
	readWorkflows,
	type WorkflowNeeds,
} from "./needs.ts"
import type { Verdict } from "./verify.ts"

/** Raised when a line of `--json` changes in a way that a reader of the older ones can't take. */
const lineVersion = 1

export type ReportOptions = {
	models: readonly ModelEntry[] | undefined
	json: boolean
}

/**
 * Says of each workflow below a directory whether its models are there, and of those that aren't where they can be had.
 * @param named the directory, relative to the working directory
 * @param verdicts where the disk was looked at: then models must be right there too
 * @returns whether every workflow can run; false where there is none
 * @throws {OperatorError} (2) when there is no such directory
 */
export async function reportWorkflows(
	{ terminal, signal, workingDirectory }: Surroundings,
	named: string,
	{ models, verdicts, json }: ReportOptions & { verdicts: readonly Verdict[] | undefined },
): Promise<boolean> {
	const directory = resolve(workingDirectory, named)
	const files = await readWorkflows(directory, signal)
	const all = compareNeeds(files, providersOf(models, verdicts))
	if (json) for (const needs of all) terminal.out(`${JSON.stringify(lineOf(needs))}\n`)
	else for (const line of all.flatMap(linesFor)) terminal.out(`${line}\n`)

	for (const { path, finding } of files)
		if (finding.state === "none") terminal.talk(`note: ${printable(path)}: ${finding.because}\n`)
	for (const note of listingNotes(all, models ?? [])) terminal.talk(`note: ${printable(note)}\n`)
	const failed = all.filter(({ runs }) => !runs)
	if (all.length === 0)
		terminal.talk(
			`there is no workflow below ${directory}\n  next: ls ${directory}; name it with --workflows\n`,
		)
	else if (failed.length === 0)
		terminal.talk(
			`${all.length === 1 ? "the workflow has" : `all ${all.length} workflows have`} their models\n`,
		)
	else
		terminal.talk(
			`${failed.length} of ${all.length} workflows can't run: ${failed.map(({ workflow }) => printable(workflow)).join(", ")}\n`,
		)
	return all.length > 0 && failed.length === 0
}

const lineOf = ({ workflow, runs, broken, needs }: WorkflowNeeds) => ({
	version: lineVersion,
	kind: "workflow",
	path: workflow,
	status: statusOf({ runs, broken }),
	...(broken !== undefined && { because: broken }),
	right: runs,
	models: needs,
})

const statusOf = ({ runs, broken }: { runs: boolean; broken: string | undefined }) =>
	broken !== undefined ? "broken" : runs ? "ok" : "incomplete"

/** Lines that are not wrapped: paths and addresses in them are there to be copied. */
function linesFor({ workflow, runs, broken, needs }: WorkflowNeeds): string[] {
	const required = needs.filter(({ optional }) => !optional)
	const absent = needs.filter(({ because }) => because !== undefined)
	const count = required.filter(({ because }) => because !== undefined).length
	const models = required.length === 1 ? "1 model" : `${required.length} models`
	const said = broken ?? (runs ? `needs ${models}` : `lacks ${count} of ${models}`)
	return [`${statusOf({ runs, broken })} ${workflow}: ${said}`, ...absent.flatMap(linesForAbsent)].map(
		(line) => line.slice(0, line.search(/\S/)) + printable(line),
	)
}

/** A model that a workflow doesn't have, why, which node asks for it, and where it can be had. */
function linesForAbsent({
	directory,
	name,
	nodes,
	because,
	optional,
	url,
	repository,
	gated,
}: Need): string[] {
	const [node] = nodes
	const more = nodes.length > 1 ? ` and ${nodes.length - 1} more` : ""
	const from = url ?? (repository === undefined ? undefined : `https://huggingface.co/${repository}`)
	return [
		`  ${directory === undefined ? "" : `${directory}/`}${name}: ${because}`,
		`    for the node ${node?.id} ${node?.type}${more}${optional ? ", which doesn't run" : ""}`,
		from === undefined ? "    where to get it isn't known" : `    get it from ${from}${gatedSays(gated)}`,
	]
}

const gatedSays = (gated: boolean | undefined) =>
	gated === true ? " (gated: its licence must be accepted, and a token is needed)" : ""

/**
 * Says what is wrong with an extra_model_paths.yaml, and with a manifest which directories of models it leaves out.
 * @param named the file, relative to the working directory
 * @param modelsDirectory where ComfyUI sees the models; without it directories are compared by their names
 * @returns whether nothing but warnings was said
 * @throws {OperatorError} (2) when it can't be read
 */
export async function reportModelPaths(
	{ terminal, workingDirectory }: Surroundings,
	named: string,
	{ models = [], modelsDirectory, json }: ReportOptions & { modelsDirectory: string | undefined },
): Promise<boolean> {
	const file = resolve(workingDirectory, named)
	const text = await readFile(file, "utf8").catch((error) => {
		const { message } = systemError(error, `reading ${file}`)
		throw new OperatorError(message, { exitCode: exitCodes.usage, cause: error })
	})
	const { searchPaths, problems } = parseModelPaths(text, { fileDirectory: dirname(file) })
	const needed = models.filter(({ optional }) => optional !== true).map(({ path }) => path)
	const hidden = unreachable(needed, searchPaths, modelsDirectory).map(
		({ directory, models: count, because }) => ({
			line: undefined,
			severity: "error" as const,
			message: `ComfyUI finds none of the ${count} models in ${directory}: ${because}`,
		}),
	)
	const all = [...problems, ...hidden]
	for (const { line, severity, message } of all)
		terminal.out(
			json
				? `${JSON.stringify({ version: lineVersion, kind: "model-paths", path: named, line, severity, message })}\n`
				: `${named}${line === undefined ? "" : `:${line}`} ${severity}: ${printable(message)}\n`,
		)
	const errors = all.filter(({ severity }) => severity === "error").length
	terminal.talk(
		errors > 0
			? `${named}: ${errors === 1 ? "1 error" : `${errors} errors`}\n`
			: `${named}: ${searchPaths.length} directories, each under a key that ComfyUI knows\n`,
	)
	return errors === 0
}
