// Moves an unpacked tree into its place, file by file, and back again. Everything happens inside of directories that are
// held open: the trees belong to users who may be at work in them.
import type { Stats } from "node:fs"
import { link, lstat, mkdir, rename, rm, rmdir, unlink } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { codeOf, messageOf, OperatorError, systemError } from "../errors.ts"
import { companionEndings, isDatabaseName } from "../formats/sqlite-files.ts"
import { command } from "../host/command.ts"
import {
	type HeldDirectory,
	holdDirectory,
	type Permissions,
	setPermissions,
} from "../host/held-directory.ts"
import type { LocalHost } from "../host/local.ts"
import type { ArchiveArtifact } from "./catalogue.ts"
import { differences, readTree, type Tree, type TreeEntry } from "./tree.ts"

/** One thing that was done, with what it takes to undo it. Paths on the host. */
export type Move = { path: string } & (
	| { did: "made" }
	/** What stood there is in the kept directory, below its own path. */
	| { did: "kept" }
	/** A directory's permissions were changed, or it was removed. */
	| { did: "changed" | "removed"; were: Permissions }
)

export type Swap = {
	host: LocalHost
	artifact: ArchiveArtifact
	/** Directories on the host that only root can enter. */
	staging: string
	keep: string
	/** What was done so far; filled while it is done, so that it can be undone from the middle. */
	moves: Move[]
}

/** What undoing starts must not end with the run that is being undone. */
const unstopped = () => ({ signal: new AbortController().signal })

/**
 * File by file, and never whole directories: a directory can't be renamed everywhere (a mount point, the lower layer of
 * an overlay), a file's rename is atomic, and what is the same already isn't touched.
 */
export async function swapIn(swap: Swap, tree: Tree): Promise<void> {
	const { host, artifact, staging, moves } = swap
	const live = new Map((await readTree(host, artifact)).entries.map((entry) => [entry.path, entry]))
	await using parents = heldParents(swap)
	for (const entry of tree.entries) {
		const path = `/${entry.path}`
		const standing = live.get(entry.path)
		if (standing !== undefined && sameEntry(standing, entry, !host.standIn)) continue
		await naming(`placing ${path}`, async () => {
			const at = await parents.entry(path)
			const staged = host.path(join(staging, path))
			if (entry.type === "directory") return placeDirectory(swap, path, at, staged)
			const facts = await factsOf(at)
			// A log of the old database would be written into the new one.
			if (isDatabaseName(path))
				for (const ending of companionEndings) {
					const companion = await parents.entry(`${path}${ending}`)
					if ((await factsOf(companion)) !== undefined) await moveAside(swap, `${path}${ending}`, companion)
				}
			if (facts !== undefined) await keepAside(swap, path, at, facts)
			await place(host, staged, at)
			if (facts === undefined) moves.push({ path, did: "made" })
		})
	}
	if (artifact.replace === "files") return
	// What isn't in the snapshot goes last: until then nothing is missing that was there. Deepest first, so that
	// directories are empty when their turn comes; one that isn't holds what is no part of the artifact, and stays.
	const wanted = new Map(tree.entries.map((entry) => [entry.path, entry]))
	for (const extra of [...live.values()].filter(({ path }) => !wanted.has(path)).reverse()) {
		// It went with the directory in whose place a file stands now.
		if (above(extra.path).some((parent) => (wanted.get(parent)?.type ?? "directory") !== "directory"))
			continue
		const path = `/${extra.path}`
		await naming(`taking away ${path}`, async () => {
			const at = await parents.entry(path)
			const facts = await factsOf(at)
			if (facts === undefined) return
			if (!facts.isDirectory()) return moveAside(swap, path, at)
			if (await removeEmpty(at)) moves.push({ path, did: "removed", were: facts })
		})
	}
}

/**
 * Puts everything back as it was, as far as it goes.
 * @throws {OperatorError} saying what could not be put back
 */
export async function undoSwap(swap: Swap): Promise<void> {
	const failures: string[] = []
	await using parents = heldParents(swap)
	for (const move of swap.moves.toReversed()) {
		try {
			await undoMove(swap, move, await parents.entry(move.path))
		} catch (error) {
			failures.push(`${move.path}: ${messageOf(error)}`)
		}
	}
	// What is back needn't be put back once more.
	swap.moves.length = 0
	const [first] = failures
	if (first === undefined) return
	throw new OperatorError(failures.length > 1 ? `${first} (and ${failures.length - 1} more)` : first)
}

async function undoMove({ host, keep }: Swap, move: Move, at: string): Promise<void> {
	if (move.did === "removed") await mkdir(at, 0o700)
	if (move.did === "removed" || move.did === "changed") {
		await setPermissions(at, move.were, !host.standIn)
		return
	}
	const standing = await factsOf(at)
	// Never with what lies in it: what came from us is gone by now, and the rest is somebody else's.
	if (standing?.isDirectory() === true) await removeEmpty(at)
	if (move.did === "made") {
		if (standing?.isDirectory() === false) await unlink(at)
		return
	}
	const kept = host.path(join(keep, move.path))
	// A directory can't take a file's name.
	if (standing?.isDirectory() === false && (await lstat(kept)).isDirectory()) await unlink(at)
	await place(host, kept, at)
}

