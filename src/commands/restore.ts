// comfyume restore: a lost server comes back on a fresh machine, and each thing is proven to be what was lost.
import { Command, InvalidArgumentError, Option } from "commander"
import type { ArchiveArtifact, Artifact, SnapshotArtifact } from "../lib/artifacts/catalogue.ts"
import type { SourceName } from "../lib/artifacts/source.ts"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import { isFingerprint } from "../lib/host/known-hosts.ts"
import type { Plan, Step } from "../lib/plan/step.ts"
import { artifactsOf, tailscaleIdentity } from "../lib/steps/artifacts.ts"
import { restoreCheckout } from "../lib/steps/checkout.ts"
import type { StepContext } from "../lib/steps/context.ts"
import { backupsAreFresh, freshnessStep } from "../lib/steps/freshness.ts"
import {
	type HealOptions,
	healOptions,
	spokenWords,
	wordsOfHeal,
	wordsOfManifest,
} from "../lib/steps/heal-options.ts"
import {
	hostKeysOnTheWire,
	restoreHostKeys,
	restoreTailscaleIdentity,
	tailscaleIsFree,
	tailscaleIsUp,
} from "../lib/steps/identity.ts"
import { manifestIn, modelManifest, namedManifest, shareTarget } from "../lib/steps/models.ts"
import { restoreArchive } from "../lib/steps/restore-archive.ts"
import { restoreFiles } from "../lib/steps/restore-files.ts"
import { restoreImage } from "../lib/steps/restore-image.ts"
import { restoreModels } from "../lib/steps/restore-models.ts"
import {
	type CommonOptions,
	commonOptions,
	names,
	runCommand,
	wordsOfNames,
} from "../lib/steps/run-command.ts"
import { platformUser } from "../lib/steps/user.ts"
import type { Twin } from "../lib/tailscale/tailnet.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

export type RestoreOptions = {
	only: readonly string[]
	skip: readonly string[]
	from?: readonly (SourceName | "git")[]
	at?: Date
	allowUnverified?: boolean
	identityIsFree?: boolean
	hostFingerprint?: string
	manifest?: string
	/** The text of the manifest that was named. */
	manifestText?: string
	deep?: boolean
	/** Only these of one artifact's files. */
	files?: readonly string[]
	into?: string
} & HealOptions

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
			new Option("--only <artifacts>", "only these, separated by commas").argParser(names).default([], "all"),
		)
		.addOption(new Option("--skip <artifacts>", "all but these").argParser(names).default([], "none"))
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
		.addOption(
			new Option(
				"--host-fingerprint <fingerprint>",
				"the SSH host key of the fresh machine, from its console: accepted for this run",
			).argParser(parseFingerprint),
		)
		.option("--manifest <file>", "which models must be there (else the manifest that comes with comfyume)")
		.option("--deep", "read every byte of the models: also finds a flipped bit")
		.option("--yes", "answer the question before restoring production with yes")
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 129, 130, 143]))
		.action((options: CommonOptions & RestoreOptions) =>
			runCommand(run, {
				command: "restore",
				options,
				argv: argvOf(options),
				needsTwin: true,
				needsIdentity: true,
				confirms: "production",
				files: () => namedManifest(run.surroundings, options.manifest),
				plan: (context, { twin, files }) =>
					planRestore(context, run.surroundings.packageRoot, { ...options, ...manifestIn(files) }, twin),
			}),
		)
	for (const [flags, description, parse] of healOptions) {
		const option = new Option(flags, description)
		command.addOption(parse === undefined ? option : option.argParser(parse))
	}
	return command
}

function argvOf(options: RestoreOptions): string[] {
	return [
		...wordsOfNames("--only", options.only),
		...wordsOfNames("--skip", options.skip),
		...wordsOfNames("--from", options.from),
		...(options.at === undefined ? [] : ["--at", options.at.toISOString()]),
		...(options.files ?? []).flatMap((pattern) => ["--files", pattern]),
		...(options.into === undefined ? [] : ["--into", options.into]),
		...(options.allowUnverified === true ? ["--allow-unverified"] : []),
		...wordsOfManifest(options.manifest),
		...(options.deep === true ? ["--deep"] : []),
		...wordsOfHeal(options),
		...(options.identityIsFree === true ? ["--identity-is-free"] : []),
		// The host itself doesn't need it: it stands in the command that it tells the operator to type next.
		...(options.hostFingerprint === undefined ? [] : ["--host-fingerprint", options.hostFingerprint]),
	]
}

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
 * The order is that of the platform's runbook. Who the server is comes first, and the identity's files stand in place
 * before anything that uses them is started: a daemon that starts without them makes up a new identity.
 */
