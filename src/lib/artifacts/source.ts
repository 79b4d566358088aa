// One place that holds snapshots, and what can be said of a copy there before and after its bytes were looked at.
import { createHash } from "node:crypto"
import { open } from "node:fs/promises"
import { exitCodes, OperatorError, systemError } from "../errors.ts"
import type { HealableStore, ObjectHead, ObjectStore } from "../storage/object-store.ts"
import type { HoldOptions, Lease, ShareLock } from "../storage/share-lock.ts"
import {
	incrementalOf,
	isEncrypted,
	parseOlderName,
	parseSidecar,
	parseSnapshotId,
	type Sidecar,
	type SnapshotName,
	type StoredSidecar,
	sidecarKey,
	snapshotPrefix,
} from "./snapshot.ts"

export type SourceName = "local" | "share" | "r2"

export type Source = {
	name: SourceName
	/** Set for a bucket beside that of the cache: `r2` is several places, and one of them may fail alone. */
	bucket?: "images" | "userFiles"
	store: ObjectStore | HealableStore
	/**
	 * Why the source can't be used in this run: asked once, before anything is done with it. Undefined when it can.
	 * A source that can't be reached is passed over and said; the next one answers.
	 */
	trouble?: OperatorError
	/** Of the share: held by whoever writes there. An object store needs none, nothing in it is ever replaced. */
	lock?: ShareLock
}

/** Does what writes to a source while no other host does. */
export const alone = <T>({ lock }: Source, options: HoldOptions, work: (lease: Lease) => Promise<T>) =>
	lock === undefined ? work({ require: async () => {} }) : lock.hold(options, work)

/** A snapshot as one source lists it. */
export type Copy = {
	source: Source
	name: SnapshotName
	archive?: ObjectHead
	sidecar?: ObjectHead
	/** Of an incremental snapshot. */
	index?: ObjectHead
	/** By its name: what its sidecar must say too. */
	encrypted?: boolean
	/** Set for the backups of the scripts that came before: no sidecar, and a date without a time. */
	olderKey?: string
}

/** `share`, `r2`, `r2 (images)`: tells apart what steps and errors are about. */
export const labelOf = ({ name, bucket }: Pick<Source, "name" | "bucket">) =>
	bucket === undefined ? name : `${name} (${bucket})`

const largestSidecarBytes = 1024 * 1024

/** Opens the sources of a run: those that fail their probe carry the reason, and are not asked again. */
export async function probeSources(sources: readonly Omit<Source, "trouble">[]): Promise<Source[]> {
	return Promise.all(
		sources.map(async (source) => {
			try {
				await source.store.probe()
				return { ...source }
			} catch (error) {
				return { ...source, trouble: systemError(error, `opening ${source.name}`) }
			}
		}),
	)
}

/**
 * Where the snapshots of an artifact lie, nearest first: of the places in R2 its bucket's alone; that of the cache where
 * it has no bucket of its own.
 */
export function sourcesOf(
	{ sources }: { sources: readonly Source[] },
	{ bucket }: { bucket: string },
): readonly Source[] {
	const ownBucket = sources.some((source) => source.bucket === bucket)
	return sources.filter(
		(source) => source.bucket === (ownBucket && source.name === "r2" ? bucket : undefined),
	)
}

/**
 * The places beside this machine that could be asked. Backups go everywhere: when one of them has no snapshot of what a
 * server can do without, that is answer enough.
 */
export const placesAsked = (sources: readonly Source[]): readonly Source[] =>
	sources.filter(({ name, trouble }) => name !== "local" && trouble === undefined)

/** All copies of an artifact's snapshots in one source, unordered. Names that aren't ours are passed over. */
export async function listCopies(source: Source, environment: string, artifact: string): Promise<Copy[]> {
	const prefix = snapshotPrefix(environment, artifact)
	const heads: ObjectHead[] = []
	for await (const head of source.store.list(prefix)) heads.push(head)
	return copiesAmong(source, heads, prefix)
}

