// comfyume stop: the stack, or a part of it, ends in order; with --now all of it at once.
import { Command } from "commander"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import { type CommonOptions, commonOptions, runCommand } from "../lib/steps/run-command.ts"
import { planStop, planStopNow } from "../lib/steps/stack-stop.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type StopOptions = CommonOptions & { now?: boolean }

const moreHelp = `
Users end first, side by side, then nginx, the admin's page and the auth gate, then the queue
manager, which has ten seconds to put its jobs down, and Redis last. No container, network or
volume is removed. Stopped containers stay stopped when the machine is started again.

--now is for an emergency: it asks Docker alone, waits for no other run of comfyume, and gives
every container three seconds.`

export function create(run: CommandRun): Command {
	return commonOptions
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("stop"))
		.summary("stop the stack, or some of it")
		.description("Stops the stack's containers, and nobody else's, in an order in which nothing is lost.")
		.argument("[names...]", "users and services, as in user003 or queue-manager; all without")
		.option("--now", "all at once: the emergency stop")
		.option("--yes", "answer the question before production with yes")
		.addHelpText("after", moreHelp)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 8, 129, 130, 143]))
		.action((named: string[], options: StopOptions) => {
			const now = options.now === true
			if (now && named.length > 0)
				throw new OperatorError("--now stops everything", {
					exitCode: exitCodes.usage,
					hint: `leave it out: comfyume stop ${named.join(" ")}`,
				})
			return runCommand(run, {
				command: "stop",
				options,
				argv: [...named, ...(now ? ["--now"] : [])],
				modelsOnly: true,
				confirms: "production",
				withoutLock: now,
				plan: async (context) => (now ? planStopNow(context) : planStop(context, named)),
			})
		})
}