export async function planRestore(
	context: StepContext,
	packageRoot: string,
	options: RestoreOptions,
	twin: Twin,
): Promise<Plan> {
	const { environment, hostConfiguration, place, summary } = context
	const { all, selected: artifacts } = await artifactsOf(context, packageRoot, options)
	const again = ["comfyume restore", context.spoken, spokenWords(argvOf(options))].join(" ").trimEnd()
	if (options.files !== undefined || options.into !== undefined)
		return planFiles(context, artifacts, options, again)
	const snapshots = all.filter(isSnapshot)
	const models = artifacts.some(({ kind }) => kind === "models")
		? restoreModels(context, shareTarget(context), await modelManifest(packageRoot, options), {
				deep: options.deep === true,
				level: options.deep === true ? "digest" : "structure",
				fromOrigin: options.fromOrigin === true,
				again,
				...(options.tempDir === undefined ? {} : { tempDirectory: options.tempDir }),
				...(options.limit === undefined ? {} : { limitBytesPerSecond: options.limit }),
			})
		: undefined
	const selected = artifacts.filter(isSnapshot)
	// Models have no dates: they are what they are, or they are not.
	const fresh = options.at === undefined && selected.length > 0
	return {
		command: "restore",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		steps: [
			...(fresh ? [backupsAreFresh(context, snapshots, again)] : []),
			...restoreSteps(context, selected, options, twin, again),
			...(models?.steps ?? []),
		],
		summary: () => [
			...selected.map(({ name }) => summary.get(name) ?? missing(name)),
			...(models?.rows() ?? []),
		],
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

const isSnapshot = (artifact: Artifact): artifact is SnapshotArtifact => artifact.kind !== "models"

function restoreSteps(
	context: StepContext,
	artifacts: readonly SnapshotArtifact[],
	options: RestoreOptions,
	twin: Twin,
	again: string,
): Step[] {
	const { host } = context
	const gitAllowed = options.from === undefined || options.from.includes("git")
	const dated = options.at === undefined ? {} : { at: options.at }
	const archive = { ...dated, allowUnverified: options.allowUnverified === true }
	const needsUser = artifacts.some(({ name }) => !identityArtifacts.includes(name)) && !host.standIn

	const fresh = options.at === undefined ? [freshnessStep] : []
	const user = needsUser ? [platformUser(context)] : []
	const afterUser = [...fresh, ...user.map(({ id }) => id)]

	const stepsOf = (artifact: SnapshotArtifact): Step[] => {
		if (artifact.kind === "git")
			return [restoreCheckout(context, artifact, { ...dated, requires: afterUser, gitAllowed })]
		if (artifact.kind === "image") return [restoreImage(context, artifact, { ...dated, requires: fresh })]
		switch (artifact.name) {
			case tailscaleIdentity:
				return tailscaleSteps(context, artifact, { ...archive, requires: fresh }, options, twin, again)
			case "ssh-host-keys":
				return [
					restoreHostKeys(context, artifact, { ...archive, requires: fresh }),
					// A directory has no sshd that could show its keys.
					...(host.standIn ? [] : [hostKeysOnTheWire(context, artifact, [artifact.name])]),
				]
			case "env-file":
				// It lies in the checkout, which must be there first.
				return [
					restoreArchive(context, artifact, {
						...archive,
						requires: [
							...afterUser,
							...artifacts.filter(({ name }) => name === "project").map(({ name }) => name),
						],
					}),
				]
			default:
				return [restoreArchive(context, artifact, { ...archive, requires: afterUser })]
		}
	}
	const identity = artifacts.filter(({ name }) => identityArtifacts.includes(name))
	const others = artifacts.filter(({ name }) => !identityArtifacts.includes(name))
	return [...identity.flatMap(stepsOf), ...user, ...others.flatMap(stepsOf)]
}

const identityArtifacts: readonly string[] = [tailscaleIdentity, "ssh-host-keys"]

function tailscaleSteps(
	context: StepContext,
	artifact: ArchiveArtifact,
	archive: { requires: readonly string[]; at?: Date; allowUnverified: boolean },
	options: RestoreOptions,
	twin: Twin,
	again: string,
): Step[] {
	const expected = context.hostConfiguration.tailscaleAddress
	if (expected === undefined) return []
	const free = tailscaleIsFree(context, expected, {
		twin,
		declaredFree: options.identityIsFree === true,
		again,
	})
	return [
		free,
		restoreTailscaleIdentity(context, artifact, expected, {
			...archive,
			requires: [...archive.requires, free.id],
		}),
		tailscaleIsUp(context, expected, [artifact.name]),
	]
}

const missing = (artifact: string) => ({
	artifact,
	source: "nowhere",
	snapshot: "none",
	verified: "not restored; the reason stands above",
	ok: false,
})
