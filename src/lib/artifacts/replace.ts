// Puts a verified archive in the place of what lies on the disk: unpacked beside it, compared once more, swapped in.
// What stood there before is kept.
import { lstat } from "node:fs/promises"
import { dirname, join } from "node:path"
import { codeOf, OperatorError, systemError } from "../errors.ts"
import { command } from "../host/command.ts"
import type { LocalHost } from "../host/local.ts"
import { unpackArchive } from "./archive.ts"
import type { ArchiveArtifact } from "./catalogue.ts"
import type { Verified } from "./chain.ts"
import { stamp } from "./snapshot.ts"
import { requireSpace, spaceFactor } from "./take.ts"
import { differences, readTree, type Tree, type TreeEntry, treeDigest } from "./tree.ts"

export type Replaced = {
	/** Where what stood there before is kept; undefined when nothing stood there. */
	keptIn: string | undefined
	/** Puts everything back as it was. For a restored state that turns out not to work. */
	undo(): Promise<void>
}

type Move = { path: string; kept: boolean }

/**
 * Swaps an archive's content in. Interrupted at any point it leaves each file either old or new, and running it again
 * finishes.
 * @throws {OperatorError} when the unpacked content isn't what was verified; nothing has been touched then
 */
export async function replaceWith(
	host: LocalHost,
	artifact: ArchiveArtifact,
	verified: Verified,
	at: Date,
): Promise<Replaced> {
	// Beside the target, because a rename is atomic only within one file system.
	const base = join(dirname(artifact.paths[0] ?? "/"), ".comfyume", artifact.name)
	const staging = `${base}/staging`
	const keep = `${base}/replaced-${stamp(at)}`
	await host.files.remove(staging)
	await host.files.makeDirectory(base, 0o700)
	await host.files.makeDirectory(staging, 0o700)
	try {
		await requireSpace(host, staging, Math.ceil(verified.tree.sizeBytes * spaceFactor))
		await unpackArchive(host, verified.archiveFile, staging)
		await demandModes(host, verified.tree, staging)
		await compare(host, artifact, verified, staging)
		const moves = await swapFiles(host, artifact, verified.tree, staging, keep)
		await host.execute(command("sync", "--file-system", host.path(dirname(base))))
		return {
			keptIn: moves.some(({ kept }) => kept) ? keep : undefined,
			undo: () => undo(host, moves, keep),
		}
	} finally {
		await host.files.remove(staging)
	}
}

/** chmod and chown only where the catalogue's demand differs from what the archive gave. */
async function demandModes(host: LocalHost, tree: Tree, staging: string): Promise<void> {
	for (const entry of tree.entries) {
		if (entry.type === "symlink") continue
		const path = join(staging, entry.path)
		const facts = await lstat(host.path(path))
		if ((facts.mode & 0o7777) !== entry.mode) await host.files.setMode(path, entry.mode)
	}
	await demandOwners(host, tree.entries, staging)
}

/** One program for all entries of an owner. chown clears setuid and setgid bits of files, and no backup holds those. */
async function demandOwners(host: LocalHost, all: readonly TreeEntry[], at: string): Promise<void> {
	if (host.standIn) return
	const byOwner = Map.groupBy(all, ({ owner, group }) => `${owner}:${group}`)
	for (const [owner, entries] of byOwner) {
		const names = entries.map(({ path }) => `${host.path(join(at, path))}\0`).join("")
		await host.execute(
			command("xargs", "--null", "--no-run-if-empty", "chown", "--no-dereference", "--", owner),
			{ stdin: names },
		)
	}
}

async function compare(
	host: LocalHost,
	artifact: ArchiveArtifact,
	verified: Verified,
	staging: string,
): Promise<void> {
	const ownership = !host.standIn
	const unpacked = await readTree(host, { paths: artifact.paths, exclude: [] }, staging)
	if (treeDigest(unpacked, { ownership }) === treeDigest(verified.tree, { ownership })) return
	const said = differences(verified.tree, unpacked, { ownership, limit: 5 })
	throw new OperatorError(`what was unpacked is not what was verified: ${said.join("; ")}`)
}

/**
 * File by file, and never whole directories: a directory can't be renamed everywhere (a mount point, the lower layer of
 * an overlay), a file's rename is atomic, and what is the same already isn't touched.
 */
