// What an incremental snapshot packs, and what it leaves in the archives of earlier ones.

import type { EarlierArchive } from "./snapshot.ts"
import type { IndexedEntry } from "./snapshot-index.ts"
import { type Tree, type TreeEntry, treeOf } from "./tree.ts"

/** The snapshot that a new one builds upon. */
export type Base = {
	entries: readonly IndexedEntry[]
	/** Every archive that the entries name. */
	archives: readonly EarlierArchive[]
}

export type Packing = {
	/** What goes into the new archive: what has changed, and all directories and links, which cost nothing. */
	pack: Tree
	/** Files whose bytes stay where they are: path -> archive. */
	kept: ReadonlyMap<string, string>
	/** Those that are still needed. */
	archives: readonly EarlierArchive[]
}

/** A restore opens each archive that is named: hourly ones of a year would be thousands. */
const mostArchives = 32
const archivesAfterwards = 16
/** An archive of which less than this part is still in use is let go, and what is in use packed anew. */
const worthKeeping = 0.25

/**
 * Decides by content. Archives that have become useless, or too many, are given up, those with the least in use first: a
 * large first archive stays, the small hourly ones on it are merged.
 * @param base undefined for a snapshot that stands alone
 * @param carried paths whose bytes can be had from their earlier archive alone; it is kept, whatever becomes of others
 * @param full pack everything else anew
 */
export function choosePacking(
	tree: Tree,
	base: Base | undefined,
	{ carried = new Set(), full = false }: { carried?: ReadonlySet<string>; full?: boolean } = {},
): Packing {
	const before = new Map(base?.entries.map((entry) => [entry.path, entry]))
	const unchanged = tree.entries.flatMap((entry) => {
		if (full && !carried.has(entry.path)) return []
		const same = before.get(entry.path)
		return entry.type === "file" && same !== undefined && isSame(entry, same) ? [same] : []
	})
	const inUse = new Map<string, number>()
	for (const { archive, sizeBytes } of unchanged) inUse.set(archive, (inUse.get(archive) ?? 0) + sizeBytes)
	const needed = (base?.archives ?? [])
		.filter(({ id }) => inUse.has(id))
		.sort((a, b) => (inUse.get(b.id) ?? 0) - (inUse.get(a.id) ?? 0) || (a.id < b.id ? 1 : -1))
	const only = new Set(unchanged.filter(({ path }) => carried.has(path)).map(({ archive }) => archive))
	const worth = needed.filter(
		({ id, unpackedBytes }) => only.has(id) || (inUse.get(id) ?? 0) >= unpackedBytes * worthKeeping,
	)
	const archives =
		worth.length < mostArchives
			? worth
			: worth.filter(({ id }, index) => only.has(id) || index < archivesAfterwards)
	const ids = new Set(archives.map(({ id }) => id))
	const kept = new Map(
		unchanged.filter(({ archive }) => ids.has(archive)).map(({ path, archive }) => [path, archive]),
	)
	return { pack: treeOf(tree.entries.filter(({ path }) => !kept.has(path))), kept, archives }
}

const isSame = (one: TreeEntry, other: TreeEntry) =>
	one.type === other.type &&
	one.digest === other.digest &&
	one.mode === other.mode &&
	one.owner === other.owner &&
	one.group === other.group &&
	one.sizeBytes === other.sizeBytes
