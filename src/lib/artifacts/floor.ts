// The content floor: below it a backup is none, whatever tar said. It stands against the 45-byte archive of an empty
// directory that was once counted as a success.
import type { ArchiveArtifact } from "./catalogue.ts"
import { isWithin } from "./path-pattern.ts"
import type { Tree, TreeEntry } from "./tree.ts"

/** Why a tree doesn't reach an artifact's floor, one sentence per reason; empty when it does. */
export function floorProblems({ floor }: Pick<ArchiveArtifact, "floor">, tree: Tree): string[] {
	const problems: string[] = []
	if (tree.entries.length === 0) return ["there is nothing"]
	for (const { path, minimumBytes } of floor.members) {
		const entry = tree.entries.find((candidate) => `/${candidate.path}` === path)
		if (entry === undefined) problems.push(`${path} is missing`)
		else if (entry.type !== "file") problems.push(`${path} is a ${entry.type}, not a file`)
		else if (entry.sizeBytes < minimumBytes)
			problems.push(`${path} has ${entry.sizeBytes} bytes, at least ${minimumBytes} are expected`)
	}
	if (tree.sizeBytes < floor.minimumBytes)
		problems.push(`it holds ${tree.sizeBytes} bytes, at least ${floor.minimumBytes} are expected`)
	return problems
}

/** The mode and owner that the catalogue demands of an entry, if it demands any. The last rule that fits counts. */
function demandedMode(
	{ modes }: Pick<ArchiveArtifact, "modes">,
	entry: TreeEntry,
): { mode: number; owner: string } | undefined {
	const path = `/${entry.path}`
	return modes.findLast(
		(rule) => rule.path.split("/").length === path.split("/").length && isWithin(path, rule.path),
	)
}

/**
 * The tree as it must stand after a restore: modes and owners as the catalogue demands them, where it does.
 * @param ownership false where owners aren't set
 */
export function withDemandedModes(
	artifact: Pick<ArchiveArtifact, "modes">,
	tree: Tree,
	{ ownership }: { ownership: boolean },
): Tree {
	return {
		...tree,
		entries: tree.entries.map((entry) => {
			const demanded = demandedMode(artifact, entry)
			if (demanded === undefined || entry.type === "symlink") return entry
			const [owner = entry.owner, group = entry.group] = ownership ? demanded.owner.split(":") : []
			return { ...entry, mode: demanded.mode, owner, group }
		}),
	}
}
