// comfyume status: is the workshop open? Only looks.
import { Command } from "commander"
import { type CommonOptions, commonOptions, runCommand } from "../lib/steps/run-command.ts"
import { openStack } from "../lib/steps/stack.ts"
import { planStatus } from "../lib/steps/stack-status.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

const moreHelp = `
A line for each container, what is missing first. "outdated" says what of it is older than the
files and images that there are now. Beside the containers: the queue manager's own figures,
and whether nginx answers over TLS at this machine by the workshop's name.

With --json one event per line; "event": "container" is one container.`

export function create(run: CommandRun): Command {
	return commonOptions
		.filter(([flags]) => flags !== "--dry-run")
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("status"))
		.summary("say what runs, what is missing, and whether the door opens")
		.description("Looks at every container of the stack, at the queue and at the door. Changes nothing.")
		.addHelpText("after", moreHelp)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 129, 130, 143]))
		.action((options: CommonOptions) =>
			runCommand(run, {
				command: "status",
				options,
				argv: [],
				checksOnly: true,
				modelsOnly: true,
				plan: async (context, { hide }) => planStatus(context, await openStack(context, hide)),
			}),
		)
}
