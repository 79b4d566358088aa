// comfyume backup status: which backups are missing or too old, asked of the places that hold them.
import { Command, Option } from "commander"
import type { Plan } from "../lib/plan/step.ts"
import { artifactsOf } from "../lib/steps/artifacts.ts"
import { statusPlan } from "../lib/steps/backup-status.ts"
import type { StepContext } from "../lib/steps/context.ts"
import { notifyOption } from "../lib/steps/notify.ts"
import {
	type CommonOptions,
	commonOptions,
	names,
	runCommand,
	wordsOfNames,
} from "../lib/steps/run-command.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type StatusOptions = CommonOptions & { only: readonly string[]; skip: readonly string[] }

export function create(run: CommandRun): Command {
	return commonOptions
		.filter(([flags]) => flags !== "--dry-run")
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("status"))
		.summary("say which backups are missing or too old")
		.description(
			"Asks the share and R2 what they hold, and holds the newest finished snapshot of each artifact against " +
				"its schedule in the catalogue. What is missing comes first. Nothing is written and no archive is read.",
		)
		.addOption(
			new Option("--only <artifacts>", "only these, separated by commas").argParser(names).default([], "all"),
		)
		.addOption(new Option("--skip <artifacts>", "all but these").argParser(names).default([], "none"))
		.option(...notifyOption)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 6, 8, 129, 130, 143]))
		.action((_own: StatusOptions, command: Command) => {
			// What `backup` knows too, it has taken already.
			const options: StatusOptions = command.optsWithGlobals()
			return runCommand(run, {
				command: "backup",
				task: "status",
				options: withoutDryRun(options),
				argv: ["status", ...wordsOfNames("--only", options.only), ...wordsOfNames("--skip", options.skip)],
				checksOnly: true,
				plan: (context) => planStatus(context, run.surroundings.packageRoot, options),
			})
		})
}

function withoutDryRun({ dryRun: _, ...options }: StatusOptions): StatusOptions {
	return options
}

/** Checks only: what each destination holds, against the catalogue's schedules. */
export async function planStatus(
	context: StepContext,
	packageRoot: string,
	options: Pick<StatusOptions, "only" | "skip">,
): Promise<Plan> {
	return statusPlan(context, (await artifactsOf(context, packageRoot, options)).selected)
}
