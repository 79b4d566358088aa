// comfyume verify-models: which models are there, whole, and what they should be; with --heal those that are not are put
// right. Without it, it only reads.
import { isAbsolute, resolve } from "node:path"
import { Command, Option } from "commander"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import { readWorkflows } from "../lib/models/needs.ts"
import { type NeedsFiles, parseNeedsFiles, readModelPaths } from "../lib/models/needs-report.ts"
import { manifestOf, readManifestText } from "../lib/models/read-manifest.ts"
import { parseScrub, type Scrub } from "../lib/models/scrub.ts"
import { type Level, levels } from "../lib/models/verify.ts"
import { type HealOptions, healOptions, spokenWords, wordsOfHeal } from "../lib/steps/heal-options.ts"
import { planHeal } from "../lib/steps/restore-models.ts"
import { type CommonOptions, commonOptions, names, runCommand } from "../lib/steps/run-command.ts"
import { verifyDirectory } from "../lib/steps/verify-directory.ts"
import { type ModelsRequest, verifyModelsPlan } from "../lib/steps/verify-models.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type VerifyModelsOptions = Omit<CommonOptions, "from"> & {
	models?: string
	manifest?: string
	level?: Level
	deep?: boolean
	scrub?: Scrub
	from?: "share" | "r2" | "both"
	container: readonly string[]
	workflows?: string
	modelPaths?: string
	modelsSeenAt?: string
	heal?: boolean
} & HealOptions

const moreHelp = `
Without --models it looks where the environment has its models: on the share and in R2, held
against each other, and inside of the frontends that run (docker).

--workflows holds workflows against the manifest alone, as CI does; with --models or --env also
against what is right there.

Levels, each with all before it:
  exists     it is there and not empty; nothing is read
  size       it has the manifest's size
  structure  it is a model and no pointer, page or unfinished file; a safetensors file's
             tensors fill it to its last byte. A few kilobytes are read of each
  digest     it has the manifest's sha256. What has not changed since it was read is not
             read again. Of R2 only what was noted with the objects; --deep --from r2
             streams every byte through the host

With --heal each model on the share that is missing or damaged is fetched from R2, of damaged
ones the damaged blocks alone where the manifest knows them, and looked at once more. What
stood there is kept beside it. --dry-run says what would come from where.

With --json one event per line; "event": "model" is one model in one place: path, status,
tier, because.`

export function create(run: CommandRun): Command {
	const command = commonOptions
		.reduce(
			(command, [flags, description]) => command.option(flags, description),
			new Command("verify-models"),
		)
		.summary("say which models are there, whole, and what they should be")
		.description(
			"Judges an environment's models, or those below a directory, against a manifest. " +
				"Without --heal it changes nothing.",
		)
		.option("--models <directory>", "look below this directory instead: it holds checkpoints, loras, vae, …")
		.option(
			"--manifest <file>",
			"what must be there; other files are listed as extra (else the one that comes with comfyume; " +
				"with --models, none: structure alone)",
		)
		.addOption(new Option("--level <level>", "how deep to look (default: structure)").choices(levels))
		.addOption(new Option("--from <place>", "where to look").choices(["share", "r2", "both"]))
		.option("--deep", "read every byte, whatever is remembered; the level is digest")
		.addOption(
			new Option("--scrub <n/t>", "read the n-th of t parts; from cron: $(date +%u)/7").argParser(parseScrub),
		)
		.addOption(
			new Option("--container <names>", "frontends to look into")
				.argParser(names)
				.default([], "all that run"),
		)
		.option("--workflows <directory>", "ComfyUI's workflows: say which can't run for want of which model")
		.option("--model-paths <file>", "check an extra_model_paths.yaml")
		.option("--models-seen-at <directory>", "where ComfyUI sees the models, for --model-paths")
		.option("--heal", "put right what is missing or damaged on the share")
		.option("--yes", "answer the question before healing production with yes")
		.addHelpText("after", moreHelp)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 6, 7, 8, 129, 130, 143]))
		.action((options: VerifyModelsOptions) => verify(run, options))
	for (const [flags, description, parse] of healOptions) {
		const option = new Option(flags, `with --heal: ${description}`)
		command.addOption(parse === undefined ? option : option.argParser(parse))
	}
	return command
}

