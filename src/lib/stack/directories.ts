// The users' directories on this machine. They are made and never removed: whoever comes back finds the old data.
import { readdir, stat } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { codeOf, systemError } from "../errors.ts"
import { holdDirectory, setPermissions } from "../host/held-directory.ts"
import { containerUserId, directoriesOf, type Stack, type UserDirectory } from "./description.ts"
import { userNumber } from "./roster.ts"

export type DirectoryPlan = {
	missing: readonly UserDirectory[]
	/** Their bases aren't there: a share that isn't mounted must not be filled. */
	unreachable: readonly string[]
	/** Of users who are not in the roster any more. */
	leftOver: readonly string[]
}

/** What there is of the users' directories, and what is missing. Only reads. */
export async function lookAtDirectories(stack: Stack): Promise<DirectoryPlan> {
	const missing: UserDirectory[] = []
	const unreachable = new Set<string>()
	const { directory, paths } = stack.configuration
	for (const wanted of directoriesOf(stack)) {
		const { path, base } = wanted
		// The stack's own directory is made with its files.
		if (base !== directory && !(await isDirectory(base))) unreachable.add(base)
		else if (!(await isDirectory(path))) missing.push(wanted)
	}
	const ids = new Set(stack.users.map(({ id }) => id))
	const leftOver: string[] = []
	for (const parent of [
		join(directory, "user_data"),
		paths.outputs,
		paths.inputs,
		join(paths.models, "users"),
	])
		for (const name of await names(parent))
			if (userNumber(name) !== undefined && !ids.has(name)) leftOver.push(join(parent, name))
	return { missing, unreachable: [...unreachable], leftOver: leftOver.sort() }
}

/**
 * Makes the missing ones, for ComfyUI's user where this process may give files away.
 * @throws {OperatorError} where a link stands in the way: nothing is made through it
 */
export async function makeDirectories(missing: readonly UserDirectory[], isRoot: boolean): Promise<void> {
	for (const { path, top } of missing) {
		let isNew = false
		const onMade = (made: string) => {
			isNew ||= made === top
		}
		const options = { noLinksFrom: top, onMade, ownership: isRoot }
		// What lies deeper gets its parent's owner.
		await using _made = await holdDirectory("/", path, options)
		if (!isNew) continue
		await using parent = await holdDirectory("/", dirname(top), options)
		const owner = { mode: 0o755, uid: containerUserId, gid: containerUserId }
		await setPermissions(parent.entry(basename(top)), owner, isRoot)
	}
}

async function isDirectory(path: string): Promise<boolean> {
	try {
		return (await stat(path)).isDirectory()
	} catch (error) {
		if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return false
		throw systemError(error, `looking at ${path}`)
	}
}

async function names(directory: string): Promise<string[]> {
	try {
		return (await readdir(directory)).sort()
	} catch (error) {
		if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return []
		throw systemError(error, `looking into ${directory}`)
	}
}
