// The steps around a server's identity: its Tailscale address and its SSH host keys.
import type { ArchiveArtifact } from "../artifacts/catalogue.ts"
import { readTree } from "../artifacts/tree.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { command } from "../host/command.ts"
import { fingerprintOf } from "../host/known-hosts.ts"
import type { LocalHost } from "../host/local.ts"
import { needed, type Step, satisfied } from "../plan/step.ts"
import type { Twin } from "../tailscale/tailnet.ts"
import {
	hasOwnTailscale,
	isConnected,
	readAddress,
	runsSsh,
	sshTrouble,
	startTailscale,
	stopTailscale,
} from "../tailscale/tailscale.ts"
import type { StepContext } from "./context.ts"
import { checkSshd, sshdPorts } from "./machine/sshd.ts"
import { type RestoreArchiveOptions, restoreArchive } from "./restore-archive.ts"

/** Stops a restore while another machine may be online with the identity that is about to come back. */
export function tailscaleIsFree(
	{ host }: StepContext,
	expected: string,
	{ twin, declaredFree, again }: { twin: Twin; declaredFree: boolean; again: string },
): Step {
	const refuse = (because: string, hint: string) => {
		throw new OperatorError(because, { exitCode: exitCodes.refusedByGuard, hint })
	}
	return {
		id: "tailscale-is-free",
		title: `the identity of ${expected} is free`,
		check: async () => {
			if ((await readAddress(host)) === expected) return satisfied("this machine has the address already")
			if (twin.state === "online")
				refuse(
					`${twin.because}: two machines with one identity would fight over it`,
					"shut the other machine down, or take it off the tailnet: tailscale down",
				)
			if (twin.state === "unknown" && !declaredFree)
				refuse(
					`nobody can tell whether another machine is online as ${expected}: ${twin.because}`,
					`${again} --identity-is-free   # once you know that the lost machine is off`,
				)
			return satisfied(twin.state === "offline" ? twin.because : "the operator says so (--identity-is-free)")
		},
		apply: async () => {},
	}
}

/** The identity's files. A machine that is up with its address has its identity, whatever the daemon has written since. */
export function restoreTailscaleIdentity(
	context: StepContext,
	artifact: ArchiveArtifact,
	expected: string,
	options: Pick<RestoreArchiveOptions, "requires" | "at" | "allowUnverified">,
): Step {
	const { host } = context
	return restoreArchive(context, artifact, {
		...options,
		alive: async () =>
			(await readAddress(host)) === expected ? satisfied(`the machine is up as ${expected}`) : undefined,
		before: async () => {
			if (await hasOwnTailscale(host)) await stopTailscale(host)
		},
	})
}

/** The daemon runs, as who the machine was. Must never be touched before the identity is in place. */
export function tailscaleIsUp(
	{ host, signal }: StepContext,
	expected: string,
	requires: readonly string[],
): Step {
	return {
		id: "tailscale-is-up",
		title: `Tailscale is up as ${expected}`,
		requires,
		check: async () => {
			if (!(await hasOwnTailscale(host)))
				return satisfied("a directory stands in for the machine: it has no Tailscale")
			// Asked first: before the packages have come there is nobody who could answer more.
			const address = await readAddress(host)
			if (address === undefined) return needed("it is not running")
			const [connected, ssh] = await Promise.all([isConnected(host), runsSsh(host)])
			if (address !== expected) return needed(`it is up as ${address}`)
			if (!connected) return needed(`it has the address ${address}, and is not connected`)
			if (ssh !== false) return needed(sshTrouble(ssh))
			return satisfied(`tailscale ip -4 answers ${address}`)
		},
		apply: (report) => startTailscale(host, expected, { say: report.note, signal }),
	}
}

/** The host keys' files; keys of another server than the configured one are refused and the old ones put back. */
export function restoreHostKeys(
	context: StepContext,
	artifact: ArchiveArtifact,
	options: Pick<RestoreArchiveOptions, "requires" | "at" | "allowUnverified">,
): Step {
	const { host, hostConfiguration } = context
	const expected = hostConfiguration.hostKeys
	/** Says what is wrong when none of the host's keys is one of those that are configured. */
	const strangers = async (): Promise<string[]> => {
		const found = await fileFingerprints(host, artifact)
		if (expected.length === 0 || expected.some((fingerprint) => found.includes(fingerprint))) return []
		return [`none of the host keys is configured for ${hostConfiguration.name}: ${found.join(", ")}`]
	}
	return restoreArchive(context, artifact, {
		...options,
		problems: strangers,
		validate: async () => {
			const [problem] = await strangers()
			if (problem === undefined) return
			throw new OperatorError(`the restored keys are another server's: ${problem}`, {
				exitCode: exitCodes.refusedByGuard,
				hint: "compare hostKeys in comfyume.yaml",
			})
		},
	})
}

/** sshd answers with the restored keys: read from the wire, not from the files. */
export function hostKeysOnTheWire(
	{ host, hostConfiguration }: StepContext,
	artifact: ArchiveArtifact,
	requires: readonly string[],
): Step {
	const expected = hostConfiguration.hostKeys
	return {
		id: "ssh-on-the-wire",
		title: "sshd answers with the restored host keys",
		requires,
		check: async () => {
			const onDisk = await fileFingerprints(host, artifact)
			const onWire = await wireFingerprints(host)
			const strange = onWire.filter((fingerprint) => !onDisk.includes(fingerprint))
			if (onWire.length === 0) return needed("sshd doesn't answer")
			if (strange.length > 0) return needed(`sshd still shows ${strange.join(", ")}`)
			const lacking = expected.filter((fingerprint) => !onWire.includes(fingerprint))
			if (expected.length > 0 && lacking.length === expected.length)
				return needed(`sshd shows ${onWire.join(", ")}, and none of them is configured for this host`)
			// One type's key was made anew, and whoever knows the server by that one is warned off.
			if (lacking.length > 0) return needed(`sshd doesn't show ${lacking.join(", ")}, which is configured`)
			return satisfied(`sshd shows ${onWire.join(", ")}`)
		},
		apply: async () => {
			await checkSshd(host)
			// The unit is called `ssh` on Debian and Ubuntu; sessions that are open go on.
			await host.execute(command("systemctl", "restart", "ssh"))
		},
	}
}

async function wireFingerprints(host: LocalHost): Promise<string[]> {
	const [port = 22] = await sshdPorts(host)
	// Side by side: each is a connection of its own.
	const said = await Promise.all(
		["rsa", "ecdsa", "ed25519"].map((type) =>
			host.capture(command("ssh-keyscan", "-T", "5", "-t", type, "-p", `${port}`, "127.0.0.1"), {
				allowedExitCodes: [1],
			}),
		),
	)
	return said
		.flatMap(({ stdout }) => stdout.split("\n"))
		.filter((line) => line !== "" && !line.startsWith("#"))
		.map((line) => fingerprintOf(Buffer.from(line.split(" ")[2] ?? "", "base64")))
		.sort()
}

async function fileFingerprints(host: LocalHost, artifact: ArchiveArtifact): Promise<string[]> {
	const { entries } = await readTree(host, artifact)
	const publicFiles = entries.filter(({ path }) => path.endsWith(".pub"))
	const contents = await Promise.all(publicFiles.map(({ path }) => host.read(`/${path}`)))
	return contents
		.map((content) => fingerprintOf(Buffer.from(content?.toString("utf8").split(" ")[1] ?? "", "base64")))
		.sort()
}
