// comfyume verify-models: which models are there, whole, and what they should be. It only reads.
import { resolve } from "node:path"
import { Command, Option } from "commander"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import type { ModelEntry } from "../lib/models/manifest.ts"
import { reportModelPaths, reportWorkflows } from "../lib/models/needs-report.ts"
import { readManifest } from "../lib/models/read-manifest.ts"
import { type Level, levels, type Verdict, verifyModels } from "../lib/models/verify.ts"
import { formatTable, printable } from "../lib/ui/format.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun, Surroundings } from "../lib/ui/surroundings.ts"

type VerifyModelsOptions = {
	models?: string
	manifest?: string
	level: Level
	json?: boolean
	workflows?: string
	modelPaths?: string
	modelsSeenAt?: string
}

/** Raised when a line of `--json` changes in a way that a reader of the older ones can't take. */
const lineVersion = 1

const hashBufferBytes = 1024 * 1024

const levelsHelp = `
Levels, each with all before it:
  exists     it is there and not empty; nothing is read
  size       it has the manifest's size
  structure  it is a model and no pointer, page or unfinished file; a safetensors file's
             tensors fill it to its last byte. A few kilobytes are read of each
  digest     it has the manifest's sha256. Every byte is read

Not yet: --env, --from (R2), --deep, --scrub, --heal.`

export function create(run: CommandRun): Command {
	return new Command("verify-models")
		.summary("say which models are there, whole, and what they should be")
		.description(
			"Judges the models below a directory against a manifest; without one by their structure alone. " +
				"Workflows are judged by the manifest, with --models by what is right on the disk too. " +
				"It changes nothing.",
		)
		.option("--models <directory>", "the directory that holds checkpoints, loras, vae, …")
		.option("--manifest <file>", "what must be there; other files are listed as extra")
		.addOption(new Option("--level <level>", "how deep to look").choices(levels).default("structure"))
		.option("--workflows <directory>", "ComfyUI's workflows: say which can't run for want of which model")
		.option("--model-paths <file>", "check an extra_model_paths.yaml")
		.option("--models-seen-at <directory>", "where ComfyUI sees the models, for --model-paths")
		.option("--json", "one line of JSON for each file")
		.addHelpText("after", levelsHelp)
		.addHelpText("after", exitStatusHelp([0, 2, 3, 129, 130, 143]))
		.action((options: VerifyModelsOptions) => verify(run, options))
}

async function verify({ surroundings, finish }: CommandRun, options: VerifyModelsOptions): Promise<void> {
	const { models: directory, workflows, modelPaths, modelsSeenAt: modelsDirectory, json = false } = options
	if (directory === undefined && workflows === undefined && modelPaths === undefined)
		throw new OperatorError("there is nothing to verify", {
			exitCode: exitCodes.usage,
			hint: "comfyume verify-models --models DIRECTORY, or --workflows DIRECTORY",
		})
	// Without a manifest a disk is judged by itself, but workflows need something to be held against.
	const manifest =
		options.manifest === undefined && directory !== undefined
			? undefined
			: await readManifest(surroundings, options.manifest)
	const models = manifest?.models
	const judged =
		directory === undefined ? undefined : await verifyDirectory(surroundings, directory, models, options)
	const rights = [
		judged?.right ?? true,
		workflows === undefined ||
			(await reportWorkflows(surroundings, workflows, { models, verdicts: judged?.verdicts, json })),
		modelPaths === undefined ||
			(await reportModelPaths(surroundings, modelPaths, { models, modelsDirectory, json })),
	]
	if (rights.includes(false)) finish(exitCodes.incomplete)
}

async function verifyDirectory(
	{ terminal, signal, workingDirectory }: Surroundings,
	named: string,
	models: readonly ModelEntry[] | undefined,
	options: VerifyModelsOptions,
): Promise<{ verdicts: Verdict[]; right: boolean }> {
	const directory = resolve(workingDirectory, named)
	const verdicts: Verdict[] = []
	const buffer = Buffer.allocUnsafe(options.level === "digest" ? hashBufferBytes : 0)
	for await (const verdict of verifyModels(directory, models, { level: options.level, buffer, signal })) {
		verdicts.push(verdict)
		if (options.json === true) terminal.out(`${JSON.stringify({ version: lineVersion, ...verdict })}\n`)
		// Hashing 200 GB takes minutes; the table comes at its end.
		else if (options.level === "digest" && terminal.interactive)
			terminal.talk(`${verdict.status}: ${printable(verdict.path)}\n`)
	}
	if (options.json !== true && verdicts.length > 0)
		for (const line of table(verdicts, terminal.columns)) terminal.out(`${line}\n`)

	const wrong = verdicts.filter(({ right }) => !right).length
	const counts = Map.groupBy(verdicts, ({ status }) => status)
	const said = [...counts].map(([status, all]) => `${all.length} ${status}`).join(", ")
	// An empty directory is what a share that isn't mounted looks like.
	const none = verdicts.every(({ status, right }) => right && (status === "unknown" || status === "extra"))
	if (none) terminal.talk(`there is no model below ${directory}\n  next: findmnt --target ${directory}\n`)
	else terminal.talk(`${said}; ${wrong === 0 ? "nothing needed is wrong" : `${wrong} not right`}\n`)
	return { verdicts, right: !none && wrong === 0 }
}

const columns = [
	{ key: "path", heading: "model" },
	{ key: "status", heading: "status" },
	{ key: "tier", heading: "tier" },
	{ key: "because", heading: "because" },
] as const

const table = (verdicts: readonly Verdict[], width: number) =>
	formatTable(
		columns,
		verdicts.map(({ path, status, tier, because }) => ({
			path: printable(path),
			status,
			tier,
			because: printable(because),
		})),
		width,
	)
