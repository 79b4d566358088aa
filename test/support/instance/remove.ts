// Removing instances and worlds from this machine: processes, mounts, network, directories.
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { poll } from "../poll.ts"
import { run } from "../run.ts"
import { controllerDirectories, groupDirectories, killGroups } from "./control-groups.ts"
import { removeDisks } from "./disks.ts"
import type { WorldRecord } from "./world.ts"

/** The name under which an instance's network namespace and control groups are found. */
export const instanceName = (world: number, index: number) => `cfy${world}i${index}`

/** The file in an instance's directory that tells its supervisor not to start it again. */
export const givenUpFile = (directory: string) => join(directory, "given-up")

/**
 * Removes one instance. What isn't there (any more) is passed over.
 * @param hasEnded whether the supervisor is gone, where it can be known: a reboot may be under way
 */
export async function removeInstance(
	name: string,
	directory: string,
	hasEnded: () => boolean = () => true,
): Promise<void> {
	await mkdir(directory, { recursive: true })
	await writeFile(givenUpFile(directory), "")
	const groups = [...(await groupDirectories(name)), ...(await controllerDirectories(name))]
	await poll(
		async () => {
			await killGroups(groups)
			return hasEnded()
		},
		{ what: `the end of ${name}`, deadlineMs: 15_000, intervalMs: 5 },
	)
	await removeNamespace(name)
	await unmountBelow(directory)
	await removeDisks(directory)
	await rm(directory, { recursive: true, force: true })
}

/** Removes a world with everything in it, and its record last: whoever finds the record can try again. */
export async function removeWorld(record: WorldRecord, recordFile: string): Promise<void> {
	const names = await readdir(record.directory).catch((): string[] => [])
	for (const name of names) await removeInstance(name, `${record.directory}/${name}`)
	const outside = `cfy${record.number}`
	await run("ip", ["link", "delete", outside], { allowedExitCodes: [1] })
	await removeNamespace(outside)
	await unmountBelow(record.directory)
	await rm(record.directory, { recursive: true, force: true })
	await rm(recordFile, { force: true })
}

async function removeNamespace(name: string): Promise<void> {
	const names = await readdir("/run/netns").catch((): string[] => [])
	if (names.includes(name)) await run("ip", ["netns", "delete", name])
}

// The innermost first.
async function unmountBelow(directory: string): Promise<void> {
	const mounts = (await readFile("/proc/self/mounts", "utf8"))
		.split("\n")
		.map((line) => line.split(" ")[1] ?? "")
		.filter((at) => at === directory || at.startsWith(`${directory}/`))
	for (const at of mounts.reverse()) await run("umount", [at])
}
