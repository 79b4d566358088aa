// The parts of the test world: which Debian packages each takes, and whether this machine can have it.
import { spawnSync } from "node:child_process"
import {
	copyFileSync,
	existsSync,
	mkdirSync,
	mkdtempSync,
	readdirSync,
	renameSync,
	rmSync,
	writeFileSync,
} from "node:fs"
import { homedir, tmpdir } from "node:os"
import { basename, join } from "node:path"
import { ensureAptPackages, isInstalled } from "../setup.js"

// A part is there when all of its programs are. The names of the parts are those of test/support/parts.ts.
const packages = [
	{ package: "git", program: "git", part: "git", for: "the private git hosting" },
	{ package: "openssh-client", program: "ssh-keygen", part: "sshd", for: "keys and fingerprints" },
	{ package: "openssh-server", program: "sshd", part: "sshd", for: "a host behind SSH" },
	{ package: "zstd", program: "zstd", part: "archives", for: "archives" },
	{ package: "tar", program: "tar", part: "archives", for: "archives" },
	{ package: "age", program: "age", part: "age", for: "encrypted archives" },
	{ package: "keyutils", program: "keyctl", part: "keyring", for: "secrets in the kernel's keyring" },
	{ package: "nginx", program: "nginx", part: "nginx", for: "the workshop's front door" },
	{ package: "apache2-utils", program: "htpasswd", part: "nginx", for: "a second opinion of password files" },
	{ package: "openssl", program: "openssl", part: "nginx", for: "throw-away certificates" },
	{ package: "pebble", program: "pebble", part: "acme", for: "a certificate authority on loopback" },
	{ package: "certbot", program: "certbot", part: "acme", for: "the client that asks it" },
	{
		package: "prometheus",
		program: "promtool",
		part: "prometheus",
		for: "the monitoring's rules and queries",
	},
	{ package: "redis-server", program: "redis-server", part: "redis", for: "the queue" },
	{ package: "chromium", program: "chromium", part: "chromium", for: "pages as users see them" },
	{ package: "iproute2", program: "ip", part: "chromium", for: "a network that doesn't change under it" },
	{ package: "python3", program: "python3", part: "chromium", for: "the stand-in for ComfyUI's server" },
	{ package: "python3-pip", program: "pip3", part: "chromium", for: "ComfyUI's own frontend, from PyPI" },
	{ package: "debootstrap", program: "debootstrap", part: "instances", for: "the base of fresh instances" },
	{ package: "systemd-container", program: "systemd-nspawn", part: "instances", for: "fresh instances" },
	{ package: "iproute2", program: "ip", part: "instances", for: "the instances' network" },
	{ package: "procps", program: "ps", part: "instances", for: "the proof that nothing is left" },
	{ package: "openssh-client", program: "ssh", part: "instances", for: "the way into instances" },
	{ package: "curl", program: "curl", part: "instances", for: "the proof that a firewall shuts" },
	{ package: "gpg", program: "gpg", part: "instances", for: "a vendor's signed package repository" },
	{ package: "util-linux", program: "losetup", part: "instances", for: "the instances' disks" },
	{ package: "iptables", program: "iptables", part: "docker", for: "Docker's networks" },
	{ package: "debootstrap", program: "debootstrap", part: "docker", for: "the base of the containers" },
]

const nightlyPackages = [
	{
		package: "qemu-system-x86",
		program: "qemu-system-x86_64",
		part: "virtualMachines",
		for: "a kernel with an NFS client",
	},
	// The server's way to a directory is a package without a program.
	{ package: "nfs-ganesha-vfs", program: "ganesha.nfsd", part: "virtualMachines", for: "an NFS server" },
	{ package: "nfs-ganesha", program: "ganesha.nfsd", part: "virtualMachines", for: "an NFS server" },
]

/**
 * The same, with what only `npm run test:nightly` uses.
 * @returns {Record<string, string>} missing parts, each with the reason and what to type
 */
