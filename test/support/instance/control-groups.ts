// The kernel's control groups of one instance: how all of its processes are found, and ended at once.
import { access, readdir, readFile, rmdir } from "node:fs/promises"
import { join } from "node:path"
import { poll } from "../poll.ts"

// systemd's own hierarchy and the unified one where both are mounted (hybrid), else the unified one alone.
const hierarchies = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"]

/** The directories in which an instance's group lies; they needn't exist yet. */
export async function groupDirectories(name: string): Promise<string[]> {
	const mounted: string[] = []
	for (const hierarchy of hierarchies) {
		const isHierarchy = await access(join(hierarchy, "cgroup.procs")).then(
			() => true,
			() => false,
		)
		if (isHierarchy) mounted.push(join(hierarchy, name))
	}
	return mounted
}

/**
 * The same in the hierarchies of single controllers, where there are such. An instance with containers in it has groups
 * there too: Docker inside makes its own below them, and they go with the instance.
 */
export async function controllerDirectories(name: string): Promise<string[]> {
	const mounts = (await readFile("/proc/self/mounts", "utf8")).split("\n").map((line) => line.split(" "))
	return mounts
		.filter(([, at = "", type]) => type === "cgroup" && !hierarchies.includes(at))
		.map(([, at = ""]) => join(at, name))
}

/** All processes in a group and those below it. */
export async function processesIn(groups: readonly string[]): Promise<number[]> {
	const pids = new Set<number>()
	for (const group of groups) {
		for (const directory of await withSubgroups(group)) {
			const listed = await readFile(join(directory, "cgroup.procs"), "utf8").catch(() => "")
			for (const pid of listed.split("\n")) if (pid !== "") pids.add(Number(pid))
		}
	}
	return [...pids]
}

/** Kills what is in the groups as a power cut would, and removes them. */
export async function killGroups(groups: readonly string[]): Promise<void> {
	await poll(
		async () => {
			const pids = await processesIn(groups)
			for (const pid of pids) killIfThere(pid)
			return pids.length === 0
		},
		{ what: `the end of all processes in ${groups.join(", ")}`, deadlineMs: 10_000, intervalMs: 5 },
	)
	for (const group of groups) {
		await poll(() => removeGroup(group), { what: `the removal of ${group}`, deadlineMs: 5_000 })
	}
}

async function removeGroup(group: string): Promise<boolean> {
	try {
		for (const directory of (await withSubgroups(group)).reverse()) await rmdir(directory)
		return true
	} catch {
		// A process that has ended a moment ago still occupies its group.
		return false
	}
}

// Parents before their children.
async function withSubgroups(group: string): Promise<string[]> {
	const entries = await readdir(group, { withFileTypes: true }).catch(() => undefined)
	if (entries === undefined) return []
	const found = [group]
	for (const entry of entries) {
		if (entry.isDirectory()) found.push(...(await withSubgroups(join(group, entry.name))))
	}
	return found
}

function killIfThere(pid: number): void {
	try {
		process.kill(pid, "SIGKILL")
	} catch {
		// Gone already.
	}
}
