// The parts of the test world: which Debian packages each takes, and whether this machine can have it.
import { spawnSync } from "node:child_process"
import { ensureAptPackages } from "../setup.js"

// A part is there when all of its programs are. The names of the parts are those of test/support/parts.ts.
const packages = [
	{ package: "git", program: "git", part: "git", for: "the private git hosting" },
	{ package: "openssh-client", program: "ssh-keygen", part: "sshd", for: "keys and fingerprints" },
	{ package: "openssh-server", program: "sshd", part: "sshd", for: "a host behind SSH" },
	{ package: "zstd", program: "zstd", part: "archives", for: "archives" },
	{ package: "tar", program: "tar", part: "archives", for: "archives" },
	{ package: "age", program: "age", part: "age", for: "encrypted archives" },
	{ package: "keyutils", program: "keyctl", part: "keyring", for: "secrets in the kernel's keyring" },
	{ package: "redis-server", program: "redis-server", part: "redis", for: "the queue" },
	{ package: "debootstrap", program: "debootstrap", part: "instances", for: "the base of fresh instances" },
	{ package: "systemd-container", program: "systemd-nspawn", part: "instances", for: "fresh instances" },
	{ package: "iproute2", program: "ip", part: "instances", for: "the instances' network" },
	{ package: "procps", program: "ps", part: "instances", for: "the proof that nothing is left" },
	{ package: "openssh-client", program: "ssh", part: "instances", for: "the way into instances" },
	{ package: "curl", program: "curl", part: "instances", for: "the proof that a firewall shuts" },
]

/**
 * Installs what can be installed, and says what this machine can't have.
 * @returns {Record<string, string>} missing parts, each with the reason and what to type
 */
export function ensureTestParts() {
	const missing = {}
	for (const { part, package: name, because } of ensureAptPackages(packages)) {
		missing[part] ??= `${name} is not installed: ${because}`
	}
	const instances = missing.instances ?? whyNoInstances()
	return instances === undefined ? missing : { ...missing, instances }
}

function whyNoInstances() {
	if (process.platform !== "linux") return "fresh instances need Linux"
	if (process.getuid?.() !== 0) return "fresh instances need root: sudo npm test"
	// In a container without these rights, root alone doesn't do.
	const probe = spawnSync("unshare", ["--mount", "--net", "mount", "-t", "tmpfs", "none", "/mnt"], {
		stdio: "ignore",
	})
	if (probe.status !== 0) return "this machine lets root neither mount nor make networks (a container?)"
	return undefined
}
