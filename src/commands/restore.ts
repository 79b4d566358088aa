// comfyume restore: a lost server comes back on a fresh machine, and each thing is proven to be what was lost.
import { Command, InvalidArgumentError, Option } from "commander"
import type { Artifact } from "../lib/artifacts/catalogue.ts"
import type { SourceName } from "../lib/artifacts/source.ts"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import { isFingerprint } from "../lib/host/known-hosts.ts"
import { type Following, inTurn, type Plan, type SummaryRow, within } from "../lib/plan/step.ts"
import { artifactsOf, outputsArtifact } from "../lib/steps/artifacts.ts"
import type { StepContext } from "../lib/steps/context.ts"
import { firstDeploymentStep, neverBackedUp } from "../lib/steps/first-deployment.ts"
import { backupsAreFresh } from "../lib/steps/freshness.ts"
import { healOptions, spokenWords, wordsOfManifest } from "../lib/steps/heal-options.ts"
import { manifestIn, modelManifest, namedManifest, shareTarget } from "../lib/steps/models.ts"
import { once } from "../lib/steps/open.ts"
import { artifactSteps, isSnapshot } from "../lib/steps/restore-artifacts.ts"
import { restoreFiles } from "../lib/steps/restore-files.ts"
import { machineAfter, machineFirst, machineLast } from "../lib/steps/restore-machine.ts"
import { restoreModels } from "../lib/steps/restore-models.ts"
import {
	argvOf,
	isPart,
	type PartName,
	partNames,
	type RestoreOptions,
	type RestoreRun,
} from "../lib/steps/restore-options.ts"
import { stackFiles, stackStart, timerSteps } from "../lib/steps/restore-stack.ts"
import {
	type CommonOptions,
	commonOptions,
	names,
	runCommand,
	troubles,
	wordsOfNames,
} from "../lib/steps/run-command.ts"
import { openStack } from "../lib/steps/stack.ts"
import { type Verifying, verifySteps } from "../lib/steps/verify.ts"
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

/**
 * In parts, each worked out when the one before has run: the machine itself, for it mounts the share that backups lie
 * on; what comes from backups; the stack, whose roster came from there; the timers; and the checks of all of it.
 */
export async function planRestore(
	context: StepContext,
	run: RestoreRun,
	options: RestoreOptions,
): Promise<Plan> {
	const { environment, hostConfiguration, place } = context
	const { packageRoot } = run
	const { all, selected, parts } = await chosen(context, packageRoot, options)
	const again = ["comfyume restore", context.spoken, spokenWords(argvOf(options))].join(" ").trimEnd()
	if (options.files !== undefined || options.into !== undefined)
		return planFiles({ ...context, ...(await context.openSources()) }, selected, options, again)
	if (options.first === true && hostConfiguration.tailscaleAddress !== undefined)
		throw new OperatorError(
			`${hostConfiguration.name} has a tailscaleAddress in comfyume.yaml, and on a first deployment no identity can come back`,
			{
				exitCode: exitCodes.usage,
				hint: "write tailnet: join in its place; which address it got is said, and belongs there from then on",
			},
		)
	const rows: (() => readonly SummaryRow[])[] = []
	const opened = once(async () => ({ ...context, ...(await context.openSources()) }))
	const first = options.first === true
	const machine = parts.has("machine")

	/** What comes from snapshots, from git, and of the models what is missing. */
	const fromBackups = async (): Promise<Following> => {
		const here = await opened()
		const snapshots = selected.filter(isSnapshot)
		const models = selected.some(({ kind }) => kind === "models")
			? restoreModels(here, shareTarget(here), await modelManifest(packageRoot, options), {
					deep: options.deep === true,
					level: options.deep === true ? "digest" : "structure",
					fromOrigin: options.fromOrigin === true,
					again,
					...(options.tempDir === undefined ? {} : { tempDirectory: options.tempDir }),
					...(options.limit === undefined ? {} : { limitBytesPerSecond: options.limit }),
				})
			: undefined
		// Models have no dates: they are what they are, or they are not.
		const dated = options.at === undefined && snapshots.length > 0
		const judged = first
			? [neverBackedUp(here, all.filter(isSnapshot))]
			: dated
				? [backupsAreFresh(here, all.filter(isSnapshot), again)]
				: []
		const wanted = first ? snapshots.filter(({ kind }) => kind === "git") : snapshots
		rows.push(
			() => wanted.map(({ name }) => here.summary.get(name) ?? missing(name)),
			() => models?.rows() ?? [],
		)
		return {
			notes: troubles(here),
			steps: [
				...judged,
				...artifactSteps(here, wanted, {
					...options,
					...{ twin: run.twin, again, requires: judged.map(({ id }) => id) },
					...(machine ? { withUser: true, after: machineAfter(here) } : {}),
				}),
				...(machine ? machineLast(here, run) : []),
				...(models?.steps ?? []),
			],
		}
	}
	const requires = first ? [firstDeploymentStep] : []
	const ifWanted = (part: PartName, work: () => Promise<Following>) => (parts.has(part) ? [work] : [])
	return {
		...{ command: "restore", environment: environment.name, host: hostConfiguration.name, place },
		...(await inTurn([
			// The share is mounted before the places of backups are opened.
			...ifWanted("machine", async () => ({ steps: machineFirst(context, run, options) })),
			fromBackups,
			...ifWanted("containers", () => stackFiles(context, { run, first, again, requires })),
			...ifWanted("containers", () => stackStart(context, { run, requires })),
			...ifWanted("timers", async () => ({ steps: timerSteps(context, { machine }) })),
			...ifWanted("checks", async () =>
				checklist(context, run, { artifacts: all, manifest: await modelManifest(packageRoot, options) }),
			),
		])),
		summary: () => rows.flatMap((of) => of()),
		next: ({ exitCode, dryRun }) => {
			if (dryRun) return again
			if (exitCode !== exitCodes.done) return again
			const { only, skip, manifest } = options
			const same = [
				...wordsOfNames("--only", only),
				...wordsOfNames("--skip", skip),
				...wordsOfManifest(manifest),
			]
			return ["comfyume backup", context.spoken, spokenWords(same)].join(" ").trimEnd()
		},
	}
}

