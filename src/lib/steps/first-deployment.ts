// A server that has never been backed up: there is nothing to restore, and that must be so. Wrong credentials or a wrong
// bucket look the same, and new passwords in the middle of a workshop would be the price.
import type { SnapshotArtifact } from "../artifacts/catalogue.ts"
import { anyConcerns, findCandidates } from "../artifacts/chain.ts"
import { labelOf, type Source, sourcesOf } from "../artifacts/source.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { needed, type Step, satisfied } from "../plan/step.ts"
import type { StepContext } from "./context.ts"

export const firstDeploymentStep = "never-backed-up"

/** It can't be asked because nobody has mounted it: in a dry run, an earlier step would. */
export const isUnmountedShare = ({ name, trouble }: Source): boolean =>
	name === "share" && trouble?.exitCode === exitCodes.unreachable

/**
 * Every place of snapshots answers, and none has one of this host; of the older scripts' neither.
 * @param options.mounts an earlier step mounts the share; in a dry run it isn't there to be asked yet
 */
export function neverBackedUp(
	context: StepContext,
	artifacts: readonly SnapshotArtifact[],
	{ dryRun, mounts }: { dryRun: boolean; mounts: boolean },
): Step {
	const { environment, hostConfiguration, sources, spoken } = context
	const { name } = hostConfiguration
	const wanted = { environment: environment.name, host: name, spoken, allowUnverified: true }
	return {
		id: firstDeploymentStep,
		title: `${name} has never been backed up`,
		async check(report) {
			const others = new Set<string>()
			for (const artifact of artifacts) {
				const places = sourcesOf(context, artifact)
				const candidates = await findCandidates(places, artifact, wanted)
				if (!(await anyConcerns(name, candidates)) && !candidates.some(({ older }) => older)) {
					if (candidates.length > 0) others.add(artifact.name)
					continue
				}
				throw new OperatorError(
					`there are backups of ${artifact.name}, the newest of ${candidates[0]?.name.takenAt.toISOString()}: this is no first deployment`,
					{
						exitCode: exitCodes.refusedByGuard,
						hint: `comfyume restore ${spoken} --dry-run   # without --first`,
					},
				)
			}
			if (others.size > 0)
				report.note(
					`${environment.name} has backups of other hosts (${[...others].join(", ")}): if ${name} is one of them under a new name, stop, and restore it under its old one`,
				)
			// Asked last: a listing that failed is known by now.
			const silents = sources.filter(({ trouble }) => trouble !== undefined)
			const silent = silents.find((source) => !(dryRun && mounts && isUnmountedShare(source)))
			if (silent === undefined && silents.length > 0)
				return needed("the share is asked when it is mounted; of what answers now, nobody has anything of it")
			if (silent?.trouble !== undefined)
				throw new OperatorError(
					`nobody can tell whether ${name} was ever backed up: ${labelOf(silent)} can't be asked: ${silent.trouble.message}`,
					{ exitCode: silent.trouble.exitCode, hint: silent.trouble.hint ?? `comfyume doctor ${spoken}` },
				)
			if (hostConfiguration.tailscaleAddress !== undefined)
				throw new OperatorError(
					`${name} has a tailscaleAddress in comfyume.yaml, and on a first deployment no identity can come back`,
					{
						exitCode: exitCodes.usage,
						hint: "write tailnet: join in its place; which address it got is said, and belongs there from then on",
					},
				)
			const asked = [...new Set(sources.map(({ name }) => name))]
			return satisfied(
				asked.length === 0
					? "no place for backups is configured"
					: `${asked.join(" and ")} ${asked.length === 1 ? "has" : "have"} nothing of it`,
			)
		},
		apply: async () => {},
	}
}
