// comfyume backup: everything in the catalogue that lies on the server stands, proven, on the share and in R2.

import { Command, Option } from "commander"
import type { Artifact } from "../lib/artifacts/catalogue.ts"
import { sourcesOf } from "../lib/artifacts/source.ts"
import { exitCodes } from "../lib/errors.ts"
import type { Plan, Step, SummaryRow } from "../lib/plan/step.ts"
import { artifactsOf, outputsArtifact } from "../lib/steps/artifacts.ts"
import { backupArchive } from "../lib/steps/backup-archive.ts"
import { backupImage } from "../lib/steps/backup-image.ts"
import { backupModels } from "../lib/steps/backup-models.ts"
import { backupCheckout } from "../lib/steps/checkout.ts"
import type { Held, StepContext } from "../lib/steps/context.ts"
import { parseRate, spokenWords, wordsOfLimit, wordsOfManifest } from "../lib/steps/heal-options.ts"
import { inTheClear } from "../lib/steps/in-the-clear.ts"
import { manifestIn, modelManifest, namedManifest } from "../lib/steps/models.ts"
import { notifyOption } from "../lib/steps/notify.ts"
import {
	type CommonOptions,
	commonOptions,
	names,
	runCommand,
	wordsOfNames,
} from "../lib/steps/run-command.ts"
import { findDue } from "../lib/steps/scheduled.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type BackupOptions = CommonOptions & {
	only: readonly string[]
	skip: readonly string[]
	manifest?: string
	/** The text of the manifest that was named. */
	manifestText?: string
	deep?: boolean
	/** Bytes per second. */
	limit?: number
	/** Build upon no earlier snapshot, and read what is remembered. */
	full?: boolean
	/** With what users have made and uploaded. */
	withOutputs?: boolean
	/** Only what the catalogue's schedules make due. */
	scheduled?: boolean
}

export function create(run: CommandRun): Command {
	return commonOptions
		.reduce((command, [flags, description]) => command.option(flags, description), new Command("backup"))
		.summary("back up the server, and prove that the backups can be restored")
		.description(
			"Packs what the catalogue lists, reads every archive back, and stores it on the share and in R2. " +
				"What has not changed is not stored again. One artifact's failure doesn't stop the others. " +
				"Of the models on the share, those that the models' bucket doesn't have are stored there; " +
				"what it has is never replaced.",
		)
		.addOption(
			new Option("--only <artifacts>", "only these, separated by commas").argParser(names).default([], "all"),
		)
		.addOption(new Option("--skip <artifacts>", "all but these").argParser(names).default([], "none"))
		.option("--scheduled", "only what is due by the catalogue's schedules; for a timer that runs every hour")
		.option("--with-outputs", "also what users have made and uploaded, which is large")
		.option("--full", "pack everything anew, also what has not changed")
		.option("--manifest <file>", "what is known of the models (else the manifest that comes with comfyume)")
		.option("--deep", "also read the models that the bucket has already, and compare their sha256")
		.addOption(
			new Option("--limit <rate>", "send models at no more than this per second, as in 20MiB").argParser(
				parseRate,
			),
		)
		.option(...notifyOption)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 5, 6, 7, 8, 129, 130, 143]))
		.action((options: BackupOptions) =>
			runCommand(run, {
				command: "backup",
				task: "backup",
				options,
				argv: argvOf(options),
				files: () => namedManifest(run.surroundings, options.manifest),
				plan: (context, { files }) =>
					planBackup(context, run.surroundings.packageRoot, { ...options, ...manifestIn(files) }),
			}),
		)
}

const argvOf = ({
	only,
	skip,
	manifest,
	deep,
	limit,
	scheduled,
	full,
	withOutputs,
}: Omit<BackupOptions, keyof CommonOptions> & CommonOptions) => [
	...wordsOfNames("--only", only),
	...wordsOfNames("--skip", skip),
	...wordsOfManifest(manifest),
	...(deep === true ? ["--deep"] : []),
	...wordsOfLimit(limit),
	...(scheduled === true ? ["--scheduled"] : []),
	...(full === true ? ["--full"] : []),
	...(withOutputs === true ? ["--with-outputs"] : []),
]

/** One step per artifact and one per model, independent of each other. */
export async function planBackup(
	context: StepContext,
	packageRoot: string,
	options: Pick<
		BackupOptions,
		"only" | "skip" | "manifest" | "manifestText" | "deep" | "limit" | "scheduled" | "full" | "withOutputs"
	>,
): Promise<Plan> {
	const { environment, hostConfiguration, place, summary } = context
	const { selected } = await artifactsOf(context, packageRoot, {
		...options,
		also: options.withOutputs === true ? [outputsArtifact] : [],
	})
	const due = options.scheduled === true ? await findDue(context, selected) : undefined
	const artifacts = due === undefined ? selected : selected.filter((one) => due.isDue(one))
	const again = ["comfyume backup", context.spoken, spokenWords(argvOf(options))].join(" ").trimEnd()
	const models = artifacts.some(({ kind }) => kind === "models")
		? await backupModels(context, await modelManifest(packageRoot, options), {
				deep: options.deep === true,
				...(options.manifest === undefined ? {} : { manifest: options.manifest }),
				...(options.limit === undefined ? {} : { limitBytesPerSecond: options.limit }),
			})
		: undefined
	const clear = await inTheClear(context, artifacts)
	const held: Held = new Map()
	const stepsOf = (artifact: Artifact): readonly Step[] => {
		if (artifact.kind === "models") return models?.steps ?? []
		const destinations = sourcesOf(context, artifact).filter(({ name }) => name !== "local")
		const wanted = due?.destinationsOf(artifact) ?? destinations
		const taking = { destinations, due: wanted, full: options.full === true, held }
		if (artifact.kind === "git") return [backupCheckout(context, artifact, taking)]
		if (artifact.kind === "image") return [backupImage(context, artifact, taking)]
		return [backupArchive(context, artifact, taking)]
	}
	const rowsOf = ({ kind, name }: Artifact): readonly SummaryRow[] => {
		if (kind === "models") return models?.rows() ?? []
		const missing = "not backed up; the reason stands above"
		return [
			summary.get(name) ?? {
				artifact: name,
				source: "nowhere",
				snapshot: "none",
				verified: missing,
				ok: false,
			},
		]
	}
	return {
		command: "backup",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		// An hourly line of cron stays silent.
		notes: clear === undefined ? [] : [{ level: due === undefined ? "warning" : "info", text: clear }],
		steps:
			due === undefined
				? artifacts.flatMap(stepsOf)
				: [due.step, ...artifacts.flatMap(stepsOf), ...due.confirmations(held)],
		summary: () => artifacts.flatMap(rowsOf),
		next: ({ exitCode, dryRun }) => {
			if (dryRun) return again
			if (exitCode !== exitCodes.done) return again
			const { only, skip, manifest } = options
			const same = [
				...wordsOfNames("--only", only),
				...wordsOfNames("--skip", skip),
				...wordsOfManifest(manifest),
			]
			return ["comfyume restore", context.spoken, spokenWords([...same, "--dry-run"])].join(" ")
		},
	}
}