export function ensureNightlyParts() {
	const missing = ensureTestParts()
	for (const { part, package: name, because } of ensureAptPackages(nightlyPackages))
		missing[part] ??= `${name} is not installed: ${because}`
	const machines = missing.virtualMachines ?? missing.instances ?? whyNoSuchProcessor()
	if (machines !== undefined) missing.virtualMachines = machines
	return missing
}

// The virtual machines are of one kind; their kernel's package is named after it.
function whyNoSuchProcessor() {
	return process.arch === "x64" ? undefined : "virtual machines: only on x64"
}

/**
 * Installs what can be installed, and says what this machine can't have.
 * @returns {Record<string, string>} missing parts, each with the reason and what to type
 */
export function ensureTestParts() {
	const missing = {}
	for (const { part, package: name, because } of ensureAptPackages(packages)) {
		missing[part] ??= `${name} is not installed: ${because}`
	}
	const instances = missing.instances ?? whyNoNamespaces("fresh instances")
	if (instances !== undefined) missing.instances = instances
	const compose = whyNoCompose()
	if (compose !== undefined) missing.compose = compose
	const docker = missing.docker ?? compose ?? whyNoDocker()
	if (docker !== undefined) missing.docker = docker
	const freshServers = missing.instances ?? missing.docker
	if (freshServers !== undefined) missing.freshServers = freshServers
	// A page is behind the front door, and its jobs are in the queue.
	const chromium = missing.chromium ?? missing.nginx ?? missing.redis ?? whyNoFrontend()
	if (chromium !== undefined) missing.chromium = chromium
	return missing
}

const cache = process.env.COMFYUME_TEST_CACHE ?? join(homedir(), ".cache", "comfyume-test")

// Where the tests look for compose v2 (test/support/parts.ts): Debian 12 has none, and `config` needs no Docker.
function whyNoCompose() {
	return whyNotFetched("compose v2", join(cache, "compose"), [
		{ suite: "trixie", package: "docker-compose", files: ["usr/libexec/docker/cli-plugins/docker-compose"] },
	])
}

// Where the tests look for the Docker Engine (test/support/parts.ts). `start_interval` needs 25 or later, and Debian 12
// has 20.10. Debian 13's runc alone asks for a newer C library than Debian 12's; Debian 12's does as well.
function whyNoDocker() {
	return (
		whyNoNamespaces("the Docker Engine") ??
		whyNotFetched("the Docker Engine", join(cache, "docker-26.1"), [
			{ suite: "trixie", package: "docker.io", files: ["usr/sbin/dockerd", "usr/sbin/docker-proxy"] },
			{ suite: "trixie", package: "docker-cli", files: ["usr/bin/docker"] },
			{
				suite: "trixie",
				package: "docker-buildx",
				files: ["usr/libexec/docker/cli-plugins/docker-buildx"],
			},
			{
				suite: "trixie",
				package: "containerd",
				files: ["usr/bin/containerd", "usr/bin/containerd-shim-runc-v2"],
			},
			{ suite: "bookworm", package: "runc", files: ["usr/sbin/runc"] },
			{ suite: "bookworm", package: "libseccomp2", files: ["libseccomp.so.2"] },
			{ suite: "bookworm", package: "tini", files: ["usr/bin/tini-static"] },
		])
	)
}

/**
 * Debian's packages, checked by Debian's own key, and unpacked beside the system instead of into it.
 * @param {string} what as the reason says it
 * @param {string} directory where the named files come to lie, all or none
 * @param {{suite: string, package: string, files: string[]}[]} wanted files by their path, libraries by their name
 */
