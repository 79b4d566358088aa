// Puts a verified archive in the place of what lies on the disk: unpacked on the same file system, compared once more,
// swapped in. What stood there before is kept.
import { lstat } from "node:fs/promises"
import { dirname, join } from "node:path"
import { codeOf, exitCodes, messageOf, OperatorError, systemError } from "../errors.ts"
import { command } from "../host/command.ts"
import { requireSpaceOn, spaceFactor } from "../host/disk.ts"
import { isRootsOwn } from "../host/held-directory.ts"
import type { LocalHost } from "../host/local.ts"
import { unpackArchive } from "./archive.ts"
import type { ArchiveArtifact } from "./catalogue.ts"
import type { Verified } from "./chain.ts"
import { isWithin } from "./path-pattern.ts"
import { stamp } from "./snapshot.ts"
import { type Swap, swapIn, undoSwap } from "./swap.ts"
import { differences, readTree, type Tree, type TreeEntry, treeDigest, treeOf } from "./tree.ts"

export type Replaced = {
	/** Where what stood there before is kept; undefined when nothing stood there. */
	keptIn: string | undefined
	/** Puts everything back as it was. For a restored state that turns out not to work. */
	undo(): Promise<void>
}

/**
 * Swaps an archive's content in. Killed at any point it leaves each file either old or new, and running it again
 * finishes.
 * @throws {OperatorError} when the unpacked content isn't what was verified, with nothing touched; (9) when swapping
 *   failed and was undone; (10) when undoing failed too, naming where the old files are
 */
export async function replaceWith(
	host: LocalHost,
	artifact: ArchiveArtifact,
	verified: Verified,
	at: Date,
): Promise<Replaced> {
	const { base, standing } = await chooseBase(host, artifact)
	const staging = `${base}/staging`
	const swap: Swap = { host, artifact, staging, keep: `${base}/replaced-${stamp(at)}`, moves: [] }
	const tree = withoutExcluded(artifact, verified.tree)
	await host.files.remove(staging)
	await host.files.makeDirectory(base, 0o700)
	await host.files.makeDirectory(staging, 0o700)
	try {
		const bytes = Math.ceil(verified.tree.sizeBytes * spaceFactor)
		const files = tree.entries.length
		for (const directory of [staging, standing]) await requireSpaceOn(host, directory, { bytes, files })
		for (const { archiveFile, members } of verified.parts)
			await unpackArchive(host, archiveFile, staging, members)
		await demandModes(host, tree, staging)
		await compare(host, artifact, tree, staging)
		// A rename that outlives a power cut which the content didn't would leave empty files.
		await host.execute(command("sync", "--file-system", host.path(staging)))
		await swapOrUndo(swap, tree)
		await host.execute(command("sync", "--file-system", host.path(standing)))
		return {
			keptIn: swap.moves.some(({ did }) => did === "kept") ? swap.keep : undefined,
			undo: () => undoSwap(swap),
		}
	} finally {
		await host.files.remove(staging)
	}
}

/** A tree without what the catalogue excludes: an archive that is older than an exclusion still holds it. */
export function withoutExcluded({ exclude }: Pick<ArchiveArtifact, "exclude">, tree: Tree): Tree {
	const kept = tree.entries.filter(({ path }) => !exclude.some((pattern) => isWithin(`/${path}`, pattern)))
	return treeOf(kept, tree.leftOut)
}

/**
 * Where to unpack and to keep: the deepest directory above the artifact that only root can write (a user could swap
 * what lies in another), on the same file system (only there a rename is atomic), and not in somebody's checkout. When
 * there is none, files are copied into their place.
 */
async function chooseBase(
	host: LocalHost,
	artifact: ArchiveArtifact,
): Promise<{ base: string; standing: string }> {
	const [target = "/"] = artifact.paths
	let chosen: string | undefined
	let standing = "/"
	let device: number | undefined
	let safe = true
	const safeOn = new Map<number, string>()
	for (const directory of [...ancestors(target), target]) {
		const facts = await lstat(host.path(directory)).catch((error: unknown) => {
			if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return undefined
			throw systemError(error, `looking at ${directory}`)
		})
		if (facts?.isDirectory() !== true) break
		standing = directory
		device = facts.dev
		// Homes are their users', whoever owns them where a directory stands in for a machine.
		safe &&= isRootsOwn(facts) && !directory.startsWith("/home/") && !(await isCheckout(host, directory))
		if (safe && directory !== target) safeOn.set(facts.dev, directory)
	}
	if (device !== undefined) chosen = safeOn.get(device)
	return {
		base:
			chosen === undefined
				? join("/var/lib/comfyume/replaced", artifact.name)
				: join(chosen, ".comfyume", artifact.name),
		standing,
	}
}

/** From `/` down, without the path itself. */
function ancestors(path: string): string[] {
	const parent = dirname(path)
	return parent === path ? [] : [...ancestors(parent), parent]
}

async function isCheckout(host: LocalHost, directory: string): Promise<boolean> {
	return lstat(host.path(join(directory, ".git"))).then(
		() => true,
		() => false,
	)
}

async function swapOrUndo(swap: Swap, tree: Tree): Promise<void> {
	const { artifact, keep, moves } = swap
	try {
		await swapIn(swap, tree)
	} catch (error) {
		if (moves.length === 0) throw error
		try {
			await undoSwap(swap)
		} catch (undoError) {
			throw new OperatorError(
				`${messageOf(error)}; and the old files could not be put back from ${keep}: ${messageOf(undoError)}`,
				{ exitCode: exitCodes.rollbackFailed, hint: `ls -la ${keep}`, cause: undoError },
			)
		}
		throw new OperatorError(`${artifact.name} was put back as it was: ${messageOf(error)}`, {
			exitCode: exitCodes.rolledBack,
			cause: error,
		})
	}
}

/** chmod and chown only where the catalogue's demand differs from what the archive gave. */
export async function demandModes(host: LocalHost, tree: Tree, staging: string): Promise<void> {
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
	wanted: Tree,
	staging: string,
): Promise<void> {
	const ownership = !host.standIn
	const unpacked = await readTree(host, artifact, staging)
	if (treeDigest(unpacked, { ownership }) === treeDigest(wanted, { ownership })) return
	const said = differences(wanted, unpacked, { ownership, limit: 5 })
	throw new OperatorError(`what was unpacked is not what was verified: ${said.join("; ")}`)
}