/** A directory isn't replaced: what else lies in it stays. It gets the mode and owner it had. */
async function placeDirectory(swap: Swap, path: string, at: string, staged: string): Promise<void> {
	const { host, moves } = swap
	const facts = await factsOf(at)
	const standing = facts?.isDirectory() === true
	if (facts !== undefined && !standing) {
		await keepAside(swap, path, at, facts)
		await unlink(at)
	}
	if (!standing) await mkdir(at, 0o700)
	if (facts === undefined) moves.push({ path, did: "made" })
	if (standing) moves.push({ path, did: "changed", were: facts })
	await setPermissions(at, await lstat(staged), !host.standIn)
}

/** By a rename; across file systems by a copy beside the place, which is then renamed. */
async function place(host: LocalHost, from: string, at: string): Promise<void> {
	try {
		await rename(from, at)
	} catch (error) {
		if (codeOf(error) !== "EXDEV") throw error
		const partial = join(dirname(at), ".comfyume.partial")
		try {
			await copy(host, from, partial)
			await rename(partial, at)
		} catch (copyError) {
			await rm(partial, { force: true })
			throw copyError
		}
	}
}

/** Nothing is written through what lies there: it is removed, and cp insists on making the new file itself. */
async function copy(host: LocalHost, from: string, to: string): Promise<void> {
	await host.execute(
		command("cp", "--archive", "--remove-destination", "--no-target-directory", "--", from, to),
		unstopped(),
	)
}

/**
 * A second name first, so that the file is never gone: it is replaced by the rename that follows. A directory in a
 * file's place (Docker makes them for missing bind mounts) has to be moved.
 */
async function keepAside(swap: Swap, path: string, at: string, facts: Stats): Promise<void> {
	const { host, keep, moves } = swap
	if (facts.isDirectory()) return moveAside(swap, path, at)
	await host.files.makeDirectory(dirname(join(keep, path)), 0o700)
	const kept = host.path(join(keep, path))
	try {
		await link(at, kept)
	} catch (error) {
		if (codeOf(error) === "EXDEV") await copy(host, at, kept)
		// A run that was killed within the same second has kept it already.
		else if (codeOf(error) !== "EEXIST") throw error
	}
	moves.push({ path, did: "kept" })
}

/** `mv` copies what can't be renamed. Cut off in the middle of that it would leave a half. */
async function moveAside({ host, keep, moves }: Swap, path: string, at: string): Promise<void> {
	await host.files.makeDirectory(dirname(join(keep, path)), 0o700)
	const kept = host.path(join(keep, path))
	await host.execute(command("mv", "--no-target-directory", "--", at, kept), unstopped())
	moves.push({ path, did: "kept" })
}

/** False when something lies in it. */
async function removeEmpty(at: string): Promise<boolean> {
	try {
		await rmdir(at)
		return true
	} catch (error) {
		if (codeOf(error) === "ENOTEMPTY" || codeOf(error) === "EEXIST" || codeOf(error) === "EBUSY") return false
		throw error
	}
}

/** Holds the directory that was asked for last: entries of one directory come mostly one after another. */
function heldParents({ host, artifact, moves }: Swap): AsyncDisposable & {
	entry(path: string): Promise<string>
} {
	const [first = "/"] = artifact.paths
	let held: { path: string; directory: HeldDirectory } | undefined
	const release = async () => {
		await held?.directory[Symbol.asyncDispose]()
		held = undefined
	}
	return {
		entry: async (path) => {
			const parent = dirname(path)
			if (held?.path !== parent) {
				await release()
				const directory = await holdDirectory(host.root, parent, {
					noLinksFrom: artifact.paths.find((root) => path.startsWith(`${root}/`)) ?? first,
					onMade: (made) => moves.push({ path: made, did: "made" }),
					ownership: !host.standIn,
				})
				held = { path: parent, directory }
			}
			return held.directory.entry(basename(path))
		},
		[Symbol.asyncDispose]: release,
	}
}

function above(path: string): string[] {
	const parent = dirname(path)
	return parent === "." ? [] : [parent, ...above(parent)]
}

async function factsOf(at: string): Promise<Stats | undefined> {
	try {
		return await lstat(at)
	} catch (error) {
		if (codeOf(error) === "ENOENT") return undefined
		throw error
	}
}

async function naming(doing: string, work: () => Promise<void>): Promise<void> {
	try {
		await work()
	} catch (error) {
		throw systemError(error, doing)
	}
}

function sameEntry(a: TreeEntry, b: TreeEntry, ownership: boolean): boolean {
	return differences(treeOfOne(a), treeOfOne(b), { ownership, limit: 1 }).length === 0
}

const treeOfOne = (entry: TreeEntry): Tree => ({ entries: [entry], sizeBytes: 0, leftOut: [] })
