// Takes a snapshot: packs what lies on the disk, reads the archive back member by member, and says by its sidecar what
// must be true of it from now on.
import { tmpdir } from "node:os"
import { OperatorError } from "../errors.ts"
import { isDatabaseName } from "../formats/sqlite-files.ts"
import { requireSpaceOn, spaceFactor } from "../host/disk.ts"
import type { LocalHost } from "../host/local.ts"
import { type DigestCache, isSame } from "../models/digest-cache.ts"
import { locate } from "../models/kind.ts"
import { createArchive, inspectArchive } from "./archive.ts"
import type { ArchiveArtifact } from "./catalogue.ts"
import { digestDatabase, stageDatabase } from "./database.ts"
import { encryptFile, encryptText } from "./encryption.ts"
import { floorProblems, withDemandedModes } from "./floor.ts"
import { type Base, choosePacking, type Packing } from "./incremental.ts"
import { type ArchiveSidecar, snapshotName, takingTime } from "./snapshot.ts"
import { renderIndex } from "./snapshot-index.ts"
import {
	differences,
	digestFile,
	plainReader,
	type ReadFile,
	readTree,
	type Tree,
	treeDigest,
	treeOf,
	UnreadableFile,
} from "./tree.ts"

const attempts = 3

export type Taking = {
	host: LocalHost
	artifact: ArchiveArtifact
	/** What goes into the sidecar besides what is measured. */
	origin: { comfyume: string; environment: string; host: string }
	/** The newest snapshot before this one, if there is one. */
	predecessor: ArchiveSidecar | undefined
	/** Whom to encrypt it for; nobody: it stays in the clear. */
	recipients: readonly string[]
	workDirectory: string
	/** What an incremental snapshot builds upon; it stands alone without. */
	base?: Base
	/** Build upon it only for what can't be read now. */
	full?: boolean
	digests?: DigestCache
	unread?: Unread
	now: () => Date
	signal: AbortSignal
}

/** Files of this run that can't be read, by path: a database that somebody holds isn't waited for twice. */
export type Unread = Map<string, UnreadableFile>

export type Taken = {
	id: string
	sidecar: ArchiveSidecar
	/** Of what it holds. */
	treeDigest: string
	/** Files that were different in the archive, in spite of several attempts. */
	changedWhileRead: readonly string[]
	/** Path on the host, as it is stored. Undefined when it has not been fetched: some destination has it. */
	archiveFile?: string
	/** Of an incremental snapshot. */
	indexFile?: string
}

/** What is needed to read an artifact's files. */
export type Reading = Pick<
	Taking,
	"host" | "artifact" | "workDirectory" | "now" | "signal" | "digests" | "unread"
> & {
	/** What the newest snapshot holds, asked for when a file of an incremental artifact can't be read. */
	earlier?: () => Promise<Base | undefined>
}

/**
 * What an artifact holds on this host right now, held to its floor. What is remembered of a file that has not changed
 * isn't read again. Of an incremental artifact, a file that can't be read is as the newest snapshot has it.
 * @param read how a file's content is had; else as a look has it, which leaves no copies
 * @returns a tree without entries where an optional artifact isn't on the host at all
 * @throws {OperatorError} (3) when it is less than the floor: there is nothing worth backing up, or something is wrong
 */