/** What of a snapshot a file is, by how its name ends. */
const pieces: ReadonlyMap<string, "archive" | "index" | "sidecar"> = new Map([
	[".tar.zst", "archive"],
	[".tar.zst.json", "sidecar"],
	[".tar.zst.age", "archive"],
	[".tar.zst.age.json", "sidecar"],
	[".index.zst", "index"],
	[".index.json", "sidecar"],
	[".commit.json", "sidecar"],
])

/** The same out of a listing that is there already. @param prefix that of the artifact's snapshots */
export function copiesAmong(source: Source, heads: readonly ObjectHead[], prefix: string): Copy[] {
	const byId = new Map<string, Copy>()
	for (const head of heads) {
		if (!head.key.startsWith(prefix)) continue
		const file = head.key.slice(prefix.length)
		const [, id = "", ending = ""] = /^([^./]+)(\..+)$/.exec(file) ?? []
		const name = parseSnapshotId(id)
		const part = pieces.get(ending)
		if (name === undefined || part === undefined) continue
		// Two forms of one id would be two copies, each to be judged by its own sidecar.
		const encrypted = ending.includes(".age")
		const known = `${id} ${encrypted}`
		const copy = byId.get(known) ?? { source, name, ...(encrypted ? { encrypted } : {}) }
		byId.set(known, { ...copy, [part]: head })
	}
	return [...byId.values()]
}

/**
 * Archives that were stored and whose sidecar never was. Those of incremental snapshots aren't judged: they may outlive
 * the snapshot that they were packed for.
 */
export function unfinishedArchives(
	copiesOf: (artifact: string) => readonly Copy[],
	artifacts: readonly { name: string; kind: string; incremental?: boolean }[],
): ObjectHead[] {
	return artifacts
		.filter(({ kind, incremental }) => (kind === "archive" && incremental !== true) || kind === "image")
		.flatMap(({ name }) =>
			copiesOf(name).flatMap(({ archive, sidecar }) =>
				archive === undefined || sidecar !== undefined ? [] : [archive],
			),
		)
}

/** The older backups of an artifact in one source. Their names hold a date only, and they have no sidecar. */
export async function listOlderCopies(source: Source, patterns: readonly string[]): Promise<Copy[]> {
	const copies: Copy[] = []
	for (const pattern of patterns) {
		const directory = pattern.includes("/") ? pattern.slice(0, pattern.lastIndexOf("/") + 1) : ""
		for await (const head of source.store.list(directory)) {
			const takenAt = parseOlderName(head.key, pattern)
			if (takenAt === undefined) continue
			const name = { id: head.key, takenAt, shortDigest: "" }
			copies.push({ source, name, archive: head, olderKey: head.key })
		}
	}
	return copies
}

/**
 * Why a snapshot isn't all there, by names and sizes; undefined when it is.
 * @param held every copy of the same source, by the snapshot's id: an incremental one lies in the archives of others too
 */
export function lackingPiece(
	{ archive, index }: Pick<Copy, "archive" | "index">,
	sidecar: StoredSidecar,
	held: ReadonlyMap<string, Copy>,
): string | undefined {
	const wrong = (what: string, head: ObjectHead | undefined, sizeBytes: number) => {
		if (head === undefined) return `${what} is not there`
		return head.sizeBytes === sizeBytes
			? undefined
			: `${what} has ${head.sizeBytes} bytes, its sidecar says ${sizeBytes}`
	}
	if (archive === undefined) return "its sidecar is there, and its archive is not"
	const incremental = incrementalOf(sidecar)
	return (
		wrong("its archive", archive, sidecar.sizeBytes) ??
		(incremental === undefined ? undefined : wrong("its index", index, incremental.index.sizeBytes)) ??
		incremental?.archives
			.map(({ id, sizeBytes }) =>
				wrong(`the archive of ${id}, which it builds upon,`, held.get(id)?.archive, sizeBytes),
			)
			.find((text) => text !== undefined)
	)
}

