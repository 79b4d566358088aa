// The last moment of healing: a proven file takes the place of a damaged one, which is kept.
import { chmod, link, lstat, mkdir, readdir, realpath, rename } from "node:fs/promises"
import { basename, dirname, join, relative } from "node:path"
import { codeOf, exitCodes, OperatorError } from "../errors.ts"
import { syncPath } from "../host/sync.ts"

// Containers read models as another user.
const modelMode = 0o644

/**
 * The file that a model's path really means, and whether one is there. A link is followed to the model that it stands
 * for; a broken one is itself what gets replaced.
 * @throws {OperatorError} (8) when it leads out of the directory of models, or a directory stands there
 */
export async function findTarget(
	directory: string,
	path: string,
): Promise<{ file: string; isThere: boolean }> {
	const named = join(directory, path)
	const parent = await realOrNothing(dirname(named))
	if (parent !== undefined) await requireInside(directory, parent, path)
	const facts = await lstat(named).catch(nothing)
	if (facts === undefined) return { file: named, isThere: false }
	if (facts.isFile()) return { file: named, isThere: true }
	if (facts.isSymbolicLink()) {
		const real = await realOrNothing(named)
		if (real === undefined) return { file: named, isThere: true }
		await requireInside(directory, real, path)
		if ((await lstat(real)).isFile()) return { file: real, isThere: true }
	}
	throw new OperatorError(`${named} is no file, and nothing is put in its place`, {
		exitCode: exitCodes.refusedByGuard,
		hint: `ls -ld ${named}`,
	})
}

/** Makes the directory that a model goes into, readable for all, and has its name stand on the disk. */
export async function makeModelDirectory(path: string): Promise<void> {
	const firstMade = await mkdir(path, { recursive: true, mode: 0o755 })
	if (firstMade === undefined) return
	for (let made = path; ; made = dirname(made)) {
		await syncPath(dirname(made))
		if (made === firstMade || made === dirname(made)) return
	}
}

/**
 * Puts a synced file under a model's name. Whoever looks sees the old file or the new one, at any moment.
 * @returns where the old one is kept, if there was one
 */
export async function putInPlace(partialFile: string, target: string, at: Date): Promise<string | undefined> {
	await chmod(partialFile, modelMode)
	const keptAs = await keepAside(target, at)
	await rename(partialFile, target)
	await syncPath(dirname(target))
	return keptAs
}

/** A second name for the old file, so that its own is never without one. */
async function keepAside(target: string, at: Date): Promise<string | undefined> {
	const old = await lstat(target).catch(nothing)
	if (old === undefined) return undefined
	const prefix = `${basename(target)}.bad-`
	for (const name of await readdir(dirname(target))) {
		if (!name.startsWith(prefix)) continue
		// A run that was killed right here has given it its second name already.
		const kept = join(dirname(target), name)
		const { ino, dev } = await lstat(kept)
		if (ino === old.ino && dev === old.dev) return kept
	}
	const stamp = at.toISOString().replace(/[-:]|\.\d+/g, "")
	for (let attempt = 1; ; attempt++) {
		const aside = `${target}.bad-${stamp}${attempt === 1 ? "" : `-${attempt}`}`
		try {
			await link(target, aside)
			return aside
		} catch (error) {
			if (codeOf(error) === "EEXIST") continue
			if (!noLinks.has(codeOf(error) ?? "")) throw error
			// This file system has no second names: for a moment there is none at all.
			await rename(target, aside)
			return aside
		}
	}
}

const noLinks = new Set(["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK"])

async function requireInside(directory: string, real: string, path: string): Promise<void> {
	const steps = relative(await realpath(directory), real)
	if (steps !== ".." && !steps.startsWith("../")) return
	throw new OperatorError(`${path} leads to ${real}, outside of ${directory}: nothing is written there`, {
		exitCode: exitCodes.refusedByGuard,
		hint: `ls -l ${join(directory, path)}`,
	})
}

const realOrNothing = (path: string) => realpath(path).catch(nothing)

function nothing(error: unknown): undefined {
	if (["ENOENT", "ENOTDIR", "ELOOP"].includes(codeOf(error) ?? "")) return undefined
	throw error
}
