// Backups that stopped weeks ago must not pass for a server's last state.
import type { Artifact } from "../artifacts/catalogue.ts"
import { listCopies } from "../artifacts/source.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { type Step, satisfied } from "../plan/step.ts"
import { ageSeconds, type StepContext } from "./context.ts"

export const freshnessStep = "backups-are-fresh"

/**
 * The newest snapshot of any artifact is recent enough. Of any: what never changes (host keys) is rightly old, but a
 * server in use changes somewhere all the time.
 * @param artifacts all of the host's, also those that the run isn't about
 * @param again the command to type with a date, once the operator has decided to take old data
 */
export function backupsAreFresh(context: StepContext, artifacts: readonly Artifact[], again: string): Step {
	const { environment, sources } = context
	return {
		id: freshnessStep,
		title: "the backups are recent",
		check: async () => {
			const usable = sources.filter(({ trouble }) => trouble === undefined)
			const copies = await Promise.all(
				usable.flatMap((source) => artifacts.map(({ name }) => listCopies(source, environment.name, name))),
			)
			const newest = copies
				.flat()
				.map(({ name }) => name)
				.sort((a, b) => b.takenAt.getTime() - a.takenAt.getTime())[0]
			if (newest === undefined) return satisfied("there are none to be old")
			const hours = ageSeconds(context, newest.takenAt) / 3600
			const limit = environment.restore.refuseOlderThanHours
			if (hours <= limit) return satisfied(`the newest is ${hours.toFixed(1)} h old`)
			throw new OperatorError(
				`the newest snapshot of ${environment.name} is ${Math.round(hours)} h old, and ${limit} h are allowed: backups stopped, or the newer ones are elsewhere`,
				{
					exitCode: exitCodes.refusedByGuard,
					hint: `${again} --at ${newest.takenAt.toISOString()}   # takes them all the same`,
				},
			)
		},
		apply: async () => {},
	}
}
