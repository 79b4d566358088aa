// comfyume restart: containers are made anew, so that a changed env file or image takes effect.
import { Command } from "commander"
import { type CommonOptions, commonOptions, runCommand } from "../lib/steps/run-command.ts"
import { openStack } from "../lib/steps/stack.ts"
import { planRestart } from "../lib/steps/stack-start.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

const deadlineMs = 240_000

export function create(run: CommandRun): Command {
	return commonOptions
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("restart"))
		.summary("make containers anew, and wait until they are healthy")
		.description(
			"Makes the containers of these users and services anew, from the image and the configuration that " +
				"there are now. Docker's own restart keeps the old ones.",
		)
		.argument("<names...>", "users and services, as in user003 or queue-manager")
		.option("--yes", "answer the question before production with yes")
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 8, 129, 130, 143]))
		.action((named: string[], options: CommonOptions) =>
			runCommand(run, {
				command: "restart",
				options,
				argv: named,
				modelsOnly: true,
				confirms: "production",
				// A worker that was named is to be found.
				plan: async (context, { hide }) =>
					planRestart(context, await openStack(context, hide, { gpu: true }), { named, deadlineMs }),
			}),
		)
}
