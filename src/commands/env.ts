// comfyume env: is an env file right, and what should it be?
import { resolve } from "node:path"
import { Command } from "commander"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import { secretNames } from "../lib/stack/description.ts"
import { type EnvFinding, lintEnvFile } from "../lib/stack/env-lint.ts"
import { envVariables } from "../lib/stack/env-variables.ts"
import { readIfThere } from "../lib/stack/write.ts"
import { spokenWords } from "../lib/steps/heal-options.ts"
import { type CommonOptions, commonOptions, runCommand } from "../lib/steps/run-command.ts"
import { planEnvironmentFile } from "../lib/steps/stack-files.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type RenderOptions = CommonOptions & {
	directory?: string
	rotate?: string[]
}

const endings = exitStatusHelp([0, 1, 2, 3, 4, 5, 6, 7, 8, 129, 130, 143])

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
	commonOptions
		.reduce((command, [flags, description]) => command.option(flags, description), command.command("render"))
		.description("writes the env file from the configuration; secrets are made once and then kept")
		.option("--directory <path>", "write here, on this machine (else stack.directory on the host)")
		.option("--rotate <name...>", `make these secrets anew: ${secretNames.join(", ")}`)
		.option("--yes", "answer the question before production with yes")
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 6, 7, 8, 129, 130, 143]))
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

function render(run: CommandRun, options: RenderOptions): Promise<void> {
	const { rotate = [] } = options
	const directory =
		options.directory === undefined
			? undefined
			: resolve(run.surroundings.workingDirectory, options.directory)
	const argv = rotate.length === 0 ? [] : ["--rotate", ...rotate]
	return runCommand(run, {
		command: "env",
		options: { ...options, ...(directory === undefined ? {} : { here: true }) },
		argv: ["render", ...argv],
		modelsOnly: true,
		confirms: "production",
		// What is written beside the stack of a host is nobody else's business.
		withoutLock: directory !== undefined,
		plan: (context) =>
			planEnvironmentFile(context, {
				rotate,
				...(directory === undefined ? {} : { directory }),
				again: `comfyume env render ${context.spoken} ${spokenWords(argv)}`.trimEnd(),
			}),
	})
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
