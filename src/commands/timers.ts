// comfyume timers: backups, their checks and their rotation come by themselves; set, taken away, and looked at.
import { Command, Option } from "commander"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import type { Plan, Step } from "../lib/plan/step.ts"
import type { StepContext } from "../lib/steps/context.ts"
import {
	type CommonOptions,
	commonOptions,
	names,
	runCommand,
	wordsOfNames,
} from "../lib/steps/run-command.ts"
import { backupTimers, certificatesTimer, type Timer } from "../lib/steps/timer-files.ts"
import { timerState } from "../lib/steps/timer-states.ts"
import { runsFindAll, timerFilesThere, timerGone, timerStep } from "../lib/steps/timers.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type TimersOptions = CommonOptions & { only: readonly string[] }
type Verb = "install" | "remove" | "show"

const everyTimer = [...backupTimers, certificatesTimer]

export function create(run: CommandRun): Command {
	const sub = (verb: Verb, description: string) =>
		commonOptions
			.filter(([flags]) => verb !== "show" || flags !== "--dry-run")
			.reduce((command, [flags, about]) => command.option(flags, about), new Command(verb))
			.description(description)
			.addOption(
				new Option("--only <timers>", "only these, separated by commas").argParser(names).default([], "all"),
			)
			.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 8, 129, 130, 143]))
			.action((options: TimersOptions) => planned(run, verb, options))
	return new Command("timers")
		.summary("have backups come by themselves, and see whether they did")
		.description(
			"The timers of this host: backup (hourly), status, retention and drill. systemd starts them, or cron " +
				"where systemd doesn't run. The certificate's timer is set by: comfyume certificates issue.",
		)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 8, 129, 130, 143]))
		.addCommand(sub("install", "sets them; running it again puts right what was changed"))
		.addCommand(
			sub(
				"remove",
				"takes away what install wrote, and nothing else; the certificate's only when it is named",
			).option("--yes", "answer the question before production with yes"),
		)
		.addCommand(
			sub("show", "each timer: there, on, its last run and that one's end, its next; 3 when not right"),
		)
}

function planned(run: CommandRun, verb: Verb, options: TimersOptions) {
	return runCommand(run, {
		command: "timers",
		options,
		argv: [verb, ...wordsOfNames("--only", options.only)],
		modelsOnly: true,
		checksOnly: verb === "show",
		// It touches nothing that a run works on; and a run that hangs must not keep its timer from being removed.
		withoutLock: true,
		...(verb === "remove" ? { confirms: "production" } : {}),
		plan: (context) => planTimers(context, verb, options),
	})
}

/** @throws {OperatorError} (2) for a timer that there isn't */
export async function planTimers(
	context: StepContext,
	verb: Verb,
	{ only }: Pick<TimersOptions, "only">,
): Promise<Plan> {
	return {
		command: `timers ${verb}`,
		environment: context.environment.name,
		host: context.hostConfiguration.name,
		place: context.place,
		steps: await stepsOf[verb](context, only),
		next: ({ exitCode }) =>
			verb === "install" && exitCode === exitCodes.done
				? `comfyume timers show ${context.spoken}`
				: undefined,
	}
}

const stepsOf: Readonly<
	Record<Verb, (context: StepContext, only: readonly string[]) => Promise<Step[]> | Step[]>
> = {
	install: (context, only) => [
		runsFindAll(context),
		...chosen(only, backupTimers).map((timer) => timerStep(context, timer, ["runs"])),
	],
	remove: (context, only) => chosen(only, everyTimer, backupTimers).map((timer) => timerGone(context, timer)),
	show: async (context, only) => {
		const theirs = (await timerFilesThere(context, certificatesTimer)).length > 0
		const timers = chosen(only, everyTimer, theirs ? everyTimer : backupTimers)
		return [runsFindAll(context), ...timers.map((timer) => timerState(context, timer))]
	},
}

/** Those that were named, or without names the usual ones. */
function chosen(only: readonly string[], from: readonly Timer[], usual = from): readonly Timer[] {
	const known = from.map(({ name }) => name)
	const unknown = only.find((name) => !known.includes(name))
	if (unknown === undefined) return only.length === 0 ? usual : from.filter(({ name }) => only.includes(name))
	throw new OperatorError(`there is no timer ${unknown} to do this with`, {
		exitCode: exitCodes.usage,
		hint: `--only ${known.join(",")}`,
	})
}
