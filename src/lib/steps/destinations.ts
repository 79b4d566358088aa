// Where backups go, and when they are due there.
import type { Artifact, SnapshotArtifact } from "../artifacts/catalogue.ts"
import type { Schedule } from "../artifacts/schedule.ts"
import { type Source, sourcesOf } from "../artifacts/source.ts"
import { isAbsent } from "../artifacts/tree.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { imageStore } from "../stack/image-store.ts"
import type { StepContext } from "./context.ts"

export type Destination = {
	destination: Source
	/** Those whose snapshots go there. */
	artifacts: readonly SnapshotArtifact[]
}

/**
 * The share and R2's buckets, as far as snapshots of these artifacts go there.
 * @throws {OperatorError} (2) when neither is configured: nothing to look at is no good state
 */
export function destinationsOf(context: StepContext, artifacts: readonly Artifact[]): readonly Destination[] {
	const snapshots = artifacts.filter((artifact) => artifact.kind !== "models")
	const destinations = context.sources.filter(({ name }) => name !== "local")
	if (destinations.length > 0)
		return (
			destinations
				.map((destination) => ({
					destination,
					artifacts: snapshots.filter((artifact) => sourcesOf(context, artifact).includes(destination)),
				}))
				// Also where the models alone are asked for, the places must be in reach.
				.filter(({ artifacts }) => artifacts.length > 0 || snapshots.length === 0)
		)
	throw new OperatorError(
		"there is nowhere to back up to: neither a share nor an object store is configured",
		{
			exitCode: exitCodes.usage,
			hint: "comfyume config check",
		},
	)
}

/** When an artifact is backed up to a destination; undefined: never by itself. */
export const scheduleOf = ({ schedule }: Artifact, { name }: Source): Schedule | undefined =>
	name === "local" ? undefined : schedule?.[name]

/** The same of a destination that may be another bucket than the artifact's: then nothing of it goes there. */
export const scheduleIn = (
	context: StepContext,
	artifact: Artifact,
	destination: Source,
): Schedule | undefined =>
	sourcesOf(context, artifact).includes(destination) ? scheduleOf(artifact, destination) : undefined

/** What a server can do without, and doesn't have: nothing to back up. */
export async function isNotHere({ host }: StepContext, artifact: SnapshotArtifact): Promise<boolean> {
	// A Docker that gives no answer has not said that there is none.
	if (artifact.kind === "image")
		return imageStore(host)
			.find(artifact.image)
			.then(
				(found) => found === undefined,
				() => false,
			)
	return artifact.kind === "archive" && artifact.optional && (await isAbsent(host, artifact))
}
