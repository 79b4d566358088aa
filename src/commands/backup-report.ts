// comfyume backup report: what stands where, how old, how much, as a Markdown text that can be sent on.
import { hostname } from "node:os"
import { resolve } from "node:path"
import { Command, Option } from "commander"
import { localHost } from "../lib/host/local.ts"
import type { Plan } from "../lib/plan/step.ts"
import { artifactsOf } from "../lib/steps/artifacts.ts"
import { reportPlan } from "../lib/steps/backup-report.ts"
import type { StepContext } from "../lib/steps/context.ts"
import {
	type CommonOptions,
	commonOptions,
	names,
	runCommand,
	wordsOfNames,
} from "../lib/steps/run-command.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type ReportOptions = CommonOptions & { only: readonly string[]; skip: readonly string[]; output?: string }

export function create(run: CommandRun): Command {
	const { surroundings } = run
	return commonOptions
		.filter(([flags]) => flags !== "--dry-run")
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("report"))
		.summary("write a report on the backups, in Markdown")
		.description(
			"Says what is missing, and of each artifact how old and how large its newest snapshot is in each destination, " +
				"how many are kept, how it grows, and how the last drills went. Markdown on stdout. When something is missing " +
				"the report is written all the same, and the exit status is 3.",
		)
		.addOption(
			new Option("--only <artifacts>", "only these, separated by commas").argParser(names).default([], "all"),
		)
		.addOption(new Option("--skip <artifacts>", "all but these").argParser(names).default([], "none"))
		.option("--output <file>", "write it to a file of this machine instead")
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 6, 7, 8, 129, 130, 143]))
		.action((_own: ReportOptions, command: Command) => {
			const { dryRun: _, output, ...options }: ReportOptions = command.optsWithGlobals()
			return runCommand(run, {
				command: "backup",
				options,
				argv: ["report", ...wordsOfNames("--only", options.only), ...wordsOfNames("--skip", options.skip)],
				checksOnly: true,
				...(output === undefined ? {} : { onDocument: (text: string) => writeFile(output, text) }),
				plan: (context) => planReport(context, surroundings.packageRoot, options),
			})
		})

	/** As a whole or not at all: what stood there stays until the new one is written. */
	async function writeFile(output: string, text: string): Promise<void> {
		const { variables, signal, workingDirectory } = surroundings
		await using machine = localHost({ name: hostname(), environment: variables, signal })
		await machine.write(resolve(workingDirectory, output), text, { mode: 0o644 })
	}
}

/** Checks only: one step, whose document is the report. */
export async function planReport(
	context: StepContext,
	packageRoot: string,
	options: Pick<ReportOptions, "only" | "skip">,
): Promise<Plan> {
	return reportPlan(context, (await artifactsOf(context, packageRoot, options)).selected)
}
