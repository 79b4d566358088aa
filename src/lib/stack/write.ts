// Writing a stack's files: all of them or none. Everything is staged and on the disk before the first is renamed; if a
// rename fails, those before it are taken back.
import { chmod, link, lstat, mkdir, open, readFile, rename, rm } from "node:fs/promises"
import { dirname, join } from "node:path"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { syncPath } from "../host/sync.ts"
import type { StackFile } from "./render.ts"

export type Change = StackFile & {
	/** What stands there; undefined where nothing does. */
	before: string | undefined
	/** Its mode is another one. */
	modeDiffers: boolean
}

/**
 * Which of the files differ from what stands in the directory.
 * @throws {OperatorError} with exit code 8 where a link or a directory stands in a file's place
 */
export async function findChanges(directory: string, rendered: readonly StackFile[]): Promise<Change[]> {
	const changes: Change[] = []
	for (const file of rendered) {
		const path = join(directory, file.path)
		const stat = await lstat(path).catch((error: unknown) => {
			if (codeOf(error) === "ENOENT") return undefined
			throw systemError(error, `reading ${path}`)
		})
		if (stat !== undefined && !stat.isFile())
			// Docker makes a directory where a mounted file is missing, and nginx then can't read it.
			throw new OperatorError(`${path} is ${stat.isDirectory() ? "a directory" : "no regular file"}`, {
				exitCode: exitCodes.refusedByGuard,
				hint: `look at it, then: ${stat.isDirectory() ? "rmdir" : "rm"} ${path}`,
			})
		const before = stat === undefined ? undefined : await read(path)
		const modeDiffers = stat !== undefined && (stat.mode & 0o777) !== file.mode
		if (before !== file.text || modeDiffers) changes.push({ ...file, before, modeDiffers })
	}
	return changes
}

/** The text of a file; "" where there is none. Throws `OperatorError` for one that can't be read. */
export async function readIfThere(path: string): Promise<string> {
	return (await read(path)) ?? ""
}

async function read(path: string): Promise<string | undefined> {
	try {
		return await readFile(path, "utf8")
	} catch (error) {
		if (codeOf(error) === "ENOENT") return undefined
		throw systemError(error, `reading ${path}`)
	}
}

/**
 * Writes the changed files.
 * @param id for the names of what is staged
 * @throws {OperatorError} after everything is as it was before
 */
export async function writeChanges(directory: string, changes: readonly Change[], id: string): Promise<void> {
	const places = changes.map((change) => {
		const path = join(directory, change.path)
		return { change, path, partial: `${path}.${id}.partial`, kept: `${path}.${id}.before.partial` }
	})
	const swapped: typeof places = []
	try {
		for (const { change, path, partial, kept } of places) {
			// The stack's directory holds secrets; what lies in its parts is shut by each file's own mode.
			await mkdir(dirname(path), { recursive: true, mode: 0o755 })
			await stage(partial, change)
			if (change.before !== undefined) await link(path, kept)
		}
		for (const place of places) {
			await rename(place.partial, place.path)
			swapped.push(place)
		}
		for (const parent of new Set(places.map(({ path }) => dirname(path)))) await syncPath(parent)
	} catch (error) {
		for (const { change, path, kept } of swapped.reverse())
			await (change.before === undefined ? rm(path, { force: true }) : rename(kept, path))
		throw systemError(error, `writing to ${directory}: nothing was changed`)
	} finally {
		for (const { partial, kept } of places) {
			await rm(partial, { force: true })
			await rm(kept, { force: true })
		}
	}
}

async function stage(partial: string, { text, mode }: StackFile): Promise<void> {
	const handle = await open(partial, "wx", mode)
	try {
		// `open` takes the umask away from the mode.
		await handle.chmod(mode)
		await handle.writeFile(text)
		await handle.sync()
	} finally {
		await handle.close()
	}
}

/** Writes one file of its own (the sheet to hand out) with mode 0600, replaced as a whole. */
export async function writeSecretFile(path: string, text: string, id: string): Promise<void> {
	const file = { path: "", text, mode: 0o600, secret: true }
	const partial = `${path}.${id}.partial`
	try {
		await stage(partial, file)
		await rename(partial, path)
		await chmod(path, 0o600)
	} catch (error) {
		throw systemError(error, `writing ${path}`)
	} finally {
		await rm(partial, { force: true })
	}
}
