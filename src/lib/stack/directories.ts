// The users' directories on this machine. They are made and never removed: whoever comes back finds the old data.
import { lstat, readdir, readlink, stat, symlink } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { holdDirectory, setPermissions } from "../host/held-directory.ts"
import {
	containerUserId,
	directoriesOf,
	linksOf,
	type Stack,
	type UserDirectory,
	type UserLink,
} from "./description.ts"
import { userNumber } from "./roster.ts"

export type DirectoryPlan = {
	missing: readonly (UserDirectory | UserLink)[]
	/** Their bases aren't there: a share that isn't mounted must not be filled. */
	unreachable: readonly string[]
	/** Of users who are not in the roster any more. */
	leftOver: readonly string[]
}

/** What there is of the users' directories, and what is missing. Only reads. */
export async function lookAtDirectories(stack: Stack): Promise<DirectoryPlan> {
	const missing: (UserDirectory | UserLink)[] = []
	const unreachable = new Set<string>()
	const { directory, paths } = stack.configuration
	for (const wanted of directoriesOf(stack)) {
		const { path, base } = wanted
		// The stack's own directory is made with its files.
		if (base !== directory && !(await isDirectory(base))) unreachable.add(base)
		else if (!(await isDirectory(path))) missing.push(wanted)
	}
	for (const link of linksOf(stack))
		if (!unreachable.has(link.base) && !(await isLink(link))) missing.push(link)
	const ids = new Set(stack.users.map(({ id }) => id))
	const leftOver: string[] = []
	// A GPU host knows nobody of the roster.
	const parents = [join(directory, "user_data"), paths.outputs, paths.inputs, join(paths.models, "users")]
	for (const parent of stack.role === "worker" ? [] : parents)
		for (const name of await names(parent))
			if (userNumber(name) !== undefined && !ids.has(name)) leftOver.push(join(parent, name))
	return { missing, unreachable: [...unreachable], leftOver: leftOver.sort() }
}

/**
 * Makes the missing ones, for ComfyUI's user where this process may give files away.
 * @throws {OperatorError} where a link stands in the way: nothing is made through it
 */
export async function makeDirectories(
	missing: readonly (UserDirectory | UserLink)[],
	isRoot: boolean,
): Promise<void> {
	for (const wanted of missing) {
		if ("target" in wanted) {
			const parent = dirname(wanted.path)
			await using held = await holdDirectory("/", parent, { noLinksFrom: parent, ownership: isRoot })
			await symlink(wanted.target, held.entry(basename(wanted.path)))
			continue
		}
		const { path, top, mode = 0o755, isOurs = false } = wanted
		let isNew = false
		const onMade = (made: string) => {
			isNew ||= made === top
		}
		const options = { noLinksFrom: top, onMade, ownership: isRoot }
		// What lies deeper gets its parent's owner.
		await using _made = await holdDirectory("/", path, options)
		if (!isNew) continue
		await using parent = await holdDirectory("/", dirname(top), options)
		const id = isOurs ? 0 : containerUserId
		const owner = { mode, uid: id, gid: id }
		await setPermissions(parent.entry(basename(top)), owner, isRoot)
	}
}

/** @throws {OperatorError} (8) when something else stands there: it would be another user's model, or nobody's */
async function isLink({ path, target }: UserLink): Promise<boolean> {
	try {
		const found = (await lstat(path)).isSymbolicLink() ? await readlink(path) : undefined
		if (found === target) return true
	} catch (error) {
		if (codeOf(error) === "ENOENT") return false
		throw systemError(error, `looking at ${path}`)
	}
	throw new OperatorError(`${path} is not the link to ${target} that it has to be`, {
		exitCode: exitCodes.refusedByGuard,
		hint: `ls -l ${path}; move it away and run this again`,
	})
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
