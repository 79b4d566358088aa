// Takes a snapshot: packs what lies on the disk, reads the archive back member by member, and says by its sidecar what
// must be true of it from now on.
import { statfs } from "node:fs/promises"
import { exitCodes, OperatorError } from "../errors.ts"
import type { LocalHost } from "../host/local.ts"
import { createArchive, inspectArchive } from "./archive.ts"
import type { ArchiveArtifact } from "./catalogue.ts"
import { floorProblems, withDemandedModes } from "./floor.ts"
import { type ArchiveSidecar, snapshotName, takingTime } from "./snapshot.ts"
import { differences, digestFile, readTree, type Tree, treeDigest } from "./tree.ts"

/** Room that must be free before bytes are written, as a multiple of what will be written. */
export const spaceFactor = 1.2

const attempts = 3

export type Taking = {
	host: LocalHost
	artifact: ArchiveArtifact
	/** What goes into the sidecar besides what is measured. */
	origin: { comfyume: string; environment: string; host: string }
	/** The newest snapshot before this one, if there is one. */
	predecessor: ArchiveSidecar | undefined
	workDirectory: string
	now: () => Date
	signal: AbortSignal
}

export type Taken = {
	id: string
	sidecar: ArchiveSidecar
	/** Path on the host. */
	archiveFile: string
}

/**
 * What an artifact holds on this host right now, held to its floor.
 * @throws {OperatorError} (3) when it is less than the floor: there is nothing worth backing up, or something is wrong
 */
export async function readArtifact(
	host: LocalHost,
	artifact: ArchiveArtifact,
	signal: AbortSignal,
): Promise<Tree> {
	const tree = await readTree(host, artifact, "/", signal)
	const problems = floorProblems(artifact, tree)
	if (problems.length > 0)
		throw new OperatorError(
			`${artifact.name} is not what it should be on ${host.name}: ${problems.join("; ")}`,
			{
				hint: `ls -la ${artifact.paths.join(" ")}`,
			},
		)
	return withDemandedModes(artifact, tree, { ownership: !host.standIn })
}

/**
 * Packs an artifact into a file of the host and proves that the file holds it.
 * @throws {OperatorError} (7) when there isn't room for it; (3) when the archive isn't what was packed
 */
export async function takeSnapshot(work: Taking): Promise<Taken> {
	const { host, artifact, signal, workDirectory } = work
	const ownership = !host.standIn
	const archiveFile = `${workDirectory}/${artifact.name}.tar.zst`
	await host.files.makeDirectory(workDirectory, 0o700)

	let changed: string[] = []
	for (let attempt = 1; attempt <= attempts; attempt++) {
		const tree = await readArtifact(host, artifact, signal)
		const needBytes = Math.ceil(tree.sizeBytes * spaceFactor)
		await requireSpace(host, workDirectory, needBytes)
		await host.files.remove(archiveFile)
		await createArchive(host, tree, archiveFile)
		const packed = withDemandedModes(
			artifact,
			await inspectArchive(
				host.path(archiveFile),
				{
					roots: artifact.paths.map((path) => path.slice(1)),
					mostBytes: artifact.mostBytes,
					mostMembers: 1_000_000,
				},
				signal,
			),
			{ ownership },
		)
		changed = differences(tree, packed, { ownership, limit: 20 })
		// A file that is written all the time is kept as it was caught, and the sidecar says so.
		if (changed.length > 0 && attempt < attempts) continue
		const problems = floorProblems(artifact, packed)
		if (problems.length > 0)
			throw new OperatorError(`the archive of ${artifact.name} holds too little: ${problems.join("; ")}`)
		return { archiveFile, ...(await describeArchive(work, packed, archiveFile, changed)) }
	}
	throw new Error("unreachable: the last attempt returns or throws")
}

async function describeArchive(
	{ host, artifact, origin, predecessor, now }: Taking,
	tree: Tree,
	archiveFile: string,
	changedWhileRead: string[],
): Promise<{ id: string; sidecar: ArchiveSidecar }> {
	const ownership = !host.standIn
	const { digest, sizeBytes } = await digestFile(host.path(archiveFile))
	const takenAt = takingTime(now(), predecessor === undefined ? undefined : new Date(predecessor.takenAt))
	const shrunk = predecessor !== undefined && tree.sizeBytes < predecessor.unpackedBytes * (1 - shrinkAlarm)
	return {
		id: snapshotName(takenAt, digest).id,
		sidecar: {
			version: 1,
			kind: "archive",
			...origin,
			artifact: artifact.name,
			takenAt: takenAt.toISOString(),
			digest,
			sizeBytes,
			members: tree.entries.length,
			unpackedBytes: tree.sizeBytes,
			treeDigest: treeDigest(tree, { ownership }),
			ownership,
			changedWhileRead,
			...(shrunk ? { shrunkFromBytes: predecessor.unpackedBytes } : {}),
		},
	}
}

/** A snapshot that lost more than this part of its predecessor's size is an alarm. */
const shrinkAlarm = 0.3

/**
 * Makes sure that there is room before anything is written.
 * @param directory path on the host; must exist
 * @throws {OperatorError} (7) naming what is needed and what is free, in bytes
 */
export async function requireSpace(host: LocalHost, directory: string, needBytes: number): Promise<void> {
	const { bavail, bsize } = await statfs(host.path(directory))
	const freeBytes = bavail * bsize
	if (freeBytes >= needBytes) return
	throw new OperatorError(
		`${directory} on ${host.name} has ${freeBytes} bytes free, ${needBytes} are needed`,
		{
			exitCode: exitCodes.noSpace,
			hint: `df -h ${directory}`,
		},
	)
}
