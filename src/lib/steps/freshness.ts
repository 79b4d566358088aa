// Backups that stopped weeks ago must not pass for a server's last state.

import type { SnapshotArtifact } from "../artifacts/catalogue.ts"
import { findCandidates, newestSidecar } from "../artifacts/chain.ts"
import { sourcesOf } from "../artifacts/source.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { type Step, satisfied } from "../plan/step.ts"
import { ageSeconds, type StepContext } from "./context.ts"

const clockToleranceMs = 5 * 60 * 1000

const freshnessStep = "backups-are-fresh"

/**
 * The newest snapshot of any artifact is recent enough. Of any: what never changes (host keys) is rightly old, but a
 * server in use changes somewhere all the time.
 * @param artifacts all of the host's, also those that the run isn't about
 * @param everything the run is about all of them: then that there is no backup at all is said here, once
 * @param again the command to type with a date, once the operator has decided to take old data
 */
export function backupsAreFresh(
	context: StepContext,
	artifacts: readonly SnapshotArtifact[],
	again: string,
	{ everything }: { everything: boolean },
): Step {
	const { environment, hostConfiguration, sources, spoken } = context
	const wanted = {
		environment: environment.name,
		host: hostConfiguration.name,
		spoken,
		allowUnverified: false,
	}
	/** Of this host, and finished: only what has a sidecar counts as recent. */
	const look = async (
		artifact: SnapshotArtifact,
		allowUnverified = false,
	): Promise<{ listed: boolean; newest?: Date | undefined }> => {
		try {
			const asked = { ...wanted, allowUnverified }
			const candidates = await findCandidates(sourcesOf(context, artifact), artifact, asked)
			if (candidates.length === 0) return { listed: false }
			const found = await newestSidecar(candidates, artifact, wanted)
			return { listed: true, newest: found?.candidate.name.takenAt }
		} catch {
			// The artifact's own step says what is wrong with it.
			return { listed: true }
		}
	}
	/** Whoever has backups of the older scripts has been backed up. Whole buckets are listed for them, so asked last. */
	const haveNoOlder = async () => {
		const found = await Promise.all(artifacts.map((artifact) => look(artifact, true)))
		return found.every(({ listed }) => !listed)
	}
	return {
		id: freshnessStep,
		title: "the backups are recent",
		check: async () => {
			const found = await Promise.all(artifacts.map((artifact) => look(artifact)))
			const newest = found
				.flatMap(({ newest }) => newest ?? [])
				.filter((takenAt) => takenAt.getTime() <= context.now().getTime() + clockToleranceMs)
				.sort((a, b) => b.getTime() - a.getTime())[0]
			if (sources.every(({ trouble }) => trouble !== undefined)) return satisfied("no source could be asked")
			// One that can't be asked may have them.
			const all = sources.every(({ trouble }) => trouble === undefined)
			if (everything && all && found.every(({ listed }) => !listed) && (await haveNoOlder())) {
				const places = [...new Set(sources.map(({ name }) => name))]
				throw new OperatorError(
					`there is no backup of ${hostConfiguration.name}: ${places.join(" and ")} ${places.length > 1 ? "have" : "has"} nothing of it`,
					{
						hint: `comfyume restore ${spoken} --first   # where it has never been backed up: new passwords, code from git`,
					},
				)
			}
			if (newest === undefined) return satisfied("there are none to be old")
			const hours = ageSeconds(context, newest) / 3600
			const limit = environment.restore.refuseOlderThanHours
			if (hours <= limit) return satisfied(`the newest is ${hours.toFixed(1)} h old`)
			throw new OperatorError(
				`the newest snapshot of ${environment.name} is ${Math.round(hours)} h old, and ${limit} h are allowed: backups stopped, or the newer ones are elsewhere`,
				{
					exitCode: exitCodes.refusedByGuard,
					hint: `${again} --at ${newest.toISOString()}   # takes them all the same`,
				},
			)
		},
		apply: async () => {},
	}
}
