// comfyume env: is an env file right, and what should it be?
import { randomBytes } from "node:crypto"
import { hostname } from "node:os"
import { join, resolve } from "node:path"
import { Command } from "commander"
import { chooseEnvironment, loadConfiguration, readHostOwnEnvironment } from "../lib/config/configuration.ts"
import { stackOf } from "../lib/config/environment.ts"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import { localHost } from "../lib/host/local.ts"
import { readCredentials, rosterOf } from "../lib/stack/credentials.ts"
import { describeStack, files, secretNames } from "../lib/stack/description.ts"
import { type EnvFinding, lintEnvFile } from "../lib/stack/env-lint.ts"
import { environmentFile, renderEnvironment } from "../lib/stack/env-render.ts"
import { envVariables } from "../lib/stack/env-variables.ts"
import { refuseTrackedPath } from "../lib/stack/outside-git.ts"
import { changeRoster } from "../lib/stack/roster.ts"
import { findChanges, readIfThere, writeChanges } from "../lib/stack/write.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type RenderOptions = {
	config?: string
	env?: string
	directory?: string
	rotate?: string[]
	dryRun?: boolean
}

const endings = exitStatusHelp([0, 2, 3, 7, 8])

export function create(run: CommandRun): Command {
	const command = new Command("env")
		.summary("check and write the stack's env file")
		.addHelpText("after", endings)
	command.description("The variables that the platform's containers are started with.")
	command
		.command("lint")
		.argument("<file>", "an env file")
		.description(
			"says everything that is wrong with an env file: renamed, missing, unknown, contradictory, $ …",
		)
		.option("--json", "as one JSON object")
		.addHelpText("after", exitStatusHelp([0, 2, 3]))
		.action((file: string, options: { json?: boolean }) => lint(run, file, options))
	command
		.command("render")
		.description("writes the env file from the configuration; secrets are made once and then kept")
		.option(
			"--config <file>",
			"the configuration (else $COMFYUME_CONFIG, comfyume.yaml upwards, /etc/comfyume)",
		)
		.option("--env <name>", "the environment")
		.option("--directory <path>", "where to write (else the configuration's stack.directory)")
		.option("--rotate <name...>", `make these secrets anew: ${secretNames.join(", ")}`)
		.option("--dry-run", "only say which variables would change")
		.addHelpText("after", exitStatusHelp([0, 2, 7, 8]))
		.action((options: RenderOptions) => render(run, options))
	command
		.command("explain")
		.argument("[name]", "one variable")
		.description("what the variables mean")
		.addHelpText("after", exitStatusHelp([0, 2]))
		.action((name?: string) => explain(run, name))
	return command
}

async function lint(
	{ surroundings, finish }: CommandRun,
	file: string,
	{ json = false }: { json?: boolean },
): Promise<void> {
	const { terminal, workingDirectory } = surroundings
	const path = resolve(workingDirectory, file)
	const text = await readIfThere(path)
	if (text === "")
		throw new OperatorError(`${path} is missing or empty`, {
			exitCode: exitCodes.usage,
			hint: "comfyume env render --env NAME",
		})
	const findings = lintEnvFile(text)
	if (json) terminal.out(`${JSON.stringify({ version: 1, file: path, findings })}\n`)
	else for (const finding of findings) terminal.out(describe(path, finding))
	if (!json && findings.length === 0) terminal.out(`${path} is right\n`)
	if (findings.length === 0) return
	terminal.talk(`${findings.length === 1 ? "1 finding" : `${findings.length} findings`}\n`)
	finish(exitCodes.incomplete)
}

const describe = (path: string, { kind, line, message, fix }: EnvFinding) =>
	`${path}${line === 0 ? "" : `:${line}`} ${kind}: ${message}\n  fix: ${fix}\n`

async function render({ surroundings }: CommandRun, options: RenderOptions): Promise<void> {
	const { terminal, variables, workingDirectory, signal } = surroundings
	const configuration = loadConfiguration({ ...surroundings, path: options.config })
	const chosen = chooseEnvironment(configuration, {
		option: options.env,
		variables,
		hostOwnEnvironment: readHostOwnEnvironment(),
	})
	const stackConfiguration = stackOf(chosen)
	const directory = resolve(workingDirectory, options.directory ?? stackConfiguration.directory)
	const environment = { ...chosen, stack: { ...stackConfiguration, directory } }
	const path = join(directory, files.environment)
	await refuseTrackedPath(localHost({ name: hostname(), environment: variables, signal }), path)

	const { rotate = [] } = options
	const unknown = rotate.find((name) => !secretNames.some((known) => known === name))
	if (unknown !== undefined)
		throw new OperatorError(`${unknown} is not a secret that is made here`, {
			exitCode: exitCodes.usage,
			hint: `choose from: ${secretNames.join(", ")}`,
		})
	// nginx holds this one too, in a file of its own.
	if (rotate.includes("PROXY_SECRET"))
		terminal.talk("note: run comfyume generate-users afterwards, so that nginx has the new PROXY_SECRET\n")
	const credentialsFile = join(directory, files.credentials)
	const roster = rosterOf(
		readCredentials(await readIfThere(credentialsFile), {
			where: credentialsFile,
			adminName: stackConfiguration.adminName,
		}),
	)
	const stack = describeStack(
		environment,
		roster.length === 0 ? changeRoster([], { count: stackConfiguration.users }) : roster,
	)
	const existing = await readIfThere(path)
	const rendered = renderEnvironment(stack, {
		existing,
		rotate,
		makeSecret: () => randomBytes(24).toString("base64url"),
	})
	const file = {
		path: files.environment,
		text: environmentFile(stack, rendered),
		mode: 0o600,
		secret: true,
	}
	const changes = await findChanges(directory, [file])
	if (options.dryRun !== true) await writeChanges(directory, changes, surroundings.randomId())
	for (const name of rendered.made) terminal.out(`new secret: ${name}\n`)
	const verb =
		changes.length === 0 ? "nothing to change in" : options.dryRun === true ? "would write" : "wrote"
	terminal.talk(`${verb} ${path}\n`)
}

function explain({ surroundings }: CommandRun, name: string | undefined): void {
	const { terminal } = surroundings
	const named = name === undefined ? [...envVariables] : [...envVariables].filter(([one]) => one === name)
	if (named.length === 0)
		throw new OperatorError(`${name} is known to nobody`, {
			exitCode: exitCodes.usage,
			hint: "comfyume env explain",
		})
	for (const [one, { group, meaning, secret }] of named) {
		// What there is for each user is said once.
		if (name === undefined && /_USER\d{3}$/.test(one) && !one.endsWith("_USER001")) continue
		terminal.out(`${one}  [${group}${secret === true ? ", secret" : ""}] ${meaning}\n`)
	}
}
