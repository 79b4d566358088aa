// comfyume verify: is this server really back? Every line asks what answers for it, and changes nothing.
import { Command, Option } from "commander"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import type { Plan } from "../lib/plan/step.ts"
import { artifactsOf } from "../lib/steps/artifacts.ts"
import type { StepContext } from "../lib/steps/context.ts"
import { wordsOfManifest } from "../lib/steps/heal-options.ts"
import { manifestIn, modelManifest, namedManifest } from "../lib/steps/models.ts"
import type { RestoreRun } from "../lib/steps/restore-options.ts"
import {
	type CommonOptions,
	commonOptions,
	names,
	runCommand,
	wordsOfNames,
} from "../lib/steps/run-command.ts"
import { openStack } from "../lib/steps/stack.ts"
import { verifySteps } from "../lib/steps/verify.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type VerifyOptions = CommonOptions & {
	only: readonly string[]
	skip: readonly string[]
	manifest?: string
	manifestText?: string
}

const moreHelp = `
A line says what was asked and what was answered. What follows from another
line's fault waits for that one (BLOCKED). What a rehearsal has in place of the
real thing is called stand-in.

With --json one event per line; of "event": "step", "asked" and "because" are
question and answer.`

export function create(run: CommandRun): Command {
	return commonOptions
		.filter(([flags]) => flags !== "--dry-run")
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("verify"))
		.summary("say line by line whether a server is really back")
		.description(
			"Goes through the checklist of this host's role: the machine, the stack, its users, its backups.",
		)
		.addOption(new Option("--only <lines>", "only these lines").argParser(names).default([], "all"))
		.addOption(new Option("--skip <lines>", "all but these lines").argParser(names).default([], "none"))
		.option("--manifest <file>", "which models must be there (else the manifest that comes with comfyume)")
		.addHelpText("after", moreHelp)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 6, 8, 129, 130, 143]))
		.action((options: VerifyOptions) =>
			runCommand(run, {
				command: "verify",
				options,
				argv: [
					...wordsOfNames("--only", options.only),
					...wordsOfNames("--skip", options.skip),
					...wordsOfManifest(options.manifest),
				],
				...{ checksOnly: true, modelsOnly: true },
				files: () => namedManifest(run.surroundings, options.manifest),
				plan: (context, { files, ...facts }) =>
					planVerify(
						context,
						{ ...facts, packageRoot: run.surroundings.packageRoot },
						{
							...options,
							...manifestIn(files),
						},
					),
			}),
		)
}

/** @throws {OperatorError} (2) for a line that this host's list doesn't have */
export async function planVerify(
	context: StepContext,
	{ packageRoot, configuration, secrets, hide }: Omit<RestoreRun, "twin">,
	options: VerifyOptions,
): Promise<Plan> {
	const { environment, hostConfiguration, place } = context
	const { all } = await artifactsOf(context, packageRoot, { only: [], skip: [] })
	const steps = await verifySteps(context, {
		...{ artifacts: all, configuration, secrets },
		manifest: await modelManifest(packageRoot, options),
		open: environment.stack === undefined ? undefined : await openStack(context, hide),
	})
	const known = steps.map(({ id }) => id)
	for (const name of [...options.only, ...options.skip])
		if (!known.includes(name))
			throw new OperatorError(`there is no line ${name} for ${hostConfiguration.name}`, {
				exitCode: exitCodes.usage,
				hint: `choose from: ${known.join(", ")}`,
			})
	const isChosen = (id: string) =>
		(options.only.length === 0 || options.only.includes(id)) && !options.skip.includes(id)
	const chosen = steps.filter(({ id }) => isChosen(id))
	return {
		...{ command: "verify", environment: environment.name, host: hostConfiguration.name, place },
		notes:
			environment.stack === undefined
				? [
						{
							level: "info" as const,
							text: `comfyume.yaml describes no stack of ${environment.name}: no container is asked. One with all defaults is: stack: {}`,
						},
					]
				: [],
		steps: chosen.map((step) => ({ ...step, requires: (step.requires ?? []).filter(isChosen) })),
		next: ({ exitCode }) =>
			exitCode === exitCodes.done ? undefined : `comfyume restore ${context.spoken} --dry-run`,
	}
}
