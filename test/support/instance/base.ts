// The system every fresh instance begins with: a Debian built once by debootstrap, and never written to afterwards.
import { createHash } from "node:crypto"
import { chmod, mkdir, readdir, rename, rm, stat, symlink, writeFile } from "node:fs/promises"
import { homedir } from "node:os"
import { join } from "node:path"
import { run } from "../run.ts"
import { processIsAlive } from "./owner.ts"

const suite = "bookworm"

// What a rented machine has on it when it is handed over, and what provisioning would install on it.
const packages = [
	...["systemd", "systemd-sysv", "dbus", "openssh-server", "openssh-client", "iproute2", "procps", "sudo"],
	...["fail2ban", "python3-systemd", "ufw", "iptables", "git", "curl", "ca-certificates"],
	...["tar", "zstd", "zsh", "keyutils", "cron", "logrotate"],
]

// They would wake up in the middle of a test, or wait for hardware that isn't there.
const maskedUnits = [
	...["apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"],
	...["e2scrub_reap.service", "fstrim.timer", "systemd-pstore.service"],
	...["console-getty.service", "getty@tty1.service"],
]

const files: Readonly<Record<string, string>> = {
	"etc/resolv.conf": "# An instance of the test world sees nobody but its neighbours.\n",
	"etc/ssh/sshd_config.d/10-key-only.conf": "PasswordAuthentication no\nKbdInteractiveAuthentication no\n",
	// There is no syslog in Debian 12 any more, and fail2ban's default waits for its file.
	"etc/fail2ban/jail.d/defaults-debian.conf": "[sshd]\nbackend = systemd\nenabled = true\n",
}

// Raised when something above changes that isn't part of the hash by itself.
const recipe = JSON.stringify({ version: 2, suite, packages, maskedUnits, files })

/** Where the test world keeps what is costly to make: `$COMFYUME_TEST_CACHE`, else below the home directory. */
export function cacheDirectory(environment: NodeJS.ProcessEnv = process.env): string {
	return environment.COMFYUME_TEST_CACHE ?? join(homedir(), ".cache", "comfyume-test")
}

/**
 * Gives the directory of the base system, and builds it when it isn't there yet (a minute, 400 MB, Debian's mirror).
 * Built under another name and renamed, so that an interrupted build is never taken for a whole one.
 */
export async function ensureBase(tell: (text: string) => void = () => {}): Promise<string> {
	const cache = cacheDirectory()
	const name = `base-${suite}-${createHash("sha256").update(recipe).digest("hex").slice(0, 12)}`
	const base = join(cache, name)
	if (await isDirectory(base)) return base

	await mkdir(cache, { recursive: true })
	await removeInterruptedBuilds(cache)
	const partial = join(cache, `${name}.${process.pid}.partial`)
	tell(`building the base of the test instances in ${base} (about a minute, once)`)
	try {
		// In a mount namespace of its own: killed halfway, debootstrap leaves no /proc mounted.
		await run(
			"unshare",
			["--mount", "debootstrap", "--variant=minbase", `--include=${packages.join(",")}`, suite, partial],
			{ timeoutMs: 10 * 60_000 },
		)
		await finish(partial)
		await rename(partial, base)
	} catch (error) {
		// Another process may have been faster; its base is as good as ours.
		if (!(await isDirectory(base))) throw error
	} finally {
		await rm(partial, { recursive: true, force: true })
	}
	return base
}

async function finish(root: string): Promise<void> {
	for (const [path, content] of Object.entries(files)) await writeFile(join(root, path), content)
	for (const key of await readdir(join(root, "etc/ssh"))) {
		if (key.startsWith("ssh_host_")) await rm(join(root, "etc/ssh", key))
	}
	// No instance may be taken for another: each is given an id, and dbus is to have no older one of its own.
	await rm(join(root, "etc/machine-id"), { force: true })
	await rm(join(root, "var/lib/dbus/machine-id"), { force: true })
	await symlink("/etc/machine-id", join(root, "var/lib/dbus/machine-id"))
	await run("chroot", [root, "systemctl", "mask", ...maskedUnits])
	await run("chroot", [root, "apt-get", "clean"])
	for (const heavy of ["usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists"]) {
		await rm(join(root, heavy), { recursive: true, force: true })
		await mkdir(join(root, heavy))
	}
	await chmod(root, 0o755)
}

async function removeInterruptedBuilds(cache: string): Promise<void> {
	for (const name of await readdir(cache)) {
		const builder = /\.(\d+)\.partial$/.exec(name)?.[1]
		if (builder !== undefined && !(await processIsAlive(Number(builder))))
			await rm(join(cache, name), { recursive: true, force: true })
	}
}

/** Whether there is a directory at this path. */
export async function isDirectory(path: string): Promise<boolean> {
	return stat(path).then(
		(found) => found.isDirectory(),
		() => false,
	)
}
