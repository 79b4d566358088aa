// Backups that stopped weeks ago must not pass for a server's last state.

import type { SnapshotArtifact } from "../artifacts/catalogue.ts"
import { findCandidates, newestSidecar } from "../artifacts/chain.ts"
import { labelOf, sourcesOf } from "../artifacts/source.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { type Step, satisfied } from "../plan/step.ts"
import { ageSeconds, type StepContext } from "./context.ts"

const clockToleranceMs = 5 * 60 * 1000

const freshnessStep = "backups-are-fresh"

/**
 * The newest snapshot of any artifact is recent enough. Of any: what never changes (host keys) is rightly old, but a
 * server in use changes somewhere all the time.
 * @param artifacts all of the host's, also those that the run isn't about
 * @param allowUnverified backups of the older scripts are taken too, which this step doesn't look at
 * @param again the command to type with a date, once the operator has decided to take old data
 */
export function backupsAreFresh(
	context: StepContext,
	artifacts: readonly SnapshotArtifact[],
	again: string,
	allowUnverified = false,
): Step {
	const { environment, hostConfiguration, sources, spoken } = context
	const wanted = {
		environment: environment.name,
		host: hostConfiguration.name,
		spoken,
		allowUnverified: false,
	}
	/** Of this host, and finished: only what has a sidecar counts. */
	const newestOf = async (artifact: SnapshotArtifact): Promise<Date | undefined> => {
		try {
			const candidates = await findCandidates(sourcesOf(context, artifact), artifact, wanted)
			const found = await newestSidecar(candidates, artifact, wanted)
			return found?.candidate.name.takenAt
		} catch {
			// The artifact's own step says what is wrong with it.
			return undefined
		}
	}
	return {
		id: freshnessStep,
		title: "the backups are recent",
		check: async () => {
			const found = await Promise.all(artifacts.map((artifact) => newestOf(artifact)))
			const newest = found
				.flatMap((takenAt) => takenAt ?? [])
				.filter((takenAt) => takenAt.getTime() <= context.now().getTime() + clockToleranceMs)
				.sort((a, b) => b.getTime() - a.getTime())[0]
			if (sources.every(({ trouble }) => trouble !== undefined)) return satisfied("no source could be asked")
			if (newest === undefined && !found.some((takenAt) => takenAt !== undefined)) {
				// What can't be asked may have them, and older ones have no date that can be believed.
				const answered = sources.filter(({ trouble }) => trouble === undefined)
				if (allowUnverified || answered.length < sources.length) return satisfied("there are none to be old")
				throw new OperatorError(
					`there is no backup of ${hostConfiguration.name}: ${answered.map(labelOf).join(" and ") || "no place"} ${answered.length > 1 ? "have" : "has"} nothing of it`,
					{ hint: `${again} --first   # where it has never been backed up: new passwords, code from git` },
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