/** @throws {OperatorError} (2) for a name that is neither an artifact of this host nor a part */
async function chosen(context: StepContext, packageRoot: string, options: RestoreOptions) {
	const isArtifact = (name: string) => !isPart(name)
	const { only, skip } = options
	const artifacts = await artifactsOf(context, packageRoot, {
		...options,
		only: only.filter(isArtifact),
		skip: skip.filter(isArtifact),
		also: options.full === true ? [outputsArtifact] : [],
		others: Object.keys(partNames),
	})
	const usual = only.length === 0 && !context.host.standIn
	const wanted = (Object.keys(partNames) as PartName[]).filter(
		(name) => (usual || only.includes(name)) && !skip.includes(name),
	)
	const onlyParts = only.length > 0 && !only.some(isArtifact)
	return { ...artifacts, ...(onlyParts ? { selected: [] } : {}), parts: new Set(wanted) }
}

/** All of it once more, as `comfyume verify` looks: of what is done, and of what it does. */
async function checklist(
	context: StepContext,
	{ configuration, secrets, dryRun, hide }: RestoreRun,
	given: Pick<Verifying, "artifacts" | "manifest">,
): Promise<Following> {
	if (dryRun)
		return {
			steps: [],
			notes: [
				{ level: "info", text: `the checks come when all is done; now: comfyume verify ${context.spoken}` },
			],
		}
	const open = context.environment.stack === undefined ? undefined : await openStack(context, hide)
	return { steps: within("verify", await verifySteps(context, { ...given, configuration, secrets, open })) }
}

/** Part of one artifact's snapshot. The rest of it, and everything else, stays as it is. */
function planFiles(
	context: StepContext,
	artifacts: readonly Artifact[],
	{ files, into, at, only }: RestoreOptions,
	again: string,
): Plan {
	const [artifact] = artifacts
	if (files === undefined || only.length !== 1 || artifact?.kind !== "archive")
		throw new OperatorError("--files takes files out of the snapshot of one artifact, which --only names", {
			exitCode: exitCodes.usage,
			hint: `comfyume restore ${context.spoken} --only user-data --files 'user003/**' --dry-run`,
		})
	const { environment, hostConfiguration, place, summary } = context
	const chosen = { patterns: files, ...(at && { at }), ...(into !== undefined && { into }) }
	return {
		command: "restore",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		steps: [restoreFiles(context, artifact, chosen)],
		summary: () => [summary.get(artifact.name) ?? missing(artifact.name)],
		next: ({ exitCode, dryRun }) => (dryRun || exitCode !== exitCodes.done ? again : undefined),
	}
}

const missing = (artifact: string) => ({
	artifact,
	source: "nowhere",
	snapshot: "none",
	verified: "not restored; the reason stands above",
	ok: false,
})
