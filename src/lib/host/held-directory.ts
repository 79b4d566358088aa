// A directory held open, so that what is done in it is done in it: whoever owns a directory above can put a symbolic
// link in its place between any two steps, and root would write wherever that points to.
import { constants, readlinkSync, statSync } from "node:fs"
import { type FileHandle, mkdir, open } from "node:fs/promises"
import { join } from "node:path"
import { codeOf, OperatorError, systemError } from "../errors.ts"

const asDirectory = constants.O_RDONLY | constants.O_DIRECTORY

/** Open until it is disposed of. */
export type HeldDirectory = AsyncDisposable & {
	/** Where an entry lies, for system calls and programs; stays right when the directory is moved or replaced. */
	entry(name: string): string
}

/** Who owns an entry and who may do what with it. */
export type Permissions = { mode: number; uid: number; gid: number }

export type HoldOptions = {
	/** From this path on down no link is followed. Above, those are that only root could have put there. */
	noLinksFrom: string
	/** Makes what is missing, with mode 0755 and its parent's owner, and says each; without it that is an error. */
	onMade?: (path: string) => void
	/** False where owners aren't set: a directory that stands in for a machine. */
	ownership: boolean
}

/**
 * Opens a directory part by part, each through the one before it.
 * @param root what stands for `/`
 * @param path absolute, on the host
 * @throws {OperatorError} when a part is a link that must not be followed, or no directory
 */
export async function holdDirectory(
	root: string,
	path: string,
	options: HoldOptions,
): Promise<HeldDirectory> {
	let handle = await open(root, asDirectory)
	let at = "/"
	let onlyRoots = true
	try {
		for (const name of path.split("/").filter((part) => part !== "")) {
			onlyRoots &&= isRootsOwn(await handle.stat())
			at = join(at, name)
			const follow = onlyRoots && at !== options.noLinksFrom && !at.startsWith(`${options.noLinksFrom}/`)
			const next = await openPart(handle, name, at, follow, options)
			await handle.close()
			handle = next
		}
	} catch (error) {
		await handle.close()
		if (codeOf(error) !== "ENOTDIR" && codeOf(error) !== "ELOOP") throw systemError(error, `opening ${at}`)
		throw new OperatorError(
			`${at} is a link or a file where a directory belongs: nothing is written through it`,
			{
				hint: `ls -ld ${at}`,
				cause: error,
			},
		)
	}
	return { entry: (name) => entryOf(handle, name), [Symbol.asyncDispose]: () => handle.close() }
}

async function openPart(
	parent: FileHandle,
	name: string,
	at: string,
	follow: boolean,
	{ onMade, ownership }: HoldOptions,
): Promise<FileHandle> {
	const entry = entryOf(parent, name)
	try {
		return await open(entry, asDirectory | (follow ? 0 : constants.O_NOFOLLOW))
	} catch (error) {
		if (codeOf(error) !== "ENOENT" || onMade === undefined) throw error
	}
	const { uid, gid } = await parent.stat()
	await mkdir(entry, 0o700)
	onMade(at)
	await setPermissions(entry, { mode: 0o755, uid, gid }, ownership)
	return open(entry, asDirectory | constants.O_NOFOLLOW)
}

/**
 * Sets mode and owner of a directory, never of what a link points to.
 * @returns what they were
 */
export async function setPermissions(
	entry: string,
	{ mode, uid, gid }: Permissions,
	ownership: boolean,
): Promise<Permissions> {
	const handle = await open(entry, asDirectory | constants.O_NOFOLLOW)
	try {
		const was = await handle.stat()
		if (ownership) await handle.chown(uid, gid)
		await handle.chmod(mode & 0o7777)
		return { mode: was.mode & 0o7777, uid: was.uid, gid: was.gid }
	} finally {
		await handle.close()
	}
}

/** True when nobody but root (for a stand-in: whoever runs this) can put something into a directory or take it away. */
export function isRootsOwn({ uid, mode }: Permissions): boolean {
	return uid === statSync("/proc/self").uid && (mode & 0o022) === 0
}

// By our number and not `self`: programs that we start look at it too.
const entryOf = (directory: FileHandle, name: string) =>
	`/proc/${readlinkSync("/proc/self")}/fd/${directory.fd}/${name}`
