// Puts the stand-ins where the real programs would be: into an instance, or into a directory that plays a server.
import { copyFile, mkdir, symlink, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const source = (name: string) => fileURLToPath(new URL(`stand-ins/${name}`, import.meta.url))

const inDirectory = ["tailscale", "tailscaled", "systemctl", "sshd", "ufw", "fail2ban-client"]

/**
 * Installs Tailscale's stand-in into an instance that hasn't booted yet (`prepare`), as the package would: the unit is
 * enabled and starts at boot, without an identity.
 */
export async function installTailscale(instanceRoot: string): Promise<void> {
	const units = join(instanceRoot, "etc/systemd/system/multi-user.target.wants")
	await mkdir(units, { recursive: true })
	await copyFile(source("tailscale"), join(instanceRoot, "usr/bin/tailscale"))
	await copyFile(source("tailscaled"), join(instanceRoot, "usr/sbin/tailscaled"))
	await copyFile(source("tailscaled.service"), join(instanceRoot, "lib/systemd/system/tailscaled.service"))
	await symlink("/lib/systemd/system/tailscaled.service", join(units, "tailscaled.service"))
}

/** Tailscale's stand-in as a package that apt installs: the daemon runs and is enabled afterwards, as the vendor's. */
export const tailscalePackage = {
	version: "0.0.0+stand-in",
	programs: { "usr/bin/tailscale": source("tailscale"), "usr/sbin/tailscaled": source("tailscaled") },
	texts: { "lib/systemd/system/tailscaled.service": source("tailscaled.service") },
	postinst: "systemctl daemon-reload\nsystemctl enable --now tailscaled.service",
}

/** Installs all stand-ins into a directory that plays a server, in its `usr/local/bin`. */
export async function installStandIns(serverDirectory: string): Promise<void> {
	const programs = join(serverDirectory, "usr/local/bin")
	await mkdir(programs, { recursive: true })
	for (const name of inDirectory) await copyFile(source(name), join(programs, name))
}

/**
 * Shows a machine on the tailnet that the stand-in client sees where `COMFYUME_TAILNET` names the same directory.
 * @param tailnet made when it isn't there
 */
export async function showPeer(
	tailnet: string,
	peer: { hostname: string; address: string; online: boolean },
): Promise<void> {
	await mkdir(tailnet, { recursive: true })
	await writeFile(join(tailnet, peer.hostname), `${peer.address}\n${peer.online ? "online" : "offline"}\n`)
}
