// A block device: what is on it, what uses it, and whether it is a part of the disk that the machine runs from.
import { exitCodes, OperatorError } from "../../errors.ts"
import { command } from "../../host/command.ts"
import type { LocalHost } from "../../host/local.ts"

export type DeviceContent =
	/** No signature of anything, no partitions, nobody uses it. */
	| { holds: "nothing" }
	| { holds: "file system"; type: string }
	/** In words: a partition table, a volume of LVM, swap that is in use. */
	| { holds: "something else"; what: string }

/**
 * What is on a device, by three programs that know different things: `blkid` probes for what `mount` would find, `wipefs`
 * lists every signature there is, `lsblk` tells what the kernel has made of it. Only reads.
 * @throws {OperatorError} when one of them can't tell: then nothing may be claimed
 */
export async function contentOf(host: LocalHost, device: string): Promise<DeviceContent> {
	const { stdout: tree } = await host.capture(
		command("lsblk", "--noheadings", "--raw", "--output", "NAME,TYPE,MOUNTPOINTS", "--", device),
	)
	const [own = "", ...children] = tree.trimEnd().split("\n")
	if (children.length > 0) {
		const names = children.map((line) => line.split(" ").slice(0, 2).join(", a "))
		return { holds: "something else", what: `it holds ${names.join(" and ")}` }
	}
	const mounted = own.split(" ")[2] ?? ""
	if (mounted !== "") return { holds: "something else", what: `it is in use as ${mounted}` }

	// 2: nothing was found. 8: signatures of several things, which it doesn't decide between.
	const { stdout, exitCode } = await host.capture(
		command("blkid", "--probe", "--output", "export", "--", device),
		{ allowedExitCodes: [2, 8] },
	)
	if (exitCode === 8) return { holds: "something else", what: "it bears marks of several things at once" }
	const field = (name: string) => new RegExp(`^${name}=(.*)$`, "m").exec(stdout)?.[1]
	const partitions = field("PTTYPE")
	if (partitions !== undefined)
		return { holds: "something else", what: `it has a partition table (${partitions})` }
	const type = field("TYPE")
	if (type !== undefined)
		return field("USAGE") === "filesystem"
			? { holds: "file system", type }
			: { holds: "something else", what: `it is ${type}` }

	const { stdout: signatures } = await host.capture(
		command("wipefs", "--no-act", "--noheadings", "--parsable", "--output", "TYPE,OFFSET", "--", device),
	)
	const [first] = signatures.trim().split("\n")
	if (first !== undefined && first !== "")
		return { holds: "something else", what: `it bears the mark of ${first}` }
	return { holds: "nothing" }
}

/** Its number in the kernel, as in `254:16`: names and links to it may be many. */
export async function deviceNumber(host: LocalHost, device: string): Promise<string> {
	const { stdout } = await host.capture(
		command("lsblk", "--noheadings", "--raw", "--nodeps", "--output", "MAJ:MIN", "--", device),
	)
	return stdout.trim()
}

/**
 * Refuses what the machine itself runs from: cloned disks bear the same marks, and a device's name may have moved.
 * @throws {OperatorError} (8)
 */
export async function refuseSystemDisk(host: LocalHost, device: string): Promise<void> {
	const family = await withAncestors(host, device)
	for (const path of ["/", "/boot", "/boot/efi"]) {
		const { stdout } = await host.capture(
			command("findmnt", "--noheadings", "--raw", "--nofsroot", "--output", "SOURCE", "--target", path),
			{ allowedExitCodes: [1] },
		)
		for (const source of stdout
			.trim()
			.split("\n")
			.filter((found) => found.startsWith("/dev/"))) {
			const system = await withAncestors(host, source)
			if (![...system].some((number) => family.has(number))) continue
			throw new OperatorError(`${device} is a part of the disk that ${path} lies on (${source})`, {
				exitCode: exitCodes.refusedByGuard,
				hint: "lsblk; then correct scratch.device in comfyume.yaml",
			})
		}
	}
}

/** Numbers of a device and of all that it lies on: its disk, its volume group's disks. */
async function withAncestors(host: LocalHost, device: string): Promise<Set<string>> {
	const { stdout } = await host.capture(
		command("lsblk", "--noheadings", "--raw", "--inverse", "--output", "MAJ:MIN", "--", device),
		// A root that is no device of this machine, as in a container.
		{ allowedExitCodes: [32] },
	)
	return new Set(stdout.split(/\s+/).filter((number) => number !== ""))
}
