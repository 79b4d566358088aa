// comfyume verify-models: which models are there, whole, and what they should be. It only reads.
import { Command, Option } from "commander"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import { manifestOf, readManifestText } from "../lib/models/read-manifest.ts"
import { parseScrub, type Scrub } from "../lib/models/scrub.ts"
import { type Level, levels } from "../lib/models/verify.ts"
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
}

const moreHelp = `
Without --models it looks where the environment has its models: on the share and in R2, held
against each other, and inside of the frontends that run (docker).

--workflows holds workflows against the manifest, with --models also against what is right there.

Levels, each with all before it:
  exists     it is there and not empty; nothing is read
  size       it has the manifest's size
  structure  it is a model and no pointer, page or unfinished file; a safetensors file's
             tensors fill it to its last byte. A few kilobytes are read of each
  digest     it has the manifest's sha256. What has not changed since it was read is not
             read again. Of R2 only what was noted with the objects; --deep --from r2
             streams every byte through the host

With --json one event per line; "event": "model" is one model in one place: path, status,
tier, because.`

export function create(run: CommandRun): Command {
	return commonOptions
		.filter(([flags]) => flags !== "--dry-run")
		.reduce(
			(command, [flags, description]) => command.option(flags, description),
			new Command("verify-models"),
		)
		.summary("say which models are there, whole, and what they should be")
		.description(
			"Judges an environment's models, or those below a directory, against a manifest. It changes nothing.",
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
		.addHelpText("after", moreHelp)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 6, 8, 129, 130, 143]))
		.action((options: VerifyModelsOptions) => verify(run, options))
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
	}
	const { surroundings } = run
	if (models !== undefined || options.workflows !== undefined || options.modelPaths !== undefined) {
		if (options.env !== undefined || from !== undefined || containers.length > 0)
			throw misuse(
				"--models, --workflows and --model-paths look at this machine alone",
				"leave them out, or --env, --from and --container",
			)
		return verifyDirectory(run, { ...options, request })
	}
	const { from: _, ...common } = options
	return runCommand(run, {
		command: "verify-models",
		options: { ...common, ...(from !== undefined && from !== "both" && { from: [from] }) },
		argv: argvOf(request),
		checksOnly: true,
		modelsOnly: true,
		// A host elsewhere doesn't have the operator's file.
		files: async () => {
			const { file, text } = await readManifestText(surroundings, options.manifest)
			manifestOf(text, file, options.manifest)
			return { manifest: text }
		},
		plan: (context, { files }) =>
			verifyModelsPlan(context, manifestOf(files["manifest"] ?? "", "the manifest"), request),
	})
}

const misuse = (message: string, hint: string) =>
	new OperatorError(message, { exitCode: exitCodes.usage, hint })

const argvOf = ({ level, deep, scrub, from, containers }: ModelsRequest): string[] => [
	...["--level", level],
	...(deep ? ["--deep"] : []),
	...(scrub === undefined ? [] : ["--scrub", `${scrub.part}/${scrub.parts}`]),
	...(from === undefined ? [] : ["--from", from]),
	...(containers.length === 0 ? [] : ["--container", containers.join(",")]),
]
