// The programs that the machine needs, by apt. A package counts as there when dpkg has it installed: not unpacked, not
// half configured.
import { exitCodes, OperatorError } from "../../errors.ts"
import { packageStatusFormat, readPackageStatuses } from "../../formats/dpkg.ts"
import { command } from "../../host/command.ts"
import { lastLines } from "../../host/failures.ts"
import type { LocalHost } from "../../host/local.ts"
import { type Finding, needed, type Step, satisfied } from "../../plan/step.ts"
import type { StepContext } from "../context.ts"
import { type AptOptions, apt, finishInterrupted } from "./apt.ts"
import { addTailscaleRepository } from "./tailscale-repository.ts"

// What comfyume calls on a host, and what the platform's own scripts and its people call.
const always = [
	...["ca-certificates", "curl", "git", "openssh-server", "openssl", "sudo", "tar", "zstd"],
	...["e2fsprogs", "iproute2", "keyutils", "procps", "util-linux"],
	...["apache2-utils", "jq", "redis-tools", "unzip", "wget", "zsh"],
	// fail2ban reads the journal by python3-systemd: there is no log file of sshd's on Debian 12.
	...["fail2ban", "python3-systemd", "ufw"],
]

/** What must be there; by what the environment is like. Pure. */
export function packagesFor({
	environment: { packages, share, stack },
	hostConfiguration: { tailnet },
}: Pick<StepContext, "environment" | "hostConfiguration">): string[] {
	return [
		...new Set([
			...always,
			// Before the share is mounted, or there is nothing that mounts it.
			...(share?.filesystem === "nfs4" ? ["nfs-common"] : []),
			...(stack?.certificates.source === "acme" ? ["certbot"] : []),
			...(tailnet === "none" ? [] : ["tailscale"]),
			...packages.extra,
		]),
	].sort()
}

/**
 * Installs what is missing. Where something is, the machine is fresh, and all that is on it is brought up to date first:
 * on new images the share can't be reached before. One that people work on is never brought up to date: Docker's package
 * would restart every container.
 */
export function packagesAreThere(context: StepContext, { lockWaitMs = 5 * 60_000 } = {}): Step {
	const { host, signal } = context
	const wanted = packagesFor(context)
	let wasMissing: readonly string[] = []
	return {
		id: "packages",
		title: "the packages",
		check: async (): Promise<Finding> => {
			if (host.standIn) return satisfied("a directory stands in for the machine: it has no packages")
			const { missing, versions, foreign } = await lookAt(host, wanted)
			if (missing.length > 0) return needed(`missing: ${missing.join(", ")}`)
			const installed = wasMissing.map((name) => versions.get(name) ?? name)
			const rest = foreign.map((name) => `; ${name} came without its package`).join("")
			return satisfied(
				installed.length > 0
					? `installed ${installed.join(", ")}${rest}`
					: `${versions.size} are installed${rest}`,
			)
		},
		apply: async (report) => {
			const { missing } = await lookAt(host, wanted)
			wasMissing = missing.map((name) => name.split(" ")[0] ?? name)
			const options: AptOptions = { host, signal, lockWaitMs, onWait: report.note }
			await finishInterrupted(options)
			if (wasMissing.includes("tailscale")) await addTailscaleRepository(context)
			const { stderr: complaint } = await apt(options, "update")
			const live = await isLive(host)
			if (live)
				report.note("containers of the stack run here: what is missing is installed, and nothing is upgraded")
			await install(options, { missing: wasMissing, upgrade: !live, complaintOfUpdate: complaint })
			if (await host.test(command("test", "-e", "/run/reboot-required")))
				report.note("an upgrade wants a reboot of the machine, some time when nobody works on it")
		},
	}
}

/** A container of the stack runs. A machine without Docker, or on which it is off, has none. */
async function isLive(host: LocalHost): Promise<boolean> {
	const asked = command(
		"sh",
		"-c",
		"command -v docker >/dev/null && docker ps --quiet --filter name=^comfy- 2>/dev/null || true",
	)
	return (await host.capture(asked)).stdout.trim() !== ""
}

async function install(
	options: AptOptions,
	{
		missing,
		upgrade,
		complaintOfUpdate,
	}: { missing: readonly string[]; upgrade: boolean; complaintOfUpdate: string },
): Promise<void> {
	try {
		// What a killed installation left without its dependencies.
		await apt(options, "--fix-broken", "install")
		// As `apt upgrade` has it: a new kernel is a new package.
		if (upgrade) await apt(options, "--with-new-pkgs", "upgrade")
		await apt(options, "--no-install-recommends", "install", ...missing)
	} catch (error) {
		if (!(error instanceof OperatorError) || complaintOfUpdate.trim() === "") throw error
		// What went wrong stands in the lists that couldn't be fetched, not in what wasn't found for the lack of them.
		throw new OperatorError(
			`${missing.join(", ")} could not be installed: ${lastLines(complaintOfUpdate)} | ${error.message}`,
			{
				exitCode: error.exitCode === exitCodes.incomplete ? exitCodes.unreachable : error.exitCode,
				hint: "curl -sI https://deb.debian.org; cat /etc/resolv.conf   # does the machine reach the outside?",
				cause: error,
			},
		)
	}
}

async function lookAt(host: LocalHost, wanted: readonly string[]) {
	// It ends with 1 when one of them is unknown, and names all others the same.
	const { stdout } = await host.capture(
		command("dpkg-query", "--show", `--showformat=${packageStatusFormat}`, ...wanted),
		{ allowedExitCodes: [1] },
	)
	const statuses = readPackageStatuses(stdout)
	const missing: string[] = []
	const foreign: string[] = []
	const versions = new Map<string, string>()
	for (const name of wanted) {
		const found = statuses.get(name)
		if (found?.status === "installed") versions.set(name, `${name} ${found.version}`)
		// Somebody brought it another way, and two of them would fight.
		else if (name === "tailscale" && (await isThere(host, name))) foreign.push(name)
		else if (found === undefined || ["not-installed", "config-files"].includes(found.status))
			missing.push(name)
		else missing.push(`${name} (${found.status})`)
	}
	return { missing, versions, foreign }
}

const isThere = (host: LocalHost, program: string) =>
	host.test(command("sh", "-c", 'command -v "$1" >/dev/null', "sh", program))
