// The artifacts of a restore as steps, in the order of the platform's runbook. Who the server is comes first, and the
// identity's files stand in place before anything that uses them is started: a daemon that starts without them makes up
// a new identity.
import type { ArchiveArtifact, Artifact, SnapshotArtifact } from "../artifacts/catalogue.ts"
import type { SourceName } from "../artifacts/source.ts"
import type { Step } from "../plan/step.ts"
import type { Twin } from "../tailscale/tailnet.ts"
import { tailscaleIdentity } from "./artifacts.ts"
import { restoreCheckout } from "./checkout.ts"
import type { StepContext } from "./context.ts"
import {
	hostKeysOnTheWire,
	restoreHostKeys,
	restoreTailscaleIdentity,
	tailscaleIsFree,
	tailscaleIsUp,
} from "./identity.ts"
import { platformUser } from "./machine/user.ts"
import { restoreArchive } from "./restore-archive.ts"
import { restoreImage } from "./restore-image.ts"

export type ArtifactOptions = {
	from?: readonly (SourceName | "git")[]
	/** As it was at this time. */
	at?: Date
	allowUnverified?: boolean
	identityIsFree?: boolean
	twin: Twin
	/** The command to type again. */
	again: string
	/** Steps of the part before that all of these require. */
	requires: readonly string[]
	/** What follows an artifact by its name: that the firewall it configures is on, say. */
	after?: ReadonlyMap<string, Step>
	/** The platform's user is there, also where no artifact needs it. */
	withUser?: boolean
}

export const isSnapshot = (artifact: Artifact): artifact is SnapshotArtifact => artifact.kind !== "models"

/** A step for each, and those that belong to it. What isn't in the list isn't required by what is. */
export function artifactSteps(
	context: StepContext,
	artifacts: readonly SnapshotArtifact[],
	options: ArtifactOptions,
): Step[] {
	const { host } = context
	const gitAllowed = options.from === undefined || options.from.includes("git")
	const dated = options.at === undefined ? {} : { at: options.at }
	const archive = { ...dated, allowUnverified: options.allowUnverified === true }
	const isOthers = ({ name }: SnapshotArtifact) => !identityArtifacts.includes(name)
	const needsUser = options.withUser === true || (artifacts.some(isOthers) && !host.standIn)

	const { requires: fresh } = options
	const user = needsUser ? [platformUser(context)] : []
	const afterUser = [...fresh, ...user.map(({ id }) => id)]

	const stepsOf = (artifact: SnapshotArtifact): Step[] => {
		if (artifact.kind === "git")
			return [restoreCheckout(context, artifact, { ...dated, requires: afterUser, gitAllowed })]
		if (artifact.kind === "image") return [restoreImage(context, artifact, { ...dated, requires: fresh })]
		switch (artifact.name) {
			case tailscaleIdentity:
				return tailscaleSteps(context, artifact, { ...archive, requires: fresh }, options)
			case "ssh-host-keys":
				return [
					restoreHostKeys(context, artifact, { ...archive, requires: fresh }),
					// A directory has no sshd that could show its keys.
					...(host.standIn ? [] : [hostKeysOnTheWire(context, artifact, [artifact.name])]),
				]
			case "env-file":
				// It lies in the checkout, which must be there first.
				return [
					restoreArchive(context, artifact, {
						...archive,
						requires: [
							...afterUser,
							...artifacts.filter(({ name }) => name === "project").map(({ name }) => name),
						],
					}),
				]
			default:
				return [restoreArchive(context, artifact, { ...archive, requires: afterUser })]
		}
	}
	const identity = artifacts.filter(({ name }) => identityArtifacts.includes(name))
	const others = artifacts.filter(isOthers)
	const after = new Map(options.after)
	const withFollower = (artifact: SnapshotArtifact) => {
		const follower = after.get(artifact.name)
		after.delete(artifact.name)
		return [...stepsOf(artifact), ...(follower === undefined ? [] : [follower])]
	}
	const steps = [...identity.flatMap(withFollower), ...user, ...others.flatMap(withFollower)]
	// Also where nothing of it came from a backup.
	return [...steps, ...after.values()]
}

const identityArtifacts: readonly string[] = [tailscaleIdentity, "ssh-host-keys"]

function tailscaleSteps(
	context: StepContext,
	artifact: ArchiveArtifact,
	archive: { requires: readonly string[]; at?: Date; allowUnverified: boolean },
	{ twin, again, identityIsFree }: ArtifactOptions,
): Step[] {
	const expected = context.hostConfiguration.tailscaleAddress
	if (expected === undefined) return []
	const free = tailscaleIsFree(context, expected, {
		twin,
		declaredFree: identityIsFree === true,
		again,
	})
	return [
		free,
		restoreTailscaleIdentity(context, artifact, expected, {
			...archive,
			requires: [...archive.requires, free.id],
		}),
		tailscaleIsUp(context, expected, [artifact.name]),
	]
}
