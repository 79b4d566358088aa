// What of a backup anybody can read who can read the share or the bucket. Said once a run, as long as it is so.
import type { ArchiveArtifact, Artifact } from "../artifacts/catalogue.ts"
import { labelOf, sourcesOf } from "../artifacts/source.ts"
import type { StepContext } from "./context.ts"
import { isNotHere } from "./destinations.ts"

/**
 * In the operator's words, of what this host has; undefined where nothing secret is stored, or somebody is named to
 * encrypt it for.
 */
export async function inTheClear(
	context: StepContext,
	artifacts: readonly Artifact[],
): Promise<string | undefined> {
	const { environment } = context
	const secret: ArchiveArtifact[] = []
	for (const artifact of artifacts)
		if (artifact.kind === "archive" && artifact.secret && !(await isNotHere(context, artifact)))
			secret.push(artifact)
	const places = new Set(
		secret
			.flatMap((artifact) => sourcesOf(context, artifact).map(labelOf))
			.filter((name) => name !== "local"),
	)
	if (places.size === 0 || environment.backups.recipients.length > 0) return undefined
	return (
		`not encrypted: whoever can read ${[...places].join(" or ")} can read the keys and passwords in ` +
		`${secret.map(({ name }) => name).join(", ")}. Name age public keys under backups.recipients of ${environment.name}`
	)
}
