// comfyume restore: a lost server comes back on a fresh machine, and each thing is proven to be what was lost.
import { Command, InvalidArgumentError, Option } from "commander"
import type { SourceName } from "../lib/artifacts/source.ts"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import { isFingerprint } from "../lib/host/known-hosts.ts"
import { healOptions } from "../lib/steps/heal-options.ts"
import { manifestIn, namedManifest } from "../lib/steps/models.ts"
import { planRestore } from "../lib/steps/restore.ts"
import { argvOf, partNames, type RestoreOptions } from "../lib/steps/restore-options.ts"
import { type CommonOptions, commonOptions, names, runCommand } from "../lib/steps/run-command.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

export function create(run: CommandRun): Command {
	const command = commonOptions
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("restore"))
		.summary("bring a lost server back from its backups")
		.description(
			"Looks for each artifact on the host itself, on the share, in R2 and in git, in this order, takes the newest " +
				"copy that proves right, and looks at the result once more. What it replaces is kept. " +
				"Running it again is how one resumes. " +
				"Of the models, those that are missing or damaged on the share come back; none that is right is touched.",
		)
		.addOption(
			new Option("--only <names>", "only these artifacts and parts, separated by commas")
				.argParser(names)
				.default([], "all"),
		)
		.addOption(new Option("--skip <names>", "all but these").argParser(names).default([], "none"))
		.addOption(
			new Option("--from <sources>", "only from these: local, share, r2, git").argParser(parseSources),
		)
		.option("--at <date>", "as it was at this time (ISO 8601), also over files that are in use", parseDate)
		.option(
			"--files <pattern>",
			"only these files of the one artifact that --only names, as in 'user003/**' (may be repeated)",
			(pattern: string, before: readonly string[] = []) => [...before, pattern],
		)
		.option("--into <directory>", "with --files: a new directory on the host to put them into", parseHostPath)
		.option("--allow-unverified", "also take backups of the older scripts, which have no sidecar")
		.option(
			"--identity-is-free",
			"you know that no other machine is online with this server's Tailscale identity",
		)
		.option("--first", "this environment has never been backed up: code from git, new passwords and secrets")
		.option("--full", "also what is restored by request only: what users have made and uploaded")
		.option(
			"--format-scratch <device>",
			"make a file system on this device, which holds nothing, for scratch",
		)
		.option("--with-models", "with --only: the models too")
		.option("--skip-models", "leave the models alone, as --skip models")
		.option("--fresh-models", "read every byte of the models, and fetch anew what differs")
		.addOption(
			new Option(
				"--host-fingerprint <fingerprint>",
				"the SSH host key of the fresh machine, from its console: accepted for this run",
			).argParser(parseFingerprint),
		)
		.option("--manifest <file>", "which models must be there (else the manifest that comes with comfyume)")
		.option("--deep", "read every byte of the models: also finds a flipped bit")
		.option("--yes", "answer the question before restoring production with yes")
		.addHelpText("after", moreHelp)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 129, 130, 143]))
		.action((given: Given) => restore(run, spelledOut(given)))
	for (const [flags, description, parse] of healOptions) {
		const option = new Option(flags, description)
		command.addOption(parse === undefined ? option : option.argParser(parse))
	}
	return command
}

const moreHelp = `
Beside artifacts, --only and --skip take the names of parts:
${Object.entries(partNames)
	.map(([name, about]) => `  ${name.padEnd(12)}${about}`)
	.join("\n")}
Without --only all of them are done; where a directory stands in, none.
What became of the run is kept on the host, in /var/log/comfyume.`

type Given = CommonOptions &
	RestoreOptions & { withModels?: boolean; skipModels?: boolean; freshModels?: boolean }

/** The older scripts' words for models, as what they come to. */
function spelledOut({
	withModels,
	skipModels,
	freshModels,
	...options
}: Given): CommonOptions & RestoreOptions {
	if (skipModels === true && (withModels === true || freshModels === true))
		throw new OperatorError("--skip-models leaves the models alone, and another option asks for them", {
			exitCode: exitCodes.usage,
			hint: "leave one of them out",
		})
	const { only, skip } = options
	return {
		...options,
		only: withModels === true && only.length > 0 ? [...new Set([...only, "models"])] : only,
		skip: skipModels === true ? [...skip, "models"] : skip,
		...(freshModels === true ? { deep: true } : {}),
	}
}

const restore = (run: CommandRun, options: CommonOptions & RestoreOptions) =>
	runCommand(run, {
		command: "restore",
		options,
		argv: argvOf(options),
		needsTwin: true,
		alsoSends: ["AGE_IDENTITY", "TAILSCALE_AUTH_KEY", "UBUNTU_PRO_TOKEN"],
		confirms: "production",
		keepsLog: true,
		// They lie on the share, which may have to be mounted first.
		modelsOnly: true,
		files: () => namedManifest(run.surroundings, options.manifest),
		plan: (context, { files, ...facts }) =>
			planRestore(
				context,
				{ ...facts, packageRoot: run.surroundings.packageRoot },
				{ ...options, ...manifestIn(files) },
			),
	})

function parseSources(text: string): (SourceName | "git")[] {
	const known = ["local", "share", "r2", "git"] as const
	return names(text).map((word) => {
		const found = known.find((name) => name === word)
		if (found === undefined) throw new InvalidArgumentError(`there is no source ${word}: ${known.join(", ")}`)
		return found
	})
}

function parseFingerprint(text: string): string {
	if (isFingerprint(text)) return text
	throw new InvalidArgumentError("write it as `ssh-keygen -lf` prints it: SHA256: and 43 letters and digits")
}

function parseHostPath(text: string): string {
	if (text.startsWith("/")) return text
	throw new InvalidArgumentError("it is a directory of the host: write it with a leading /")
}

function parseDate(text: string): Date {
	// A time without a zone would be this machine's own, and snapshots are named in UTC.
	const written = /^(\d{4}-\d{2}-\d{2})(T\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:\d{2}))?$/.exec(text)
	const [, day = ""] = written ?? []
	const date = new Date(text)
	// JavaScript takes the 31st of February for the 3rd of March.
	const exists = !Number.isNaN(date.getTime()) && new Date(`${day}T00:00:00Z`).toISOString().startsWith(day)
	if (written === null || !exists)
		throw new InvalidArgumentError("write a date as in 2026-11-20 or 2026-11-20T06:30:00Z")
	return date
}
