// What is to be said of workflows and of an extra_model_paths.yaml, whoever says it: a plan's step or a command of this
// machine.
import { readFile } from "node:fs/promises"
import { dirname, resolve } from "node:path"
import { z } from "zod"
import { exitCodes, OperatorError, systemError } from "../errors.ts"
import { parseWorkflow } from "../formats/workflow.ts"
import type { ModelPathsFacts, WorkflowFacts } from "../plan/events.ts"
import type { ModelEntry } from "./manifest.ts"
import { parseModelPaths, unreachable } from "./model-paths.ts"
import { compareNeeds, listingNotes, providersOf, type WorkflowNeeds, type WorkflowText } from "./needs.ts"
import type { Verdict } from "./verify.ts"

/** What is said, and whether all is right. `text` is the sum in a sentence. */
export type Said<Facts> = {
	facts: readonly Facts[]
	notes: readonly string[]
	right: boolean
	text: string
	hint?: string
}

/**
 * Says of each workflow whether its models are there, and of those that aren't where they can be had.
 * @param directory where they were read, for the words
 * @param verdicts where models were looked at: then they must be right there too
 * @returns not right where there is no workflow at all
 */
export function judgeWorkflows(
	texts: readonly WorkflowText[],
	{
		directory,
		models,
		verdicts,
	}: {
		directory: string
		models: readonly ModelEntry[] | undefined
		verdicts: readonly Verdict[] | undefined
	},
): Said<WorkflowFacts> {
	const files = texts.map((file) => ({
		path: file.path,
		finding:
			file.text === undefined
				? { state: "broken" as const, because: file.because ?? "it can't be read" }
				: parseWorkflow(file.text),
	}))
	const all = compareNeeds(files, providersOf(models, verdicts))
	const notes = [
		...files.flatMap(({ path, finding }) =>
			finding.state === "none" ? [`${path}: ${finding.because}`] : [],
		),
		...listingNotes(all, models ?? []),
	]
	const facts = all.map(factsOf)
	if (all.length === 0)
		return {
			...{ facts, notes, right: false, text: `there is no workflow below ${directory}` },
			hint: `ls ${directory}; name it with --workflows`,
		}
	const failed = all.filter(({ runs }) => !runs)
	const text =
		failed.length > 0
			? `${failed.length} of ${all.length} workflows can't run: ${failed.map(({ workflow }) => workflow).join(", ")}`
			: all.length === 1
				? "the workflow has its models"
				: `all ${all.length} workflows have their models`
	return { facts, notes, right: failed.length === 0, text }
}

const factsOf = ({ workflow, runs, broken, needs }: WorkflowNeeds): WorkflowFacts => ({
	path: workflow,
	status: broken !== undefined ? "broken" : runs ? "ok" : "incomplete",
	...(broken !== undefined && { because: broken }),
	right: runs,
	models: needs,
})

/** An extra_model_paths.yaml as it was read, with what is needed to judge it anywhere. */
const modelPathsFileSchema = z.strictObject({
	/** As the operator named it. */
	named: z.string(),
	text: z.string(),
	/** What relative paths in it are relative to. */
	fileDirectory: z.string(),
	/** Where ComfyUI sees the models; without it directories are compared by their names. */
	modelsDirectory: z.string().optional(),
})

export type ModelPathsFile = z.infer<typeof modelPathsFileSchema>

/**
 * @param named relative to the working directory
 * @throws {OperatorError} (2) when it can't be read
 */
export async function readModelPaths(
	workingDirectory: string,
	named: string,
	modelsDirectory: string | undefined,
): Promise<ModelPathsFile> {
	const file = resolve(workingDirectory, named)
	const text = await readFile(file, "utf8").catch((error) => {
		const { message } = systemError(error, `reading ${file}`)
		throw new OperatorError(message, { exitCode: exitCodes.usage, cause: error })
	})
	return {
		named,
		text,
		fileDirectory: dirname(file),
		...(modelsDirectory !== undefined && { modelsDirectory }),
	}
}

/** Says what is wrong with it, and with a manifest which directories of models it leaves out. */
export function judgeModelPaths(
	{ named, text, fileDirectory, modelsDirectory }: ModelPathsFile,
	models: readonly ModelEntry[] = [],
): Said<ModelPathsFacts> {
	const { searchPaths, problems } = parseModelPaths(text, { fileDirectory })
	const needed = models.filter(({ optional }) => optional !== true).map(({ path }) => path)
	const hidden = unreachable(needed, searchPaths, modelsDirectory).map(
		({ directory, models: count, because }) => ({
			severity: "error" as const,
			message: `ComfyUI finds none of the ${count} models in ${directory}: ${because}`,
		}),
	)
	const facts = [...problems, ...hidden].map((problem) => ({ path: named, ...problem }))
	const errors = facts.filter(({ severity }) => severity === "error").length
	return {
		facts,
		notes: [],
		right: errors === 0,
		text:
			errors > 0
				? `${named}: ${errors === 1 ? "1 error" : `${errors} errors`}`
				: `${named}: ${searchPaths.length} directories, each under a key that ComfyUI knows`,
	}
}

const sentSchema = z.strictObject({
	workflows: z
		.strictObject({
			directory: z.string(),
			texts: z.array(
				z.strictObject({ path: z.string(), text: z.string().optional(), because: z.string().optional() }),
			),
		})
		.optional(),
	modelPaths: modelPathsFileSchema.optional(),
})

/** What the operator has at hand and a host elsewhere doesn't: both may be absent. */
export type NeedsFiles = z.infer<typeof sentSchema>

/** From the text that `JSON.stringify` made of it. */
export const parseNeedsFiles = (json: string): NeedsFiles => sentSchema.parse(JSON.parse(json))
