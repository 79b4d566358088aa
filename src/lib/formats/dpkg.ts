// What dpkg and apt say: which packages are installed, and who holds their locks.

export type PackageStatus = {
	name: string
	/** As dpkg has it: `installed`, `unpacked`, `half-configured`, `config-files`, … */
	status: string
	version: string
}

/** Asks `dpkg-query --show` for lines that `readPackageStatuses` understands. */
export const packageStatusFormat = `\${db:Status-Status} \${Package} \${Version}\\n`

/** The packages of a listing by name. Of one that is there for several architectures, an installed one counts. */
export function readPackageStatuses(listing: string): Map<string, PackageStatus> {
	const found = new Map<string, PackageStatus>()
	for (const line of listing.split("\n")) {
		const [status, name, version = ""] = line.trim().split(" ")
		if (status === undefined || name === undefined) continue
		if (found.get(name)?.status !== "installed") found.set(name, { name, status, version })
	}
	return found
}

export type LockHolder = {
	/** Which lock, where it is said. */
	lock?: string
	/** Where it is said. */
	processId?: number
	/** As in `unattended-upgr`. */
	program?: string
}

/** Who keeps apt or dpkg waiting, from what they complain of; undefined when it isn't about a lock. */
export function lockHolderOf(complaint: string): LockHolder | undefined {
	const apt = /Could not get lock (\S+?)\.? It is held by process (\d+) \(([^)]*)\)/.exec(complaint)
	if (apt !== null) return { lock: apt[1] ?? "", processId: Number(apt[2]), program: apt[3] ?? "" }
	const dpkg = /(?:dpkg )?(.*?lock) (?:was|is) locked by another process(?: with pid (\d+))?/.exec(complaint)
	if (dpkg !== null) {
		const lock = (dpkg[1] ?? "").replace(/^.*error: /, "")
		return dpkg[2] === undefined ? { lock } : { lock, processId: Number(dpkg[2]) }
	}
	if (/Could not get lock|Unable to (acquire|lock)/.test(complaint)) {
		const [, lock] = /Could not get lock (\S+?)\.?(\s|$)/.exec(complaint) ?? []
		return lock === undefined ? {} : { lock }
	}
	return undefined
}

/** What `/etc/os-release` says of the system, unquoted. */
export function readOsRelease(text: string): { id: string; codename: string } {
	const field = (name: string) => {
		const [, value = ""] = new RegExp(`^${name}=(.*)$`, "m").exec(text) ?? []
		return value.trim().replace(/^(["'])(.*)\1$/, "$2")
	}
	return { id: field("ID"), codename: field("VERSION_CODENAME") }
}
