// A machine that has no identity to come back: it joins the tailnet as a new one.
import { needed, type Step, satisfied } from "../../plan/step.ts"
import type { Secret } from "../../secret.ts"
import {
	hasOwnTailscale,
	isConnected,
	joinTailnet,
	readAddress,
	runsSsh,
	sshTrouble,
} from "../../tailscale/tailscale.ts"
import type { StepContext } from "../context.ts"

/**
 * It is connected, as whoever; by the key (TAILSCALE_AUTH_KEY), or by a login that is shown and waited for. Which address
 * it got is told: from then on it is the machine's identity.
 */
export function tailnetIsJoined(
	{ host, hostConfiguration, signal, spoken }: StepContext,
	authKey: Secret | undefined,
): Step {
	return {
		id: "tailscale-is-up",
		title: "the machine is in the tailnet",
		check: async (report) => {
			if (!(await hasOwnTailscale(host)))
				return satisfied("a directory stands in for the machine: it has no Tailscale")
			// Asked first: before the packages have come there is nobody who could answer more.
			const address = await readAddress(host)
			if (address === undefined) return needed("it is in no tailnet")
			const [connected, ssh] = await Promise.all([isConnected(host), runsSsh(host)])
			if (!connected) return needed("it is in no tailnet")
			if (ssh !== false) return needed(sshTrouble(ssh))
			if (hostConfiguration.tailscaleAddress === undefined)
				report.note(
					`its address is ${address}: write tailscaleAddress: ${address} into comfyume.yaml in place of tailnet: join, then: comfyume restore ${spoken} --only machine; from then on its identity is backed up`,
				)
			return satisfied(`tailscale ip -4 answers ${address}`)
		},
		apply: (report) => joinTailnet(host, authKey, { say: report.note, signal }),
	}
}
