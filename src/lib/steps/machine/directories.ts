// Directories on the share and on the scratch disk, and whether ComfyUI's user may write there.
import { stat } from "node:fs/promises"
import { basename, dirname } from "node:path"
import { codeOf, systemError } from "../../errors.ts"
import { command } from "../../host/command.ts"
import { holdDirectory, setPermissions } from "../../host/held-directory.ts"
import type { LocalHost } from "../../host/local.ts"
import { containerUserId } from "../../stack/description.ts"

export type WantedDirectory = {
	/** On this machine, below the mount point. */
	path: string
	mode: number
	/** ComfyUI's user writes there. Its mode is set also where the directory exists. */
	written: boolean
	/** A new one is ComfyUI's user's own; else it has its parent's owner. */
	users?: boolean
}

/** What differs from what is wanted, in words; empty when nothing does. Only reads. */
export async function lookAtDirectories(
	host: LocalHost,
	wanted: readonly WantedDirectory[],
): Promise<string[]> {
	const problems: string[] = []
	for (const { path, mode, written } of wanted) {
		const found = await stat(path).catch((error: unknown) => {
			if (codeOf(error) === "ENOENT") return undefined
			throw systemError(error, `looking at ${path}`)
		})
		if (found === undefined) problems.push(`${path} is missing`)
		else if (!found.isDirectory()) problems.push(`${path} is no directory`)
		else if (written && (found.mode & 0o7777) !== mode)
			problems.push(`${path} has mode ${(found.mode & 0o7777).toString(8)}, not ${mode.toString(8)}`)
		else if (written && !(await mayWrite(host, path)))
			problems.push(`uid ${containerUserId} may not write in ${path}, whatever its mode is`)
	}
	return problems
}

/**
 * Asks the kernel as that user, by access(2): it knows of read-only mounts, and over NFS the server is asked. Nothing is
 * written: a check leaves nothing behind.
 */
function mayWrite(host: LocalHost, path: string): Promise<boolean> {
	// In a directory that stands in for a machine, what lies above it may be closed to others.
	if (host.standIn) return Promise.resolve(true)
	const id = String(containerUserId)
	return host.test(
		command(
			"setpriv",
			`--reuid=${id}`,
			`--regid=${id}`,
			"--clear-groups",
			"test",
			"-w",
			path,
			"-a",
			"-x",
			path,
		),
	)
}

/**
 * Makes the missing ones, with their parents, and sets the modes of those that are written to.
 * @param below the mount point: from there on no link is followed
 */
export async function makeDirectories(
	wanted: readonly WantedDirectory[],
	below: string,
	ownership: boolean,
): Promise<void> {
	for (const { path, mode, written, users = false } of wanted) {
		let isNew = false
		const onMade = (made: string) => {
			isNew ||= made === path
		}
		const options = { noLinksFrom: below, onMade, ownership }
		await using _made = await holdDirectory("/", path, options)
		if (!isNew && !written) continue
		await using parent = await holdDirectory("/", dirname(path), options)
		const id = containerUserId
		const { uid, gid } = isNew && users ? { uid: id, gid: id } : await stat(path)
		await setPermissions(parent.entry(basename(path)), { mode, uid, gid }, ownership)
	}
}