async function verify(run: CommandRun, options: VerifyModelsOptions): Promise<void> {
	const { deep = false, scrub, from, container: containers, models } = options
	const everyByte = deep || scrub !== undefined
	if (everyByte && options.level !== undefined && options.level !== "digest")
		throw misuse(`--level ${options.level} reads no digests`, "leave out --level, or --deep and --scrub")
	if (deep && scrub !== undefined) throw misuse("--deep reads all, --scrub a part", "leave one of them out")
	const level = options.level ?? (everyByte ? "digest" : "structure")
	const request: ModelsRequest = {
		...{ level, deep, containers },
		...(scrub && { scrub }),
		...(from && { from }),
		...(options.manifest !== undefined && { manifest: options.manifest }),
	}
	if (options.heal === true) return heal(run, options, request)
	const only = ["dryRun", "yes", "fromOrigin", "tempDir", "limit"] as const
	if (only.some((name) => options[name] !== undefined))
		throw misuse("--dry-run, --yes, --from-origin, --temp-dir and --limit are for --heal", "add --heal")
	const { surroundings } = run
	const ofEnvironment = options.env !== undefined || from !== undefined || containers.length > 0
	if (models !== undefined && ofEnvironment)
		throw misuse("--models looks at this machine alone", "leave it out, or --env, --from and --container")
	// In CI there are no models and no environment: workflows are held against the manifest alone.
	const ofManifest = options.workflows !== undefined || options.modelPaths !== undefined
	if (models !== undefined || (ofManifest && !ofEnvironment))
		return verifyDirectory(run, { ...options, request })
	const { from: _, ...common } = options
	return runCommand(run, {
		command: "verify-models",
		options: { ...common, ...(from !== undefined && from !== "both" && { from: [from] }) },
		argv: argvOf(request),
		checksOnly: true,
		modelsOnly: true,
		files: async () => ({
			...(await manifestFile(surroundings, options.manifest)),
			needs: JSON.stringify(await readNeeds(surroundings, options)),
		}),
		plan: (context, { files }) =>
			verifyModelsPlan(
				context,
				manifestOf(files["manifest"] ?? "", "the manifest"),
				request,
				parseNeedsFiles(files["needs"] ?? "{}"),
			),
	})
}

/** A host elsewhere doesn't have the operator's file. */
async function manifestFile(
	surroundings: CommandRun["surroundings"],
	named: string | undefined,
): Promise<{ manifest: string }> {
	const { file, text } = await readManifestText(surroundings, named)
	manifestOf(text, file, named)
	return { manifest: text }
}

async function readNeeds(
	{ workingDirectory, signal }: CommandRun["surroundings"],
	{ workflows, modelPaths, modelsSeenAt }: VerifyModelsOptions,
): Promise<NeedsFiles> {
	const directory = workflows === undefined ? undefined : resolve(workingDirectory, workflows)
	return {
		...(directory !== undefined && {
			workflows: { directory, texts: await readWorkflows(directory, signal) },
		}),
		...(modelPaths !== undefined && {
			modelPaths: await readModelPaths(workingDirectory, modelPaths, modelsSeenAt),
		}),
	}
}

/** Verify, put right, verify again. */
function heal(run: CommandRun, options: VerifyModelsOptions, request: ModelsRequest): Promise<void> {
	const { models, manifest, tempDir, limit, fromOrigin } = options
	const { level, deep, scrub, from, containers } = request
	const others = [scrub, from, containers[0], options.workflows, options.modelPaths]
	if (others.some((option) => option !== undefined))
		throw misuse(
			"--heal looks at the share alone",
			"leave out --scrub, --from, --container, --workflows and --model-paths",
		)
	if (models !== undefined && !isAbsolute(models))
		throw misuse(
			"with --heal, --models is a directory of the environment's host",
			"write it with a leading /",
		)
	const words = [
		...["--heal", "--level", level],
		...(deep ? ["--deep"] : []),
		...(models === undefined ? [] : ["--models", models]),
		...(manifest === undefined ? [] : ["--manifest", manifest]),
	]
	const { from: _, ...common } = options
	return runCommand(run, {
		command: "verify-models",
		options: common,
		argv: [...words, ...wordsOfHeal(options)],
		modelsOnly: true,
		confirms: "production",
		files: () => manifestFile(run.surroundings, manifest),
		plan: (context, { files }) =>
			planHeal(context, manifestOf(files["manifest"] ?? "", "the manifest"), {
				...{ level, deep },
				fromOrigin: fromOrigin === true,
				again: `comfyume verify-models ${context.spoken} ${spokenWords([...words, ...wordsOfHeal(options)])}`,
				...(models === undefined ? {} : { directory: context.host.path(models) }),
				...(tempDir === undefined ? {} : { tempDirectory: tempDir }),
				...(limit === undefined ? {} : { limitBytesPerSecond: limit }),
			}),
	})
}

const misuse = (message: string, hint: string) =>
	new OperatorError(message, { exitCode: exitCodes.usage, hint })

const argvOf = ({ level, deep, scrub, from, containers, manifest }: ModelsRequest): string[] => [
	...["--level", level],
	...(deep ? ["--deep"] : []),
	...(scrub === undefined ? [] : ["--scrub", `${scrub.part}/${scrub.parts}`]),
	...(from === undefined ? [] : ["--from", from]),
	...(manifest === undefined ? [] : ["--manifest", manifest]),
	...(containers.length === 0 ? [] : ["--container", containers.join(",")]),
]
