// An incremental snapshot out of its pieces: the index is fetched and proven, and then every archive that it names.
import { createHash } from "node:crypto"
import { OperatorError } from "../errors.ts"
import type { LocalHost } from "../host/local.ts"
import { type ArchiveLimits, inspectArchive } from "./archive.ts"
import { type ArchiveSidecar, archiveKey, indexKey } from "./snapshot.ts"
import { type IndexedEntry, parseIndex, treeOfIndex } from "./snapshot-index.ts"
import { type Copy, fetchArchive } from "./source.ts"
import { differences, type Tree, treeOf } from "./tree.ts"

/** An archive on this machine, and which of its members belong to the snapshot; all without `members`. */
export type Part = { archiveFile: string; members?: readonly string[] }

const mostIndexBytes = 512 * 1024 * 1024

/**
 * The index of a snapshot, from where the copy lies.
 * @throws {OperatorError} when it isn't there, or isn't what the sidecar says
 */
export async function readIndex(
	copy: Copy,
	sidecar: ArchiveSidecar,
): Promise<{ content: Buffer; entries: readonly IndexedEntry[] }> {
	const expected = sidecar.incremental?.index
	if (expected === undefined) throw new OperatorError("it has no index")
	if (expected.sizeBytes > mostIndexBytes)
		throw new OperatorError(`its index has ${expected.sizeBytes} bytes, which no index has`)
	const key = indexKey(sidecar.environment, sidecar.artifact, copy.name.id)
	const chunks: Buffer[] = []
	let sizeBytes = 0
	for await (const chunk of await copy.source.store.get(key)) {
		sizeBytes += (chunk as Buffer).length
		if (sizeBytes > expected.sizeBytes) break
		chunks.push(chunk as Buffer)
	}
	const content = Buffer.concat(chunks)
	const digest = createHash("sha256").update(content).digest("hex")
	if (digest !== expected.digest)
		throw new OperatorError(
			`its index is not the one that its sidecar names: its digest is ${digest.slice(0, 12)}…`,
		)
	return { content, entries: parseIndex(content) }
}

/**
 * Fetches every archive of a snapshot from one source, holds each against the sidecar, and what it holds against the
 * index.
 * @param files where each archive is put, by its id; a path on this machine that doesn't exist yet
 * @throws {OperatorError} naming the archive that is missing, damaged, or holds something else
 */
export async function assemble(
	copy: Copy,
	sidecar: ArchiveSidecar,
	work: {
		host: LocalHost
		files: (id: string) => string
		/** Only the archives that hold one of these are fetched. */
		isWanted?: (path: string) => boolean
		limits: ArchiveLimits
		signal: AbortSignal
		onProgress: (doneBytes: number, totalBytes: number) => void
	},
): Promise<{ tree: Tree; parts: Part[] }> {
	const { host, files, isWanted = () => true, limits, signal, onProgress } = work
	const { entries: index } = await readIndex(copy, sidecar)
	const own = { id: copy.name.id, digest: sidecar.digest, sizeBytes: sidecar.sizeBytes }
	// The newest first: it has the directories, with their modes, that the files of the others lie in.
	const known = [own, ...(sidecar.incremental?.archives ?? [])]
	const byArchive = Map.groupBy(
		index.filter(({ path }) => isWanted(path)),
		({ archive }) => archive,
	)
	for (const { archive } of index)
		if (!known.some(({ id }) => id === archive))
			throw new OperatorError(`its index names the archive ${archive}, and its sidecar doesn't`)
	const archives = known.filter(({ id }) => id === own.id || byArchive.has(id))
	const totalBytes = archives.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
	let doneBytes = 0
	const parts: Part[] = []
	for (const { id, digest, sizeBytes } of archives) {
		const key = archiveKey(sidecar, id)
		const archive = await copy.source.store.head(key)
		if (archive === undefined)
			throw new OperatorError(`the archive ${id}, which holds a part of it, is missing`)
		const archiveFile = files(id)
		const fetched = await fetchArchive({ ...copy, archive }, host.path(archiveFile), {
			signal,
			onProgress: (bytes) => onProgress(doneBytes + bytes, totalBytes),
		})
		doneBytes += sizeBytes
		if (fetched.digest !== digest)
			throw new OperatorError(
				`the digest of the archive ${id} is ${fetched.digest.slice(0, 12)}…, the sidecar says ${digest.slice(0, 12)}…`,
			)
		const held = await inspectArchive(host.path(archiveFile), limits, signal)
		const wanted = treeOfIndex(byArchive.get(id) ?? [])
		const paths = new Set(wanted.entries.map(({ path }) => path))
		const found = treeOf(held.entries.filter(({ path }) => paths.has(path)))
		// Modes may be the catalogue's; the bytes must be these.
		const [wrong] = differences(contentOf(wanted), contentOf(found), { ownership: false, limit: 1 })
		if (wrong !== undefined) throw new OperatorError(`the archive ${id} is not what the index says: ${wrong}`)
		parts.push({ archiveFile, members: [...paths] })
	}
	return { tree: treeOfIndex(index), parts }
}

const contentOf = (tree: Tree): Tree => ({
	...tree,
	entries: tree.entries.map((entry) => ({ ...entry, mode: 0 })),
})
