// Disks of instances: sparse files behind loop devices. The file lies in the instance's directory, so that whoever
// removes that finds the devices too.
import { rm, truncate, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { run } from "../run.ts"

export type Disk = {
	/** As it is called in the instance's `/dev`. */
	name: string
	sizeBytes: number
}

/** Makes an empty disk, and gives the device on this machine. */
export async function makeDisk(directory: string, { name, sizeBytes }: Disk): Promise<string> {
	const file = join(directory, `${name}.disk`)
	await writeFile(file, "")
	await truncate(file, sizeBytes)
	return (await run("losetup", ["--find", "--show", file])).stdout.trim()
}

/** Takes away the devices of all disks in a directory. Who still has one open keeps it until he is done. */
export async function removeDisks(directory: string): Promise<void> {
	const { stdout } = await run("losetup", ["--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE"])
	for (const line of stdout.split("\n")) {
		const [device = "", file = ""] = line.split(" ")
		if (!file.startsWith(`${directory}/`)) continue
		await run("losetup", ["--detach", device])
		await rm(file, { force: true })
	}
}
