// comfyume config: is the configuration right, and what does it come to?
import { hostname } from "node:os"
import { Command } from "commander"
import { stringify } from "yaml"
import {
	chooseEnvironment,
	loadConfiguration,
	problemsOf,
	readConfigurationFile,
} from "../lib/config/configuration.ts"
import type { Configuration, Environment } from "../lib/config/environment.ts"
import { jsonSchemaText } from "../lib/config/schema.ts"
import {
	loadSecrets,
	type Secrets,
	secretMeanings,
	secretNames,
	secretsNeededBy,
} from "../lib/config/secrets.ts"
import { exitCodes } from "../lib/errors.ts"
import { keyringReader } from "../lib/host/keyring.ts"
import { localHost } from "../lib/host/local.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun, Surroundings } from "../lib/ui/surroundings.ts"

type Options = { config?: string; env?: string; secrets?: string; json?: boolean }

const endings = exitStatusHelp([exitCodes.done, exitCodes.usage])

export function create(run: CommandRun): Command {
	const command = new Command("config").summary("check and show the configuration")
	command.description("Checks comfyume.yaml, shows what it comes to, and prints its schema.")
	command.addHelpText("after", endings)

	shared(
		command.command("check"),
		"every problem at once, each with its path, its line and what to write instead",
	).action((options: Options) => check(run, options))
	shared(command.command("show"), "the effective configuration: defaults filled in, secrets hidden")
		.option("--json", "as JSON instead of YAML")
		.action((options: Options) => show(run, options))
	command
		.command("schema")
		.description("the JSON Schema of comfyume.yaml, for editors")
		.action(() => run.surroundings.terminal.out(jsonSchemaText()))
		.addHelpText("after", exitStatusHelp([exitCodes.done]))
	return command
}

function shared(command: Command, description: string): Command {
	return command
		.description(description)
		.option(
			"--config <file>",
			"the configuration (else $COMFYUME_CONFIG, comfyume.yaml upwards, /etc/comfyume)",
		)
		.option("--env <name>", "only this environment")
		.option(
			"--secrets <file>",
			"the file of secrets (else $COMFYUME_SECRETS, secrets.env beside the configuration)",
		)
		.addHelpText("after", endings)
}

async function check({ surroundings, finish }: CommandRun, options: Options): Promise<void> {
	const { terminal } = surroundings
	const { path, text } = readConfigurationFile({ ...surroundings, path: options.config })
	// One mistake anywhere makes the whole file unusable, so `--env` hides none.
	const problems = problemsOf(text, path)
	if (problems.length > 0) {
		for (const { line, column, path: key, message, fix } of problems)
			terminal.out(`${path}:${line}:${column}${key === "" ? "" : ` ${key}`}\n  ${message}\n  fix: ${fix}\n`)
		terminal.talk(`${problems.length === 1 ? "1 problem" : `${problems.length} problems`}\n`)
		return finish(exitCodes.usage)
	}
	const { environments, secrets } = await gather(surroundings, options)
	const hosts = environments.flatMap((environment) => environment.hosts)
	for (const note of secrets.notes) terminal.talk(`note: ${note}\n`)
	for (const environment of environments) {
		for (const { name, forWhat } of secretsNeededBy(environment)) {
			if (secrets.find(name) === undefined)
				terminal.talk(`note: ${environment.name} needs ${name} for ${forWhat}; it is not set here\n`)
		}
	}
	terminal.out(
		`configuration is right: ${count(environments.length, "environment")}, ${count(hosts.length, "host")}\n`,
	)
}

async function show({ surroundings }: CommandRun, options: Options): Promise<void> {
	const { path, environments, secrets } = await gather(surroundings, options)
	const shown = {
		configuration: path,
		environments: Object.fromEntries(environments.map(({ name, ...rest }) => [name, rest])),
		secrets: Object.fromEntries(
			secretNames.map((name) => [
				name,
				{ for: secretMeanings[name], found: secrets.origin(name) ?? "missing" },
			]),
		),
	}
	// Version 1.1, because readers that still take it so would read `yes` and `22:22` as something else.
	const text =
		options.json === true
			? `${JSON.stringify(shown, null, "\t")}\n`
			: stringify(shown, { version: "1.1", lineWidth: 0 })
	surroundings.terminal.out(text)
}

async function gather(
	surroundings: Surroundings,
	options: Options,
): Promise<{ path: string; environments: readonly Environment[]; secrets: Secrets }> {
	const configuration = loadConfiguration({ ...surroundings, path: options.config })
	const { variables, signal } = surroundings
	const secrets = await loadSecrets({
		...surroundings,
		file: options.secrets,
		configurationPath: configuration.path,
		readKeyring: keyringReader(localHost({ name: hostname(), environment: variables, signal })),
	})
	return { path: configuration.path, environments: wanted(configuration, options.env), secrets }
}

const wanted = (configuration: Configuration, option: string | undefined): readonly Environment[] =>
	option === undefined
		? Object.values(configuration.environments)
		: [chooseEnvironment(configuration, { option, variables: {} })]

const count = (number: number, what: string) => `${number} ${what}${number === 1 ? "" : "s"}`
