// What every step constructor is given: the host it works on, the environment it belongs to, and the places that hold
// snapshots.
import { readdir } from "node:fs/promises"
import { join } from "node:path"
import type { Source } from "../artifacts/source.ts"
import type { Environment, HostConfiguration } from "../config/environment.ts"
import type { LocalHost } from "../host/local.ts"
import type { DigestCache } from "../models/digest-cache.ts"
import type { SummaryRow } from "../plan/step.ts"
import type { Secret } from "../secret.ts"
import type { ShareRemover } from "../storage/share-remover.ts"
import type { OpenedBucket } from "./open-buckets.ts"

export type StepContext = {
	environment: Environment
	hostConfiguration: HostConfiguration
	/** Steps run on the machine they are about: its disk is at hand. */
	host: LocalHost
	/** Where the host really is, in the operator's words: also for one who sits elsewhere. */
	place: string
	/** All places of snapshots, nearest first. Those that can't be used say why. */
	sources: readonly Source[]
	/** Those of commits, also what `--from` leaves out: which commit ran is asked of all, wherever its code comes from. */
	everySource: readonly Source[]
	/** Opens the places of snapshots now: for a run that mounts the share before. */
	openSources: () => Promise<Pick<StepContext, "sources" | "everySource">>
	/**
	 * The places of models, nearest first: the share's directory of models and the bucket that is their vault, keys
	 * `<directory>/<file>`. Opened when first asked for; those that can't be used say why.
	 */
	openModels: () => Promise<readonly Source[]>
	/** What is remembered of an artifact's files, so that what has not changed isn't read every hour. */
	openDigests: (artifact: string) => Promise<DigestCache>
	/** Every bucket of the environment, to be looked at by `doctor`; nothing is opened before it is asked for. */
	buckets: readonly OpenedBucket[]
	/** Removes snapshots from the share, for the retention alone; without a share there is none. */
	shareRemover?: ShareRemover
	/** Who models are published by, and the token for those that not everybody may read. */
	publisher: { origin: string; token: Secret | undefined }
	/** For git over HTTPS. */
	gitToken: Secret | undefined
	/** AGE_IDENTITY: opens encrypted snapshots. For a restore and a drill alone. */
	ageIdentity: Secret | undefined
	/** How the operator named the environment, for commands to type next: `--env production`, with what else it took. */
	spoken: string
	comfyume: string
	now: () => Date
	randomId: () => string
	signal: AbortSignal
	/** Where steps leave what the closing table shows. */
	summary: Map<string, SummaryRow>
}

/**
 * Which snapshot of an artifact holds in a destination what lies on the host now, as the artifact's own step found it in
 * this run. Each destination for itself: one that is down takes nothing from the others.
 */
export type Held = Map<string, string>

export const heldKey = ({ name }: { name: string }, destination: { name: string }) =>
	`${name}/${destination.name}`

/** Where archives are made and fetched to, on the host. */
export const workDirectory = "/var/lib/comfyume/work"

/** Where a drill brings snapshots back on trial. */
export const drillDirectory = "/var/lib/comfyume/drill"

/**
 * Empties both: after each step, whatever became of it, so that a disk that was too full for one artifact isn't for the
 * next; and before a run, of what a dead one left. Steps come one after the other, and the run holds the lock.
 */
export async function clearWork(host: LocalHost): Promise<void> {
	for (const directory of [workDirectory, drillDirectory]) {
		// Not the directory itself, which may be a disk of its own.
		const names = await readdir(host.path(directory)).catch(() => [])
		for (const name of names) await host.files.remove(join(directory, name))
	}
}

/** Seconds from then until now; for the ages in the closing table. */
export const ageSeconds = ({ now }: Pick<StepContext, "now">, then: Date) =>
	Math.max(0, Math.round((now().getTime() - then.getTime()) / 1000))