function whyNotFetched(what, directory, wanted) {
	if (existsSync(directory)) return undefined
	if (!isInstalled("apt-get") || !isInstalled("dpkg")) return "this machine has no apt"
	const root = mkdtempSync(join(tmpdir(), "comfyume-fetch-"))
	const partial = `${directory}.${process.pid}.partial`
	try {
		console.error(`fetching ${what} from Debian`)
		mkdirSync(partial, { recursive: true })
		// Not Object.groupBy: this runs on Node 20.
		for (const suite of new Set(wanted.map((one) => one.suite))) {
			const those = wanted.filter((one) => one.suite === suite)
			const unpacked = unpackPackages(
				join(root, suite),
				suite,
				those.map((one) => one.package),
			)
			if (unpacked === undefined) return `${what} could not be fetched from Debian's ${suite}`
			for (const file of those.flatMap(({ files }) => files)) {
				const path = file.includes("/") ? file : findLibrary(unpacked, file)
				copyFileSync(join(unpacked, path), join(partial, basename(file)))
			}
		}
		renameSync(partial, directory)
		return undefined
	} finally {
		rmSync(root, { recursive: true, force: true })
		rmSync(partial, { recursive: true, force: true })
	}
}

function unpackPackages(root, suite, names) {
	for (const part of ["lists/partial", "archives/partial"]) mkdirSync(join(root, part), { recursive: true })
	const keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
	writeFileSync(
		join(root, "sources.list"),
		`deb [signed-by=${keys}] http://deb.debian.org/debian ${suite} main\n`,
	)
	const options = [
		`Dir::State::Lists=${root}/lists`,
		"Dir::State::status=/dev/null",
		`Dir::Cache=${root}`,
		`Dir::Etc::sourcelist=${root}/sources.list`,
		"Dir::Etc::sourceparts=-",
		"APT::Sandbox::User=",
	].flatMap((option) => ["-o", option])
	const run = (name, ...args) => spawnSync(name, args, { cwd: root, stdio: "ignore" }).status === 0
	if (!run("apt-get", ...options, "update") || !run("apt-get", ...options, "download", ...names))
		return undefined
	const archives = readdirSync(root).filter((name) => name.endsWith(".deb"))
	if (archives.length !== names.length) return undefined
	return archives.every((archive) => run("dpkg", "-x", archive, "unpacked"))
		? join(root, "unpacked")
		: undefined
}

// Libraries lie in a directory named after the machine.
function findLibrary(unpacked, name) {
	const found = readdirSync(unpacked, { recursive: true }).find((path) => path.endsWith(`/${name}`))
	if (found === undefined) throw new Error(`Debian's package has no ${name}`)
	return found
}

function whyNoNamespaces(what) {
	if (process.platform !== "linux") return `${what}: only on Linux`
	if (process.getuid?.() !== 0) return `${what}: only for root: sudo npm test`
	// In a container without these rights, root alone doesn't do.
	const probe = spawnSync("unshare", ["--mount", "--net", "mount", "-t", "tmpfs", "none", "/mnt"], {
		stdio: "ignore",
	})
	if (probe.status !== 0) return "this machine lets root neither mount nor make networks (a container?)"
	return undefined
}

// The frontend that ComfyUI v0.11.0 pins in its requirements, and the server library that it is written with.
const pythonPackages = ["comfyui-frontend-package==1.37.11", "aiohttp==3.13.3"]

// Into a directory of its own: the system's Python isn't touched.
function whyNoFrontend() {
	const place = join(cache, "comfyui-1.37.11")
	if (existsSync(place)) return undefined
	console.error("fetching ComfyUI's frontend from PyPI")
	mkdirSync(cache, { recursive: true })
	const partial = mkdtempSync(join(cache, "comfyui-partial-"))
	const { status } = spawnSync(
		"python3",
		["-m", "pip", "install", "--quiet", "--no-cache-dir", "--target", partial, ...pythonPackages],
		{ stdio: "ignore", timeout: 300_000 },
	)
	if (status === 0) {
		renameSync(partial, place)
		return undefined
	}
	rmSync(partial, { recursive: true, force: true })
	return "ComfyUI's frontend could not be fetched from PyPI"
}