/**
 * The sidecar of a copy, read from the copy's own source.
 * @throws {OperatorError} when there is none or it is damaged
 */
export async function readSidecar(copy: Copy): Promise<Sidecar> {
	const head = copy.sidecar
	if (head === undefined) throw new OperatorError("it has no sidecar: it was never finished")
	if (head.sizeBytes > largestSidecarBytes)
		throw new OperatorError(`its sidecar has ${head.sizeBytes} bytes, which no sidecar has`)
	const chunks: Buffer[] = []
	for await (const chunk of await copy.source.store.get(head.key, { ifMatch: head.etag }))
		chunks.push(chunk as Buffer)
	const sidecar = parseSidecar(Buffer.concat(chunks).toString("utf8"), copy.name)
	if (sidecar.kind !== "commit" && isEncrypted(sidecar) !== (copy.encrypted === true))
		throw new OperatorError("by its name it is encrypted and by its sidecar not, or the other way round")
	return sidecar
}

/**
 * True when under a sidecar's key stands one that can be read and is another host's. A damaged one is nobody's.
 * @param own the one that was to be put there
 */
export async function isAnothers(
	source: Source,
	{ id, sidecar: own }: { id: string; sidecar: Sidecar },
): Promise<boolean> {
	const name = parseSnapshotId(id)
	const head = await source.store.head(sidecarKey(own, id))
	if (name === undefined || head === undefined) return false
	try {
		const { environment, host, artifact } = await readSidecar({ source, name, sidecar: head })
		return environment !== own.environment || host !== own.host || artifact !== own.artifact
	} catch (error) {
		// Only what was read can be judged damaged.
		if (error instanceof OperatorError && error.exitCode !== exitCodes.incomplete) throw error
		return false
	}
}

/**
 * Brings a copy's archive to a file of this machine, hashing it on the way.
 * @param partialFile path on this machine; must not exist; is left for the caller to keep or remove
 * @returns digest in hex and size in bytes of what arrived and is synced to the disk
 */
export async function fetchArchive(
	copy: Pick<Copy, "source" | "archive">,
	partialFile: string,
	options: { signal: AbortSignal; onProgress: (doneBytes: number) => void },
): Promise<{ digest: string; sizeBytes: number }> {
	const head = copy.archive
	if (head === undefined) throw new OperatorError("its sidecar is there, and its archive is not")
	const hash = createHash("sha256")
	let sizeBytes = 0
	const stream = await copy.source.store.get(head.key, { ifMatch: head.etag, signal: options.signal })
	const file = await open(partialFile, "wx", 0o600).catch((error) => {
		stream.destroy()
		throw systemError(error, `writing ${partialFile}`)
	})
	try {
		for await (const chunk of stream) {
			hash.update(chunk as Buffer)
			// One write may take less than all it is given; appending through the handle's own position takes all.
			await file.appendFile(chunk as Buffer)
			sizeBytes += (chunk as Buffer).length
			options.onProgress(sizeBytes)
		}
		await file.sync()
	} catch (error) {
		throw systemError(error, `fetching ${head.key} from ${copy.source.name}`)
	} finally {
		await file.close()
	}
	return { digest: hash.digest("hex"), sizeBytes }
}

/** The sha256 of an object's bytes as they are read now, in hex. Throws what reading it throws. */
export async function digestOfObject(store: ObjectStore, key: string, signal?: AbortSignal): Promise<string> {
	const hash = createHash("sha256")
	for await (const chunk of await store.get(key, signal && { signal })) hash.update(chunk as Buffer)
	return hash.digest("hex")
}

/** True for a store that can set a bad object aside: local and the share. An object store is append-only. */
export function canHeal(store: ObjectStore | HealableStore): store is HealableStore {
	return "setAside" in store
}
