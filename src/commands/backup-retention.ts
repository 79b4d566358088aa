// comfyume backup retention: removes from the share what the catalogue's classes don't keep.
import { Command, Option } from "commander"
import type { Plan } from "../lib/plan/step.ts"
import { artifactsOf } from "../lib/steps/artifacts.ts"
import type { StepContext } from "../lib/steps/context.ts"
import { notifyOption } from "../lib/steps/notify.ts"
import { retentionPlan, retentionReport } from "../lib/steps/retention.ts"
import {
	type CommonOptions,
	commonOptions,
	names,
	runCommand,
	wordsOfNames,
} from "../lib/steps/run-command.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type RetentionOptions = CommonOptions & { only: readonly string[]; skip: readonly string[]; report?: boolean }

export function create(run: CommandRun): Command {
	return commonOptions
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("retention"))
		.summary("remove from the share what the catalogue's classes don't keep")
		.description(
			"Keeps of each artifact the newest snapshot of the last so many days, weeks and months (UTC), as the " +
				"catalogue says, and removes the others from the share. The newest is read first: when it is damaged, " +
				"or R2 has none as new, nothing goes. In R2 nothing is ever deleted.",
		)
		.addOption(
			new Option("--only <artifacts>", "only these, separated by commas").argParser(names).default([], "all"),
		)
		.addOption(new Option("--skip <artifacts>", "all but these").argParser(names).default([], "none"))
		.option("--report", "only say what the same classes wouldn't keep of what R2 holds")
		.option(...notifyOption)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 6, 8, 129, 130, 143]))
		.action((_own: RetentionOptions, command: Command) => {
			const options: RetentionOptions = command.optsWithGlobals()
			const report = options.report === true
			return runCommand(run, {
				command: "backup",
				task: "retention",
				options,
				argv: [
					"retention",
					...wordsOfNames("--only", options.only),
					...wordsOfNames("--skip", options.skip),
					...(report ? ["--report"] : []),
				],
				checksOnly: report,
				plan: (context) => planRetention(context, run.surroundings.packageRoot, options),
			})
		})
}

/** Of all artifacts, also those that are taken by request only; on the share, or with `report` in R2. */
export async function planRetention(
	context: StepContext,
	packageRoot: string,
	options: Pick<RetentionOptions, "only" | "skip" | "report">,
): Promise<Plan> {
	const { all, selected } = await artifactsOf(context, packageRoot, options)
	const artifacts =
		options.only.length > 0 ? selected : all.filter(({ name }) => !options.skip.includes(name))
	return (options.report === true ? retentionReport : retentionPlan)(context, artifacts)
}
