// comfyume generate-users: one roster and one configuration become everything that the stack is started from.
import { resolve } from "node:path"
import { Command } from "commander"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import { readIfThere } from "../lib/stack/write.ts"
import { spokenWords } from "../lib/steps/heal-options.ts"
import { type CommonOptions, commonOptions, runCommand } from "../lib/steps/run-command.ts"
import { planUsers } from "../lib/steps/stack-files.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun, Surroundings } from "../lib/ui/surroundings.ts"

type Options = CommonOptions & {
	count?: string
	add?: string[]
	remove?: string[]
	rotate?: string[]
	directory?: string
	credentials?: string
	csv?: string
	makeDirectories: boolean
}

export function create(run: CommandRun): Command {
	return commonOptions
		.reduce(
			(command, [flags, description]) => command.option(flags, description),
			new Command("generate-users"),
		)
		.summary("write users, passwords, compose and nginx files of the stack")
		.description(
			"Writes all files of the stack from the configuration and the roster, on the environment's host. " +
				"Passwords that are there are kept; users' directories are made and never removed. A second run " +
				"changes nothing. --dry-run shows what would change; secrets are not shown. On a GPU worker's host it " +
				"writes what its workers are started from.",
		)
		.option("--count <number>", "make it this many users, by adding the lowest free numbers")
		.option("--add <user...>", "add these users, as in user021")
		.option("--remove <user...>", "remove these users; their data stays")
		.option("--rotate <user...>", "a new password for these users, or for the admin")
		.option("--directory <path>", "write here, on this machine (else stack.directory on the host)")
		.option(
			"--credentials <file>",
			"an older file with USER_CREDENTIALS_… to take passwords from, once; for a GPU worker's host the file that the app server has for it",
		)
		.option("--csv <file>", "also write the sheet to hand out, with a link for each user; on the host itself")
		.option("--no-make-directories", "don't make the users' directories, as on another machine than the host")
		.option("--yes", "answer the question before production with yes")
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 6, 7, 8, 129, 130, 143]))
		.action((options: Options) => generate(run, options))
}

function generate(run: CommandRun, options: Options): Promise<void> {
	const { surroundings } = run
	const { workingDirectory } = surroundings
	const directory = absolute(workingDirectory, options.directory)
	const csv = absolute(workingDirectory, options.csv)
	const { count, add = [], remove = [], rotate = [], makeDirectories } = options
	const argv = [
		...(count === undefined ? [] : ["--count", count]),
		...(add.length === 0 ? [] : ["--add", ...add]),
		...(remove.length === 0 ? [] : ["--remove", ...remove]),
		...(rotate.length === 0 ? [] : ["--rotate", ...rotate]),
		...(makeDirectories ? [] : ["--no-make-directories"]),
		...(options.credentials === undefined ? [] : ["--credentials", options.credentials]),
	]
	return runCommand(run, {
		command: "generate-users",
		options: { ...options, ...(directory === undefined ? {} : { here: true }) },
		argv,
		modelsOnly: true,
		confirms: "production",
		// What is written beside the stack of a host is nobody else's business.
		withoutLock: directory !== undefined,
		files: () => olderFile(surroundings, options.credentials),
		elsewhere: () => {
			if (csv === undefined) return
			throw new OperatorError("--csv holds passwords, which don't travel back from a host", {
				exitCode: exitCodes.usage,
				hint: "run it on the host: comfyume generate-users --csv FILE",
			})
		},
		plan: (context, { files }) =>
			planUsers(context, {
				...{ add, remove, rotate, makeDirectories },
				...(count === undefined ? {} : { count }),
				...(directory === undefined ? {} : { directory }),
				...(csv === undefined ? {} : { csv }),
				...(options.credentials === undefined
					? {}
					: {
							older: {
								where: resolve(workingDirectory, options.credentials),
								text: files["credentials"] ?? "",
							},
						}),
				again: `comfyume generate-users ${context.spoken} ${spokenWords(argv)}`.trimEnd(),
			}),
	})
}

/** A host elsewhere doesn't have the operator's file; its passwords go there in the one frame. */
async function olderFile({ workingDirectory }: Surroundings, named: string | undefined) {
	const files: Record<string, string> = {}
	if (named !== undefined) files["credentials"] = await readIfThere(resolve(workingDirectory, named))
	return files
}

const absolute = (workingDirectory: string, path: string | undefined) =>
	path === undefined ? undefined : resolve(workingDirectory, path)
