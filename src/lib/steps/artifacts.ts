// Which artifacts a run is about: the catalogue, as far as it concerns this host, and of that what was asked for.
import { type Artifact, readCatalogue, selectArtifacts } from "../artifacts/catalogue.ts"
import { stackOf } from "../config/environment.ts"
import type { StepContext } from "./context.ts"

/**
 * The same lists for a backup and a restore, in the order of a restore: all of this host's, and those the run is about.
 * @param packageRoot the directory that holds `manifests/`
 * @throws {OperatorError} (2) for a name that this host has no artifact for
 */
export async function artifactsOf(
	{ environment, hostConfiguration }: StepContext,
	packageRoot: string,
	options: {
		only: readonly string[]
		skip: readonly string[]
		/** What is taken by request only and was requested, beside what `only` names. */
		also?: readonly string[]
		fromOrigin?: boolean
	},
): Promise<{ all: Artifact[]; selected: Artifact[] }> {
	const { directory: stack, paths, certificates } = stackOf(environment)
	const catalogue = await readCatalogue(packageRoot, hostConfiguration.role, {
		user: environment.user,
		project: environment.git.project.path,
		scripts: environment.git.scripts.path,
		stack,
		certificates: paths.certificates,
		letsencrypt: certificates.directory,
		outputs: paths.outputs,
		inputs: paths.inputs,
		backups: environment.directories.local,
	})
	const hasModels = hasVault(environment) || options.fromOrigin === true
	// A host without an address of its own in the tailnet has no identity there to lose.
	const all = catalogue
		.filter(({ name }) => name !== tailscaleIdentity || hostConfiguration.tailscaleAddress !== undefined)
		.filter(({ name }) => !environment.backups.without.includes(name))
		// Models lie on the share and are kept in a bucket of their own, or come from who published them.
		.filter(({ kind }) => kind !== "models" || (environment.share !== undefined && hasModels))
	return { all, selected: selectArtifacts(all, options) }
}

const hasVault = ({ objectStore }: StepContext["environment"]) => objectStore?.buckets.models !== undefined

/** What users have made and uploaded. */
export const outputsArtifact = "user-outputs"
export const tailscaleIdentity = "tailscale-identity"
