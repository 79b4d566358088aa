// comfyume backup drill: brings the newest snapshots back on trial, and says how old and how fast.
import { Command, InvalidArgumentError, Option } from "commander"
import type { Plan } from "../lib/plan/step.ts"
import { artifactsOf } from "../lib/steps/artifacts.ts"
import type { StepContext } from "../lib/steps/context.ts"
import { drillPlan } from "../lib/steps/drill.ts"
import { drillHistory } from "../lib/steps/drill-history.ts"
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

export type DrillOptions = Omit<CommonOptions, "from"> & {
	only: readonly string[]
	skip: readonly string[]
	from?: readonly ("share" | "r2")[]
	scheduled?: boolean
	history?: boolean
}

const shownDrills = 12

export function create(run: CommandRun): Command {
	return commonOptions
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("drill"))
		.summary("bring the newest snapshots back on trial, from each destination")
		.description(
			"Restores the newest snapshot of each artifact from each destination into a directory of its own, compares " +
				"it with what find and sha256sum say, and says how old it is and how long it took. Nothing live is touched, " +
				"nothing is healed. What was found is noted on the destinations.",
		)
		.addOption(
			new Option("--only <artifacts>", "only these, separated by commas").argParser(names).default([], "all"),
		)
		.addOption(new Option("--skip <artifacts>", "all but these").argParser(names).default([], "none"))
		.addOption(new Option("--from <destinations>", "only from these: share, r2").argParser(places))
		.option(
			"--scheduled",
			"only what the catalogue makes due (once a month); for a timer that runs every day",
		)
		.option(...notifyOption)
		.option("--history", `the last ${shownDrills} drills; nothing is brought back`)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 6, 7, 8, 129, 130, 143]))
		.action((_own: DrillOptions, command: Command) => {
			const options: DrillOptions = command.optsWithGlobals()
			const history = options.history === true
			return runCommand(run, {
				command: "backup",
				...(history ? {} : { task: "drill" }),
				options,
				argv: [
					"drill",
					...wordsOfNames("--only", options.only),
					...wordsOfNames("--skip", options.skip),
					...wordsOfNames("--from", options.from),
					...(options.scheduled === true ? ["--scheduled"] : []),
					...(history ? ["--history"] : []),
				],
				checksOnly: history,
				alsoSends: history ? [] : ["AGE_IDENTITY"],
				plan: (context) => planDrill(context, run.surroundings.packageRoot, options),
			})
		})
}

function places(text: string): ("share" | "r2")[] {
	return names(text).map((name) => {
		if (name === "share" || name === "r2") return name
		throw new InvalidArgumentError(`${name} is no destination: share, r2`)
	})
}

/** One step per artifact and destination; with `history` checks only. */
export async function planDrill(
	context: StepContext,
	packageRoot: string,
	options: Pick<DrillOptions, "only" | "skip" | "scheduled" | "history">,
): Promise<Plan> {
	const { selected } = await artifactsOf(context, packageRoot, options)
	if (options.history === true) return drillHistory(context, selected, shownDrills)
	return drillPlan(context, selected, { due: options.scheduled === true })
}
