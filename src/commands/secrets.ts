// comfyume secrets: which secrets are here and where from, never what they are; and the keyring filled from the file.
import { Command } from "commander"
import {
	type SecretName,
	type Secrets,
	secretMeanings,
	secretNames,
	secretsNeededBy,
} from "../lib/config/secrets.ts"
import { needed, type Plan, type Step, satisfied } from "../lib/plan/step.ts"
import type { StepContext } from "../lib/steps/context.ts"
import { keyringIsLoaded } from "../lib/steps/machine/secrets-file.ts"
import { type CommonOptions, commonOptions, runCommand } from "../lib/steps/run-command.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type Verb = "check" | "load"

export function create(run: CommandRun): Command {
	const sub = (verb: Verb, description: string) =>
		commonOptions
			.filter(([flags]) => verb !== "check" || flags !== "--dry-run")
			.reduce((command, [flags, about]) => command.option(flags, about), new Command(verb))
			.description(description)
			.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 129, 130, 143]))
			.action((options: CommonOptions) =>
				runCommand(run, {
					...{ command: "secrets", argv: [verb], modelsOnly: true, withoutLock: true },
					// Those of the machine where it is typed: a host elsewhere has its own.
					options: { ...options, here: true },
					checksOnly: verb === "check",
					plan: async (context, { secrets }) => planSecrets(context, verb, secrets),
				}),
			)
	return new Command("secrets")
		.summary("say which secrets are here, and load them into the keyring")
		.description(
			"The secrets of an environment: never shown, only whether they are there and where they come from.",
		)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 129, 130, 143]))
		.addCommand(
			sub("check", "each secret: from where, or what can't be done without it; 3 when one is missing"),
		)
		.addCommand(
			sub("load", "puts them into the kernel's keyring; what comfyume-keyring.service does at each boot"),
		)
}

/** One step per secret, or the keyring's alone. */
function planSecrets(context: StepContext, verb: Verb, secrets: Secrets): Plan {
	const { environment, hostConfiguration, place } = context
	const needs = new Map(secretsNeededBy(environment).map(({ name, forWhat }) => [name, forWhat]))
	return {
		...{ command: `secrets ${verb}`, environment: environment.name, host: hostConfiguration.name, place },
		notes: secrets.notes.map((text) => ({ level: "warning", text })),
		steps:
			verb === "load"
				? [keyringIsLoaded(context, secrets)]
				: secretNames.map((name) => secretStep(name, secrets, needs.get(name))),
	}
}

function secretStep(name: SecretName, secrets: Secrets, forWhat: string | undefined): Step {
	return {
		id: name,
		title: name,
		check: async () => {
			const origin = secrets.origin(name)
			if (origin !== undefined) return satisfied(`from ${origin}`)
			if (forWhat === undefined) return satisfied(`not set; it would be for ${secretMeanings[name]}`)
			return needed(`missing, and needed for ${forWhat}`, `add ${name}=… to secrets.env (chmod 600)`)
		},
		apply: async () => {},
	}
}
