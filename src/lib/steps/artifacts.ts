// Which artifacts a run is about: the catalogue, as far as it concerns this host, and of that what was asked for.
import { type Artifact, namesOf, readCatalogue, selectArtifacts } from "../artifacts/catalogue.ts"
import { stackOf } from "../config/environment.ts"
import { describeStack } from "../stack/description.ts"
import type { StepContext } from "./context.ts"
import { imageStepId } from "./stack-images.ts"

/**
 * The same lists for a backup and a restore, in the order of a restore: all of this host's, and those the run is about.
 * @param packageRoot the directory that holds `manifests/`
 * @throws {OperatorError} (2) for a name that this host has no artifact for
 */
export async function artifactsOf(
	context: StepContext,
	packageRoot: string,
	options: {
		only: readonly string[]
		skip: readonly string[]
		/** What is taken by request only and was requested, beside what `only` names. */
		also?: readonly string[]
		fromOrigin?: boolean
		/** What the command takes by name beside artifacts. */
		others?: readonly string[]
	},
): Promise<{ all: Artifact[]; selected: Artifact[] }> {
	const { environment, hostConfiguration } = context
	const { directory: stack, paths, certificates } = stackOf(environment)
	const places = {
		user: environment.user,
		project: environment.git.project.path,
		scripts: environment.git.scripts.path,
		stack,
		certificates: paths.certificates,
		letsencrypt: certificates.directory,
		outputs: paths.outputs,
		inputs: paths.inputs,
		backups: environment.directories.local,
	}
	const catalogue = await readCatalogue(packageRoot, hostConfiguration.role, places, imagesOf(context))
	const hasModels = hasVault(environment) || options.fromOrigin === true
	// A host without an address of its own in the tailnet has no identity there to lose.
	const all = catalogue
		.filter(({ name }) => name !== tailscaleIdentity || hostConfiguration.tailscaleAddress !== undefined)
		.filter((artifact) => !namesOf(artifact).some((name) => environment.backups.without.includes(name)))
		// Models lie on the share and are kept in a bucket of their own, or come from who published them.
		.filter(({ kind }) => kind !== "models" || (environment.share !== undefined && hasModels))
	return { all, selected: selectArtifacts(all, options) }
}

const imagesOfRole = {
	app: ["queueManager", "authGate", "admin", "frontend", "nginx", "redis"],
	worker: ["worker", "workerAgent"],
} as const

/** Artifact -> image, of the stack's images that run on a host of this role. */
function imagesOf({ environment, hostConfiguration, host }: StepContext): ReadonlyMap<string, string> {
	// A directory has no Docker of its own. Where a stack is described beside it, that is this machine's.
	if (host.standIn && environment.stack === undefined) return new Map()
	const { images } = describeStack(environment, [])
	return new Map(
		imagesOfRole[hostConfiguration.role]
			// What is named by its digest comes from a registry, and Docker can't give a loaded image that name.
			.filter((name) => !images[name].includes("@"))
			.map((name) => [imageStepId(name), images[name]]),
	)
}

const hasVault = ({ objectStore }: StepContext["environment"]) => objectStore?.buckets.models !== undefined

/** What users have made and uploaded. */
export const outputsArtifact = "user-outputs"
export const tailscaleIdentity = "tailscale-identity"
