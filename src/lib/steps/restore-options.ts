// What can be chosen of a restore, and the same as words of a command line.
import type { SourceName } from "../artifacts/source.ts"
import type { Secrets } from "../config/secrets.ts"
import type { Secret } from "../secret.ts"
import type { Twin } from "../tailscale/tailnet.ts"
import { type HealOptions, wordsOfHeal, wordsOfManifest } from "./heal-options.ts"
import { wordsOfNames } from "./run-command.ts"

/** What the operator decides. */
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
	/** Nothing of this environment has ever been backed up. */
	first?: boolean
	/** What is taken by request only, too. */
	full?: boolean
	/** The device that may be formatted. */
	formatScratch?: string
} & HealOptions

/** What a run brings along beside its context. */
export type RestoreRun = {
	packageRoot: string
	twin: Twin
	/** Of comfyume.yaml, as this run has it. */
	configuration: { text: string }
	secrets: Secrets
	dryRun: boolean
	hide: (secrets: Iterable<Secret>) => void
}

/** What a restore does beside artifacts; `--only` and `--skip` take these names too. */
export const partNames = {
	machine: "packages, share, scratch, firewall and the like",
	containers: "the stack's files and containers",
	timers: "backups that come by themselves",
	checks: "everything looked at once more, as comfyume verify does",
} as const

export type PartName = keyof typeof partNames
export const isPart = (name: string): name is PartName => Object.hasOwn(partNames, name)

/** The options as words, for a host elsewhere and for commands to type next. */
export function argvOf(options: RestoreOptions): string[] {
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
		...(options.first === true ? ["--first"] : []),
		...(options.full === true ? ["--full"] : []),
		...(options.formatScratch === undefined ? [] : ["--format-scratch", options.formatScratch]),
		...(options.identityIsFree === true ? ["--identity-is-free"] : []),
		// The host itself doesn't need it: it stands in the command that it tells the operator to type next.
		...(options.hostFingerprint === undefined ? [] : ["--host-fingerprint", options.hostFingerprint]),
	]
}
