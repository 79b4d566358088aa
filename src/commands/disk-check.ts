// comfyume disk-check: how full the host's file systems are; by itself, or before other work.
import { Command, Option } from "commander"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import { type DiskLimits, diskPlan, type RequiredRoom, requirePlan } from "../lib/steps/disk-check.ts"
import { parseBytes } from "../lib/steps/heal-options.ts"
import { type CommonOptions, commonOptions, runCommand } from "../lib/steps/run-command.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type DiskCheckOptions = CommonOptions & {
	warn: number
	critical: number
	block?: boolean
	require?: readonly string[]
}

const moreHelp = `
Looked at are /, the share, the scratch disk, comfyume's work directory, Docker's data, /tmp and
the outputs, each file system once. Bytes and inodes count alike.

  comfyume disk-check --block && make-something-large
  comfyume disk-check --require 20GiB /mnt/scratch --require 5GiB /var/lib/docker`

export function create(run: CommandRun): Command {
	return commonOptions
		.filter(([flags]) => flags !== "--dry-run")
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("disk-check"))
		.summary("say how full the file systems are, and whether there is room")
		.description("Measures the host's file systems. Changes nothing. 3 when one is critical.")
		.addOption(
			new Option("--warn <percent>", "say it where more than this is used")
				.argParser(percent("--warn"))
				.default(70),
		)
		.addOption(
			new Option("--critical <percent>", "end with 3 where more than this is used")
				.argParser(percent("--critical"))
				.default(90),
		)
		.option("--block", "end with 7 where one is critical")
		.option("--require <size and paths...>", "look only whether these have so much free; 7 when not")
		.addHelpText("after", moreHelp)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 7, 8, 129, 130, 143]))
		.action((options: DiskCheckOptions) => {
			const required = requiredOf(options.require ?? [])
			const limits: DiskLimits = { ...options, block: options.block === true }
			return runCommand(run, {
				command: "disk-check",
				options,
				argv: [
					...["--warn", String(limits.warn), "--critical", String(limits.critical)],
					...(limits.block ? ["--block"] : []),
					...required.flatMap(({ path, bytes }) => ["--require", `${bytes}B`, path]),
				],
				checksOnly: true,
				modelsOnly: true,
				plan: (context) =>
					required.length === 0 ? diskPlan(context, limits) : requirePlan(context, required, limits),
			})
		})
}

const percent = (flag: string) => (text: string) => {
	const value = /^\d{1,3}%?$/.test(text) ? Number.parseInt(text, 10) : Number.NaN
	if (value >= 0 && value <= 100) return value
	throw new OperatorError(`${text} is no percentage`, {
		exitCode: exitCodes.usage,
		hint: `write it as in ${flag} 80`,
	})
}

/** `20GiB /a /b 5GiB /c`: each size is for the paths behind it. */
function requiredOf(words: readonly string[]): RequiredRoom[] {
	const required: RequiredRoom[] = []
	let bytes: number | undefined
	let pathsOfIt = 1
	const refuse = (what: string) => {
		throw new OperatorError(`--require: ${what}`, {
			exitCode: exitCodes.usage,
			hint: "a size and absolute paths, as in --require 20GiB /mnt/scratch",
		})
	}
	for (const word of words) {
		if (word.startsWith("/") && bytes !== undefined) {
			required.push({ path: word, bytes })
			pathsOfIt++
			continue
		}
		if (pathsOfIt === 0) refuse(`${word} comes where a path is expected`)
		bytes = parseBytes(word)
		if (bytes === undefined) refuse(`${word} is no size`)
		pathsOfIt = 0
	}
	if (pathsOfIt === 0) refuse("a size without a path")
	return required
}
