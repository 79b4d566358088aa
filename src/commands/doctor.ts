// comfyume doctor: looks whether what comfyume depends on is as it should be. Checks only, each failure with its fix.
import { Command } from "commander"
import type { Plan } from "../lib/plan/step.ts"
import { artifactsOf } from "../lib/steps/artifacts.ts"
import type { StepContext } from "../lib/steps/context.ts"
import { storageSteps } from "../lib/steps/doctor-storage.ts"
import { type CommonOptions, commonOptions, runCommand } from "../lib/steps/run-command.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type DoctorOptions = CommonOptions & { storage?: boolean; probeDelete?: boolean }

export function create(run: CommandRun): Command {
	return commonOptions
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("doctor"))
		.summary("look whether buckets and share are as they should be")
		.description(
			"Asks each bucket whether it answers, takes the credentials and is locked, and the share whether it is " +
				"mounted, writable and has room. Nothing is written, but with --probe-delete.",
		)
		.option("--storage", "the places of backups; for now this is all there is, and so the default")
		.option("--probe-delete", "store a small object in each bucket, and try whether it can be deleted")
		.option("--yes", "yes to the question before --probe-delete")
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 6, 7, 8, 129, 130, 143]))
		.action((options: DoctorOptions) => {
			const probeDelete = options.probeDelete === true
			return runCommand(run, {
				command: "doctor",
				options,
				argv: ["--storage", ...(probeDelete ? ["--probe-delete"] : [])],
				checksOnly: !probeDelete,
				// Each place is opened by its own check, which says what is wrong with it.
				modelsOnly: true,
				...(probeDelete
					? { confirms: { question: "This stores a small object in each bucket, and tries to delete it." } }
					: {}),
				plan: (context) => planDoctor(context, run.surroundings.packageRoot, { probeDelete }),
			})
		})
}

/** The sections that there are. */
export async function planDoctor(
	context: StepContext,
	packageRoot: string,
	options: { probeDelete: boolean },
): Promise<Plan> {
	const { environment, hostConfiguration, place } = context
	const { all } = await artifactsOf(context, packageRoot, { only: [], skip: [] })
	return {
		command: "doctor",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		steps: storageSteps(context, all, options),
	}
}
