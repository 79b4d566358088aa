// The machine itself in a restore: what must hold before a backup can be read, and what belongs to an artifact once it
// has come back. In the order of the platform's runbook.
import type { Step } from "../plan/step.ts"
import type { StepContext } from "./context.ts"
import { operatorsAreIn, operatorsReachUser } from "./machine/access.ts"
import { dockerIsThere } from "./machine/docker.ts"
import { jailIsLive } from "./machine/fail2ban.ts"
import { firewallIsExact } from "./machine/firewall.ts"
import { configurationIsInstalled, programIsInstalled } from "./machine/own-files.ts"
import { packagesAreThere } from "./machine/packages.ts"
import { scratchDirectories, scratchIsMounted } from "./machine/scratch.ts"
import { secretsAreInstalled, secretsReachKeyring } from "./machine/secrets-file.ts"
import { shareDirectories, shareIsMounted, shareIsOurs, shareIsReachable } from "./machine/share.ts"
import { storagePathsAreDirect } from "./machine/storage-paths.ts"
import { tailnetIsJoined } from "./machine/tailnet.ts"
import { ubuntuProIsAttached } from "./machine/ubuntu-pro.ts"
import { userIsComplete } from "./machine/user.ts"
import type { RestoreRun } from "./restore-options.ts"

/** Before anything is asked of a backup. Who may repair the machine from outside comes first. */
export function machineFirst(
	context: StepContext,
	{ secrets }: RestoreRun,
	{ formatScratch }: { formatScratch?: string },
): Step[] {
	const { share, scratch } = context.environment
	return [
		operatorsAreIn(context),
		packagesAreThere(context),
		dockerIsThere(context),
		ubuntuProIsAttached(context, secrets.find("UBUNTU_PRO_TOKEN")),
		...(share === undefined
			? []
			: chained([
					shareIsReachable(context),
					shareIsMounted(context),
					shareIsOurs(context),
					shareDirectories(context),
				])),
		...(scratch === undefined
			? []
			: chained([scratchIsMounted(context, formatScratch), scratchDirectories(context)])),
	]
}

/**
 * The steps of `machineFirst` without which no container may start: on an unmounted share or scratch disk, users' files
 * would lie on the root disk, and on another environment's share among that one's.
 */
export const placesOfContainers = ({
	share,
	scratch,
}: Pick<StepContext["environment"], "share" | "scratch">): string[] => [
	...(share === undefined ? [] : ["share", "share-sentinel"]),
	...(scratch === undefined ? [] : ["scratch"]),
]

/** What the machine needs when an artifact has come back, by the artifact's name. */
export function machineAfter(context: StepContext): ReadonlyMap<string, Step> {
	return new Map([
		// What is shut out must not be us: the keys stand, and SSH's port is among the rules.
		["ufw", firewallIsExact(context)],
		["fail2ban", jailIsLive(context)],
	])
}

/** When everything has come back: the user, and comfyume's own. */
export function machineLast(
	context: StepContext,
	{ configuration, secrets, packageRoot }: RestoreRun,
): Step[] {
	const { hostConfiguration, environment } = context
	const installed = [
		programIsInstalled(context, packageRoot),
		configurationIsInstalled(context, configuration.text),
		secretsAreInstalled(context, secrets),
	]
	return [
		requiring(userIsComplete(context), "user"),
		requiring(operatorsReachUser(context), "user"),
		// With an address it is that machine again, whose identity has come back by now.
		...(hostConfiguration.tailnet === "join" && hostConfiguration.tailscaleAddress === undefined
			? [tailnetIsJoined(context, secrets.find("TAILSCALE_AUTH_KEY"))]
			: []),
		...installed,
		...(environment.keyring
			? [requiring(secretsReachKeyring(context), ...installed.map(({ id }) => id))]
			: []),
		storagePathsAreDirect(context),
	]
}

/** Each requires the one before. */
const chained = (steps: readonly Step[]): Step[] =>
	steps.map((step, index) => {
		const before = steps[index - 1]
		return before === undefined ? step : requiring(step, before.id)
	})

const requiring = (step: Step, ...ids: readonly string[]): Step => ({
	...step,
	requires: [...(step.requires ?? []), ...ids],
})
