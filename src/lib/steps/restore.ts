// A restore as a plan, in parts: what the machine needs, what comes from backups, the stack, the timers, the checks.
import type { Artifact } from "../artifacts/catalogue.ts"
import type { Source } from "../artifacts/source.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { type Before, type Following, inTurn, type Plan, type SummaryRow, within } from "../plan/step.ts"
import { artifactsOf, outputsArtifact } from "./artifacts.ts"
import type { StepContext } from "./context.ts"
import { firstDeploymentStep, isUnmountedShare, neverBackedUp } from "./first-deployment.ts"
import { backupsAreFresh } from "./freshness.ts"
import { spokenWords, wordsOfManifest } from "./heal-options.ts"
import { envFilesAreRight } from "./machine/env-files.ts"
import { modelManifest, shareTarget } from "./models.ts"
import { once } from "./open.ts"
import { artifactSteps, isSnapshot } from "./restore-artifacts.ts"
import { restoreFiles } from "./restore-files.ts"
import { machineAfter, machineFirst, machineLast, placesOfContainers } from "./restore-machine.ts"
import { restoreModels } from "./restore-models.ts"
import {
	argvOf,
	isPart,
	type PartName,
	partNames,
	type RestoreOptions,
	type RestoreRun,
} from "./restore-options.ts"
import { stackFiles, stackStart, timerSteps } from "./restore-stack.ts"
import { troubles, wordsOfNames } from "./run-command.ts"
import { openStack } from "./stack.ts"
import { type Verifying, verifySteps } from "./verify.ts"

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
	if (options.first === true && (options.files !== undefined || options.into !== undefined))
		throw new OperatorError("--first says that there is no backup, and --files takes files out of one", {
			exitCode: exitCodes.usage,
			hint: "leave one of them out",
		})
	if (options.files !== undefined || options.into !== undefined)
		return planFiles({ ...context, ...(await context.openSources()) }, selected, options, again)
	if (options.first === true && options.from !== undefined)
		throw new OperatorError(
			"--first asks every place whether there is a backup, and --from leaves some out",
			{
				exitCode: exitCodes.usage,
				hint: "leave --from out",
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
			? [neverBackedUp(here, all.filter(isSnapshot), { dryRun: run.dryRun, mounts: machine })]
			: dated
				? [backupsAreFresh(here, all.filter(isSnapshot), again, { everything: options.only.length === 0 })]
				: []
		const wanted = first ? snapshots.filter(({ kind }) => kind === "git") : snapshots
		const asked = first && run.dryRun && machine ? withoutUnmountedShare(here) : here
		rows.push(
			() => wanted.map(({ name }) => here.summary.get(name) ?? missing(name)),
			() => models?.rows() ?? [],
		)
		return {
			notes: troubles(here),
			steps: [
				...judged,
				...artifactSteps(asked, wanted, {
					...options,
					...{ twin: run.twin, again, requires: judged.map(({ id }) => id) },
					...(machine ? { withUser: true, after: machineAfter(here) } : {}),
				}),
				...(machine ? machineLast(here, run) : []),
				...(models?.steps ?? []),
			],
		}
	}
	const requires = [
		...(first ? [firstDeploymentStep] : []),
		...(machine ? placesOfContainers(environment) : []),
	]
	const ifWanted = (part: PartName, work: (before: Before) => Promise<Following>) =>
		parts.has(part) ? [work] : []
	return {
		...{ command: "restore", environment: environment.name, host: hostConfiguration.name, place },
		checksAhead: true,
		...(await inTurn([
			// The share is mounted before the places of backups are opened.
			...ifWanted("machine", async () => ({ steps: machineFirst(context, run, options) })),
			fromBackups,
			...ifWanted("containers", () => stackFiles(context, { run, first, again, requires })),
			...ifWanted("machine", async () => ({ steps: [envFilesAreRight(context)] })),
			...ifWanted("containers", () => stackStart(context, { run, requires })),
			...ifWanted("timers", async () => ({ steps: timerSteps(context, { machine, dryRun: run.dryRun }) })),
			...ifWanted("checks", async (before) =>
				checklist(context, run, options.only.includes("checks") ? { touched: true } : before, {
					artifacts: all,
					// Whoever leaves them for later knows that they are not there.
					manifest: options.skip.includes("models") ? undefined : await modelManifest(packageRoot, options),
				}),
			),
		])),
		summary: () => rows.flatMap((of) => of()),
		next: ({ exitCode, dryRun }) => {
			if (dryRun) return again
			if (exitCode !== exitCodes.done) return again
			const { only, skip, manifest } = options
			// A backup knows no parts; of parts alone there is nothing to back up.
			const artifacts = only.filter((name) => !isPart(name))
			if (only.length > 0 && artifacts.length === 0) return `comfyume verify ${context.spoken}`
			const same = [
				...wordsOfNames("--only", artifacts),
				...wordsOfNames(
					"--skip",
					skip.filter((name) => !isPart(name)),
				),
				...wordsOfManifest(manifest),
			]
			return ["comfyume backup", context.spoken, spokenWords(same)].join(" ").trimEnd()
		},
	}
}

/** In a dry run nobody has mounted the share yet: what it holds is asked when somebody has. */
function withoutUnmountedShare(context: StepContext): StepContext {
	const mounted = (places: readonly Source[]) => places.filter((place) => !isUnmountedShare(place))
	return { ...context, sources: mounted(context.sources), everySource: mounted(context.everySource) }
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
	{ touched }: Before,
	given: Pick<Verifying, "artifacts" | "manifest">,
): Promise<Following> {
	if (dryRun)
		return {
			steps: [],
			notes: [
				{ level: "info", text: `the checks come when all is done; now: comfyume verify ${context.spoken}` },
			],
		}
	// Each step has just been found right by its own check; the rest of the list is for what was made anew.
	if (!touched)
		return {
			steps: [],
			notes: [
				{
					level: "info",
					text: `nothing had to be done; the whole checklist: comfyume verify ${context.spoken}`,
				},
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
