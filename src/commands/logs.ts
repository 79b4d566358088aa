// comfyume logs: what the containers say, from here or from elsewhere, without their secrets.
import { Command, InvalidArgumentError, Option } from "commander"
import { type CommonOptions, commonOptions, runCommand } from "../lib/steps/run-command.ts"
import { openStack } from "../lib/steps/stack.ts"
import { planLogs } from "../lib/steps/stack-logs.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type LogsOptions = CommonOptions & { follow?: boolean; since?: string; tail?: number }

export function create(run: CommandRun): Command {
	return commonOptions
		.filter(([flags]) => flags !== "--dry-run")
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("logs"))
		.summary("show what containers say")
		.description(
			"Shows the logs of these users and services in the order of their lines, each line with who said it. " +
				"The stack's secrets are not shown.",
		)
		.argument("[names...]", "users and services, as in user003 or queue-manager; all without")
		.option("-f, --follow", "go on as more is said, until Ctrl-C")
		.addOption(
			new Option("--since <time>", "from then on, as in 10m or 2026-11-20T06:30:00Z").argParser(parseSince),
		)
		.addOption(
			new Option("--tail <lines>", "the last lines of each (all, when one is named)").argParser(parseLines),
		)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 129, 130, 143]))
		.action((named: string[], options: LogsOptions) => {
			const {
				follow = false,
				since,
				tail = named.length === 1 || since !== undefined ? undefined : 20,
			} = options
			return runCommand(run, {
				command: "logs",
				// The lines are what was asked for; what frames a run would stand between them.
				options: { ...options, quiet: true },
				argv: [
					...named,
					...(follow ? ["--follow"] : []),
					...(since === undefined ? [] : ["--since", since]),
					...(tail === undefined ? [] : ["--tail", String(tail)]),
				],
				checksOnly: true,
				modelsOnly: true,
				plan: async (context, { hide }) => {
					await openStack(context, hide)
					return planLogs(context, {
						...{ named, follow },
						...(since === undefined ? {} : { since }),
						...(tail === undefined ? {} : { tail }),
					})
				},
			})
		})
}

function parseSince(text: string): string {
	if (/^(\d+[smhd])+$/.test(text) || !Number.isNaN(Date.parse(text)))
		// Docker knows no days.
		return text.replace(/(\d+)d/g, (_, days: string) => `${Number(days) * 24}h`)
	throw new InvalidArgumentError("as in 90s, 10m, 2h, 1d or 2026-11-20T06:30:00Z.")
}

function parseLines(text: string): number {
	if (!/^\d{1,7}$/.test(text)) throw new InvalidArgumentError("a number of lines.")
	return Number(text)
}
