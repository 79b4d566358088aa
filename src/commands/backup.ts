// comfyume backup: everything in the catalogue that lies on the server stands, proven, on the share and in R2.
import { Command, Option } from "commander"
import { exitCodes } from "../lib/errors.ts"
import type { Plan } from "../lib/plan/step.ts"
import { artifactsOf } from "../lib/steps/artifacts.ts"
import { backupArchive } from "../lib/steps/backup-archive.ts"
import { backupCheckout } from "../lib/steps/checkout.ts"
import type { StepContext } from "../lib/steps/context.ts"
import { type CommonOptions, commonOptions, names, runCommand } from "../lib/steps/run-command.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type BackupOptions = CommonOptions & { only: readonly string[]; skip: readonly string[] }

export function create(run: CommandRun): Command {
	return commonOptions
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("backup"))
		.summary("back up the server, and prove that the backups can be restored")
		.description(
			"Packs what the catalogue lists, reads every archive back, and stores it on the share and in R2. " +
				"What has not changed is not stored again. One artifact's failure doesn't stop the others.",
		)
		.addOption(
			new Option("--only <artifacts>", "only these, separated by commas").argParser(names).default([], "all"),
		)
		.addOption(new Option("--skip <artifacts>", "all but these").argParser(names).default([], "none"))
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 6, 7, 8, 129, 130, 143]))
		.action((options: BackupOptions) =>
			runCommand(run, {
				command: "backup",
				options,
				argv: argvOf(options),
				plan: (context) => planBackup(context, run.surroundings.packageRoot, options),
			}),
		)
}

const listOption = (flag: string, values: readonly string[]) =>
	values.length === 0 ? [] : [flag, values.join(",")]

const argvOf = ({ only, skip }: Pick<BackupOptions, "only" | "skip">) => [
	...listOption("--only", only),
	...listOption("--skip", skip),
]

/** One step per artifact, independent of each other. */
export async function planBackup(
	context: StepContext,
	packageRoot: string,
	options: Pick<BackupOptions, "only" | "skip">,
): Promise<Plan> {
	const { environment, hostConfiguration, place, sources, summary } = context
	const { selected: artifacts } = await artifactsOf(context, packageRoot, options)
	const destinations = sources.filter(({ name }) => name !== "local")
	const again = ["comfyume backup", context.spoken, ...argvOf(options)].join(" ")
	return {
		command: "backup",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		steps: artifacts.map((artifact) =>
			artifact.kind === "git"
				? backupCheckout(context, artifact, destinations)
				: backupArchive(context, artifact, destinations),
		),
		summary: () =>
			artifacts.map(
				({ name }) =>
					summary.get(name) ?? {
						artifact: name,
						source: "nowhere",
						snapshot: "none",
						verified: "not backed up; the reason stands above",
						ok: false,
					},
			),
		next: ({ exitCode, dryRun }) => {
			if (dryRun) return again
			return exitCode === exitCodes.done ? `comfyume restore ${context.spoken} --dry-run` : again
		},
	}
}
