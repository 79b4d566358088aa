// What `npm run demo`, `npm test` and the benchmark need before they begin. Plain JavaScript: on a new machine this runs
// on whatever Node is there, before the pinned one is installed.
import { spawnSync } from "node:child_process"
import { accessSync, constants, existsSync, readFileSync } from "node:fs"
import { delimiter, join } from "node:path"
import { fileURLToPath } from "node:url"

/** The repository's directory. */
export const repository = fileURLToPath(new URL("..", import.meta.url))

/** The pinned Node, once the dependencies are installed. */
export const pinnedNode = join(repository, "node_modules/.bin/node")

/**
 * Installs the npm packages of the lockfile when they are missing or not those. Takes seconds, and a moment when all is
 * there.
 * @throws {Error} when npm fails; its own words stand on stderr.
 */
export function ensureDependencies() {
	if (dependenciesAreCurrent()) return
	console.error("installing the npm packages of package-lock.json")
	const npm = spawnSync("npm", ["ci", "--loglevel=error"], {
		cwd: repository,
		stdio: ["ignore", 2, 2],
	})
	if (npm.error !== undefined) throw new Error(`npm can't be started: ${npm.error.message}`)
	if (npm.status !== 0) throw new Error("npm ci failed; is the npm registry reachable? Then: npm ci")
	if (!existsSync(pinnedNode)) {
		throw new Error(
			`no pinned Node for ${process.platform} ${process.arch}: install Node 24 and run the command with it`,
		)
	}
}

// npm notes in node_modules what it installed: the lockfile without what is for other systems.
function dependenciesAreCurrent() {
	if (!existsSync(pinnedNode)) return false
	try {
		const wanted = readPackages("package-lock.json")
		const installed = readPackages("node_modules/.package-lock.json")
		for (const [path, { version, integrity, optional }] of Object.entries(wanted)) {
			if (path === "") continue
			const found = installed[path]
			if (found === undefined && optional === true) continue
			if (found === undefined || found.version !== version || found.integrity !== integrity) return false
		}
		return Object.keys(installed).every((path) => path in wanted)
	} catch {
		return false
	}
}

function readPackages(file) {
	return JSON.parse(readFileSync(join(repository, file), "utf8")).packages
}

/**
 * Installs the Debian packages whose programs aren't there, when this is root on a machine with apt.
 * @param {readonly {package: string, program: string, for: string}[]} wanted
 * @returns {{package: string, program: string, for: string, because: string}[]} those that are still missing, and why
 */
export function ensureAptPackages(wanted) {
	const missing = () => wanted.filter(({ program }) => !isInstalled(program))
	const before = missing()
	if (before.length === 0) return []
	const names = [...new Set(before.map((one) => one.package))]
	const byHand = `sudo apt-get install ${names.join(" ")}`
	const because = (reason) => missing().map((one) => ({ ...one, because: `${reason}; ${byHand}` }))
	if (!isInstalled("apt-get")) return because("this machine has no apt")
	if (process.getuid?.() !== 0) return because("only root can install packages")

	console.error(`installing Debian packages: ${names.join(", ")}`)
	const apt = (...args) =>
		spawnSync("apt-get", ["--quiet=2", "-o", "Dpkg::Use-Pty=0", ...args], {
			stdio: ["ignore", "ignore", 2],
			env: { ...process.env, DEBIAN_FRONTEND: "noninteractive", NEEDRESTART_MODE: "l" },
		}).status === 0
	// One broken source in the machine's list fails the update and needn't matter for these packages.
	apt("update")
	apt("install", "--yes", "--no-install-recommends", ...names)
	return because("apt-get could not install it")
}

/** Whether a program is found in PATH or among the administrator's programs. */
export function isInstalled(program) {
	const directories = [...(process.env.PATH ?? "").split(delimiter), "/usr/local/sbin", "/usr/sbin", "/sbin"]
	return directories.some((directory) => {
		try {
			accessSync(join(directory, program), constants.X_OK)
			return true
		} catch {
			return false
		}
	})
}
