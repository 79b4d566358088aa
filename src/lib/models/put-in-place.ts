// The last moment of healing: a proven file takes the place of a damaged one, which is kept.
import { chmod, link, lstat, mkdir, readdir, realpath, rename } from "node:fs/promises"
import { basename, dirname, join, relative } from "node:path"
import { codeOf, exitCodes, OperatorError } from "../errors.ts"
import { syncPath } from "../host/sync.ts"
import type { ModelEntry } from "./manifest.ts"
import { isTrusted } from "./offer.ts"

// Containers read models as another user.
const modelMode = 0o644

/**
 * Another model of the manifest that lies where this one's path leads by a link: the two can't both be right there. Undefined where the manifest's digests agree, or one of them isn't known.
 */
export async function otherModelAt(
	directory: string,
	entry: ModelEntry,
	models: readonly ModelEntry[],
): Promise<ModelEntry | undefined> {
	const root = await realOrNothing(directory)
	const place = await placeOf(directory, entry)
	// Only a link leads elsewhere.
	if (root === undefined || place === undefined || place === join(root, entry.path)) return undefined
	const owner = models.find(({ path }) => join(root, path) === place)
	if (owner !== undefined) return areTwo(owner, entry) ? owner : undefined
	for (const model of models)
		if (areTwo(model, entry) && (await placeOf(directory, model)) === place) return model
	return undefined
}

/** Where a model's bytes lie or will lie; undefined where not even its directory is there. */
async function placeOf(directory: string, { path }: ModelEntry): Promise<string | undefined> {
	const named = join(directory, path)
	const parent = await realOrNothing(dirname(named))
	return (await realOrNothing(named)) ?? (parent && join(parent, basename(named)))
}

const areTwo = (one: ModelEntry, other: ModelEntry): boolean =>
	[one, other].every(isTrusted) &&
	(differ(one.sha256, other.sha256) || differ(one.sizeBytes, other.sizeBytes))

const differ = <Figure>(one: Figure | undefined, other: Figure | undefined): boolean =>
	one !== undefined && other !== undefined && one !== other

/**
 * The file that a model's path really means, and whether one is there. A link is followed to the model that it stands
 * for; a broken one, and one that leads to another model, is itself what gets replaced.
 * @param models the manifest's, among which that other one may be
 * @throws {OperatorError} (8) when it leads out of the directory of models, when it is another model's place by a link
 * further up, or a directory stands there
 */
export async function findTarget(
	directory: string,
	entry: ModelEntry,
	models: readonly ModelEntry[],
): Promise<{ file: string; isThere: boolean }> {
	const { path } = entry
	const named = join(directory, path)
	const parent = await realOrNothing(dirname(named))
	if (parent !== undefined) await requireInside(directory, parent, path)
	const facts = await lstat(named).catch(nothing)
	const owner = await otherModelAt(directory, entry, models)
	if (owner !== undefined && facts?.isSymbolicLink() === true) return { file: named, isThere: true }
	if (owner !== undefined)
		throw new OperatorError(`${path} leads to ${owner.path}, which is another model: neither is touched`, {
			exitCode: exitCodes.refusedByGuard,
			hint: `ls -ld ${dirname(named)}`,
		})
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