async function swapFiles(
	host: LocalHost,
	artifact: ArchiveArtifact,
	tree: Tree,
	staging: string,
	keep: string,
): Promise<Move[]> {
	const live = new Map(
		(await readTree(host, { paths: artifact.paths, exclude: artifact.exclude })).entries.map((entry) => [
			entry.path,
			entry,
		]),
	)
	const moves: Move[] = []
	// Nothing stands in a directory that was just made; ten thousand files needn't be asked one by one.
	const made = new Set<string>()
	for (const entry of tree.entries) {
		const path = `/${entry.path}`
		const standing = live.get(entry.path)
		if (standing !== undefined && sameEntry(standing, entry, !host.standIn)) continue
		if (entry.type === "directory") {
			const placed = await placeDirectory(host, path, join(keep, path), entry)
			if (placed.length > 0) made.add(path)
			moves.push(...placed)
			continue
		}
		const empty = made.has(dirname(path))
		if (!empty) await host.files.makeDirectory(dirname(path), 0o755)
		const kept = !empty && (await exists(host, path))
		if (kept) await keepAside(host, path, join(keep, path))
		await place(host, join(staging, entry.path), path)
		moves.push({ path, kept })
	}
	// The files brought their owners along from staging; directories were made here.
	await demandOwners(
		host,
		tree.entries.filter(({ type }) => type === "directory"),
		"/",
	)
	if (artifact.replace === "files") return moves
	// What isn't in the snapshot goes last: until then nothing is missing that was there. Deepest first, so that
	// directories are empty when their turn comes; one that isn't holds what is no part of the artifact, and stays.
	const wanted = new Set(tree.entries.map(({ path }) => path))
	for (const extra of [...live.values()].filter(({ path }) => !wanted.has(path)).reverse()) {
		const path = `/${extra.path}`
		if (extra.type === "directory") {
			await host.execute(command("rmdir", "--", host.path(path)), { allowedExitCodes: [1] })
			continue
		}
		await host.files.makeDirectory(dirname(join(keep, path)), 0o700)
		await host.files.rename(path, join(keep, path))
		moves.push({ path, kept: true })
	}
	return moves
}

/** By a rename; across file systems by a copy beside the place, which is then renamed. */
async function place(host: LocalHost, staged: string, path: string): Promise<void> {
	try {
		await host.files.rename(staged, path)
	} catch (error) {
		if (!(error instanceof OperatorError) || codeOf(error.cause) !== "EXDEV") throw error
		const partial = `${path}.comfyume.partial`
		await host.execute(
			command("cp", "--archive", "--no-target-directory", "--", host.path(staged), host.path(partial)),
		)
		await host.files.rename(partial, path)
	}
}

/** A directory isn't replaced: what else lies in it stays. It gets the mode and owner it had. */
async function placeDirectory(
	host: LocalHost,
	path: string,
	keep: string,
	entry: TreeEntry,
): Promise<Move[]> {
	const facts = await lstat(host.path(path)).catch(() => undefined)
	const inTheWay = facts !== undefined && !facts.isDirectory()
	if (inTheWay) await keepAside(host, path, keep)
	if (inTheWay) await host.files.remove(path)
	await host.files.makeDirectory(path, entry.mode)
	await host.files.setMode(path, entry.mode)
	return facts === undefined || inTheWay ? [{ path, kept: inTheWay }] : []
}

/**
 * A second name first, so that the file is never gone: it is replaced by the rename that follows. A directory in a
 * file's place (Docker makes them for missing bind mounts) has to be moved.
 */
async function keepAside(host: LocalHost, path: string, keep: string): Promise<void> {
	await host.files.makeDirectory(dirname(keep), 0o700)
	const facts = await lstat(host.path(path))
	if (facts.isDirectory()) {
		// `mv` copies where the directory can't be renamed.
		await host.execute(command("mv", "--no-target-directory", "--", host.path(path), host.path(keep)))
		return
	}
	try {
		if (await host.files.link(path, keep)) return
	} catch (error) {
		// A run that was killed within the same second has kept it already.
		if (codeOf(error) === "EEXIST") return
		throw error
	}
	await host.execute(
		command("cp", "--archive", "--no-target-directory", "--", host.path(path), host.path(keep)),
	)
}

async function undo(host: LocalHost, moves: readonly Move[], keep: string): Promise<void> {
	for (const { path, kept } of [...moves].reverse()) {
		const standing = await lstat(host.path(path)).catch(() => undefined)
		if (!kept || standing?.isDirectory() === true) await host.files.remove(path)
		if (kept) {
			await host.files.makeDirectory(dirname(path), 0o755)
			await host.execute(
				command("mv", "--no-target-directory", "--", host.path(join(keep, path)), host.path(path)),
			)
		}
	}
}

function sameEntry(a: TreeEntry, b: TreeEntry, ownership: boolean): boolean {
	return differences(treeOfOne(a), treeOfOne(b), { ownership, limit: 1 }).length === 0
}

const treeOfOne = (entry: TreeEntry): Tree => ({ entries: [entry], sizeBytes: 0, leftOut: [] })

async function exists(host: LocalHost, path: string): Promise<boolean> {
	try {
		await lstat(host.path(path))
		return true
	} catch (error) {
		if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return false
		throw systemError(error, `looking at ${path}`)
	}
}
