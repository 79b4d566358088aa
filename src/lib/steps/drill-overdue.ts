// Whose drills are too long ago, for `backup status`.
import type { Artifact } from "../artifacts/catalogue.ts"
import { drillsLookedAt, latestResult, readDrills } from "../artifacts/drill-record.ts"
import type { Holdings } from "../artifacts/standing.ts"
import type { StepContext } from "./context.ts"
import { scheduleIn } from "./destinations.ts"

/** An artifact in a destination whose last good drill is older than this is worth a word. */
const noteAfterMs = 35 * 24 * 60 * 60 * 1000

/**
 * Which artifacts were not drilled with success for five weeks, in one sentence for `backup status`; undefined when all
 * were.
 */
export async function overdueDrills(
	context: StepContext,
	holdings: readonly Holdings[],
	artifacts: readonly Artifact[],
): Promise<string | undefined> {
	const drills = await readDrills(
		holdings,
		{ environment: context.environment.name, host: context.hostConfiguration.name },
		{ now: context.now(), most: drillsLookedAt },
	)
	const overdue = holdings.flatMap(({ destination }) =>
		artifacts
			.filter(
				(artifact) => artifact.kind !== "models" && scheduleIn(context, artifact, destination) !== undefined,
			)
			.filter(({ name }) => {
				const good = latestResult(drills, { artifact: name, destination: destination.name, good: true })
				return good === undefined || context.now().getTime() - good.at.getTime() > noteAfterMs
			})
			.map(({ name }) => `${name} on ${destination.name}`),
	)
	if (overdue.length === 0) return undefined
	const which =
		overdue.length > 4
			? `${overdue.slice(0, 3).join(", ")} and ${overdue.length - 3} more`
			: overdue.join(", ")
	return `no good drill in the last five weeks of ${which}: comfyume backup drill ${context.spoken}`
}