export async function readArtifact(reading: Reading, read = rememberingReader(reading)): Promise<Tree> {
	const { host, artifact, signal } = reading
	const { paths, exclude, incremental: tolerant } = artifact
	const request = { paths, exclude, tolerant }
	const tree = await withEarlier(await readTree(host, request, "/", signal, read), reading)
	// Directories in which nobody has put anything yet are no loss either.
	if (artifact.optional && tree.sizeBytes === 0) return { ...tree, entries: [] }
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

/** Of one user's file that can't be read, the earlier copy stays; all others' are not kept from being stored. */
async function withEarlier(tree: Tree, { earlier }: Reading): Promise<Tree> {
	if (!tree.leftOut.some(({ unread }) => unread === true)) return tree
	const base = await earlier?.()
	const before = new Map(base?.entries.map((entry) => [entry.path, entry]))
	const found = tree.leftOut.map((each) => {
		const entry = each.unread === true ? before.get(each.path.slice(1)) : undefined
		return entry?.type === "file" ? { each: { ...each, earlier: entry.archive }, entry } : { each }
	})
	const entries = found.flatMap(({ entry }) => {
		if (entry === undefined) return []
		const { archive: _, ...rest } = entry
		return [rest]
	})
	return treeOf(
		[...tree.entries, ...entries],
		found.map(({ each }) => each),
	)
}

/** What can't be read now isn't asked for again in the same run. */
async function remembered<T>(unread: Unread, path: string, work: () => Promise<T>): Promise<T> {
	const known = unread.get(path)
	if (known !== undefined) throw known
	try {
		return await work()
	} catch (error) {
		if (error instanceof UnreadableFile) unread.set(path, error)
		throw error
	}
}

/** Reads what has changed since it was last read, and databases in use by a copy of them. */
function rememberingReader(reading: Reading): ReadFile {
	const { digests, now, signal, unread = new Map() } = reading
	const plain = plainReader(signal)
	const directory = () => placeOfCopies(reading)
	return async (path, disk, identity) => {
		if (isDatabaseName(path)) {
			const copied = await remembered(unread, path, () => digestDatabase(disk, { now: now(), directory }))
			if (copied !== undefined) return copied
		}
		if (digests === undefined) return plain(path, disk, identity)
		const known = digests.find(path, identity)
		if (known !== undefined) return { digest: known.sha256, sizeBytes: identity.sizeBytes }
		const startedAt = now()
		const read = await plain(path, disk, identity)
		const after = await locate(disk)
		if (read !== undefined && after.state === "file" && isSame(after.identity, identity))
			await digests.note(path, identity, { sha256: read.digest, startedAt })
		return read
	}
}

/** The work directory, which the next run empties if this one dies. A mere look may make nothing there: it takes /tmp. */
async function placeOfCopies({ host, workDirectory }: Reading): Promise<string> {
	try {
		await host.files.makeDirectory(workDirectory, 0o700)
		return host.path(workDirectory)
	} catch {
		return tmpdir()
	}
}

/** Puts copies of databases beside, which are then packed in their stead. */
function stagingReader(reading: Reading, directory: string, staged: Set<string>): ReadFile {
	const { host, now, unread = new Map() } = reading
	const otherwise = rememberingReader(reading)
	return async (path, disk, identity) => {
		if (!isDatabaseName(path)) return otherwise(path, disk, identity)
		const copy = host.path(`${directory}${path}`)
		const staging = { now: now(), ownership: !host.standIn }
		const facts = await remembered(unread, path, () => stageDatabase(disk, copy, staging))
		if (facts === undefined) return otherwise(path, disk, identity)
		staged.add(path.slice(1))
		return facts
	}
}

/**
 * Packs an artifact into a file of the host and proves that the file holds it.
 * @throws {OperatorError} (7) when there isn't room for it; (3) when the archive isn't what was packed
 */
export async function takeSnapshot(work: Taking): Promise<Taken> {
	const { host, artifact, signal, workDirectory } = work
	const ownership = !host.standIn
	const archiveFile = `${workDirectory}/${artifact.name}.tar.zst`
	const copies = `${workDirectory}/${artifact.name}.databases`
	await host.files.makeDirectory(workDirectory, 0o700)

	let changed: string[] = []
	for (let attempt = 1; attempt <= attempts; attempt++) {
		const staged = new Set<string>()
		await host.files.remove(copies)
		const reading: Reading = { ...work, earlier: async () => work.base }
		const tree = await readArtifact(reading, stagingReader(reading, copies, staged))
		const carried = tree.leftOut.filter(({ earlier }) => earlier !== undefined)
		const packing: Packing = artifact.incremental
			? choosePacking(tree, work.base, {
					carried: new Set(carried.map(({ path }) => path.slice(1))),
					full: work.full ?? false,
				})
			: { pack: tree, kept: new Map(), archives: [] }
		const { pack } = packing
		// Both forms at once, where it is encrypted.
		const bytes = Math.ceil(pack.sizeBytes * spaceFactor) * (work.recipients.length > 0 ? 2 : 1)
		await requireSpaceOn(host, workDirectory, { bytes })
		// There before tar opens it: it stays a file that nobody else can read.
		await host.write(archiveFile, "", { mode: 0o600 })
		await createArchive(host, pack, archiveFile, { directory: copies, paths: staged })
		const facts = await digestFile(host.path(archiveFile), signal)
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
		changed = differences(pack, packed, { ownership, limit: 20 })
		// A file that is written all the time is kept as it was caught, and the sidecar says so.
		if (changed.length > 0 && attempt < attempts) continue
		await host.files.remove(copies)
		const whole = treeOf([...packed.entries, ...tree.entries.filter(({ path }) => packing.kept.has(path))])
		const problems = floorProblems(artifact, whole)
		if (problems.length > 0)
			throw new OperatorError(`the archive of ${artifact.name} holds too little: ${problems.join("; ")}`)
		const asBefore = carried.map(
			({ path, earlier }) => `${path} is as ${earlier} has it: it could not be read`,
		)
		return describeArchive(work, whole, {
			...(await seal(work, archiveFile, facts)),
			changed: [...changed, ...asBefore],
			packing,
		})
	}
	throw new Error("unreachable: the last attempt returns or throws")
}

type Stored = { archiveFile: string; facts: { digest: string; sizeBytes: number } }

/** Encrypts an archive that has been judged, and removes the one in the clear; without recipients it stays as it is. */
async function seal(
	{ host, recipients, signal }: Taking,
	archiveFile: string,
	facts: Stored["facts"],
): Promise<Stored> {
	if (recipients.length === 0) return { archiveFile, facts }
	const encryptedFile = `${archiveFile}.age`
	await host.files.remove(encryptedFile)
	const files = { from: host.path(archiveFile), to: host.path(encryptedFile) }
	const encrypted = await encryptFile({ ...files, digest: facts.digest, recipients, signal })
	await host.files.remove(archiveFile)
	return { archiveFile: encryptedFile, facts: encrypted }
}

async function describeArchive(
	{ host, artifact, origin, predecessor, recipients, now }: Taking,
	tree: Tree,
	{ archiveFile, facts, changed, packing }: Stored & { changed: string[]; packing: Packing },
): Promise<Taken> {
	const ownership = !host.standIn
	const encrypted = recipients.length > 0
	const digestOfTree = treeDigest(tree, { ownership })
	const { digest, sizeBytes } = facts
	const takenAt = takingTime(now(), predecessor === undefined ? undefined : new Date(predecessor.takenAt))
	const { id } = snapshotName(takenAt, digest)
	const index = artifact.incremental
		? await writeIndex(host, `${archiveFile}.index`, tree, { own: id, kept: packing.kept })
		: undefined
	const shrunk = predecessor !== undefined && tree.sizeBytes < predecessor.unpackedBytes * (1 - shrinkAlarm)
	return {
		id,
		archiveFile,
		treeDigest: digestOfTree,
		changedWhileRead: changed,
		...(index === undefined ? {} : { indexFile: index.file }),
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
			...(encrypted
				? {
						encryption: {
							recipients: [...recipients],
							treeDigest: await encryptText(digestOfTree, recipients),
						},
					}
				: { treeDigest: digestOfTree }),
			ownership,
			// The names of files are in the archive, and nobody else's business.
			changedWhileRead: encrypted && changed.length > 0 ? [`${changed.length} files`] : changed,
			...(index === undefined
				? {}
				: {
						incremental: {
							index: { digest: index.digest, sizeBytes: index.sizeBytes },
							archives: [...packing.archives],
						},
					}),
			...(shrunk ? { shrunkFromBytes: predecessor.unpackedBytes } : {}),
		},
	}
}

async function writeIndex(
	host: LocalHost,
	file: string,
	tree: Tree,
	{ own, kept }: { own: string; kept: ReadonlyMap<string, string> },
): Promise<{ file: string; digest: string; sizeBytes: number }> {
	const entries = tree.entries.map((entry) => ({ ...entry, archive: kept.get(entry.path) ?? own }))
	await host.write(file, renderIndex(entries), { mode: 0o600 })
	return { file, ...(await digestFile(host.path(file))) }
}

/** A snapshot that lost more than this part of its predecessor's size is an alarm. */
const shrinkAlarm = 0.3
