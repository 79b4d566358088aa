// comfyume start: the stack runs, healthy, as the files and images that there are now have it.
import { Command, InvalidArgumentError, Option } from "commander"
import { type CommonOptions, commonOptions, names, runCommand } from "../lib/steps/run-command.ts"
import { openStack } from "../lib/steps/stack.ts"
import { planStart, revisionOf } from "../lib/steps/stack-start.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type StartOptions = CommonOptions & {
	only: readonly string[]
	gpu?: boolean
	build?: boolean
	wait: number
}

const moreHelp = `
Redis comes first, then the queue manager; then side by side the door (auth gate, admin, nginx)
and the users in batches of five, in which each waits for the one before. A container counts
when its health check passes. One that doesn't come up is named with its last lines, and stops
only those that need it.

What runs already, healthy, from the image and the configuration that there are now, isn't
touched. Where stack.nginx in comfyume.yaml is host, the machine's own nginx takes the ports,
and the container otherwise: of the two exactly one.`

export function create(run: CommandRun): Command {
	return commonOptions
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("start"))
		.summary("start the stack, and wait until all of it is healthy")
		.description("Starts what doesn't run, and starts anew what runs with an older image or configuration.")
		.addOption(
			new Option("--only <names>", "these users and services, and what they need")
				.argParser(names)
				.default([], "all"),
		)
		.option("--gpu", "the GPU worker and its agent too, on a machine with a GPU")
		.option("--build", "build the images first that are not there or not of these files")
		.addOption(
			new Option("--wait <seconds>", "how long a container may take to become healthy")
				.argParser(parseSeconds)
				.default(240),
		)
		.option("--yes", "answer the question before production with yes")
		.addHelpText("after", moreHelp)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 8, 9, 10, 129, 130, 143]))
		.action((options: StartOptions) => {
			const argv = [
				...(options.only.length === 0 ? [] : ["--only", options.only.join(",")]),
				...(options.gpu === true ? ["--gpu"] : []),
				...(options.build === true ? ["--build"] : []),
				...(options.wait === 240 ? [] : ["--wait", String(options.wait)]),
			]
			return runCommand(run, {
				command: "start",
				options,
				argv,
				modelsOnly: true,
				confirms: "production",
				plan: async (context, { hide }) => {
					const gpu = options.gpu === true
					const { packageRoot } = run.surroundings
					return planStart(context, await openStack(context, hide, { gpu }), {
						...{ only: options.only, deadlineMs: options.wait * 1000, argv },
						...(options.build === true
							? { build: { packageRoot, gpu, revision: await revisionOf(context) } }
							: {}),
					})
				},
			})
		})
}

function parseSeconds(text: string): number {
	const seconds = Number(text)
	if (!Number.isInteger(seconds) || seconds < 1 || seconds > 3600)
		throw new InvalidArgumentError("from 1 to 3600 seconds.")
	return seconds
}
