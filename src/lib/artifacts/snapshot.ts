// Snapshots: one dated backup of one artifact. Its name carries when it was taken and what it is, its sidecar what
// must be true of it. The sidecar is written last: a snapshot without one doesn't count.
import { z } from "zod"
import { OperatorError } from "../errors.ts"

const digestSchema = z.string().regex(/^[0-9a-f]{64}$/)

const commonFields = {
	version: z.literal(1),
	/** The comfyume that wrote it. */
	comfyume: z.string(),
	environment: z.string(),
	host: z.string(),
	artifact: z.string(),
	takenAt: z.iso.datetime(),
}

const earlierArchiveSchema = z.strictObject({
	/** The snapshot that it was packed for. */
	id: z.string(),
	digest: digestSchema,
	sizeBytes: z.number().int().positive(),
	unpackedBytes: z.number().int().nonnegative(),
})

const archiveSidecarSchema = z.strictObject({
	...commonFields,
	kind: z.literal("archive"),
	/** Of the archive file: what `sha256sum` and `stat` say of it. */
	digest: digestSchema,
	sizeBytes: z.number().int().positive(),
	/** What unpacking gives. */
	members: z.number().int().positive(),
	unpackedBytes: z.number().int().nonnegative(),
	/**
	 * Digest over every member's path, type, mode, owner, size and content, as they stand after a restore. Not there of
	 * an encrypted archive: whoever guesses what is in a small file could prove his guess by it.
	 */
	treeDigest: digestSchema.optional(),
	/** Set when the archive is encrypted with age. */
	encryption: z
		.strictObject({
			/** Public keys: who can open it. */
			recipients: z.array(z.string()).min(1),
			/** The tree's digest, encrypted for the same recipients, in base64. */
			treeDigest: z.base64(),
		})
		.optional(),
	/** False for a backup of a directory that stood in for a server: owners mean nothing there. */
	ownership: z.boolean(),
	/** Files that changed while they were read, in spite of several attempts; of an encrypted archive only how many. */
	changedWhileRead: z.array(z.string()),
	/** Set for an incremental one: the archive holds what was new, the index all of it. */
	incremental: z
		.strictObject({
			index: z.strictObject({ digest: digestSchema, sizeBytes: z.number().int().positive() }),
			/** Archives of earlier snapshots that the index names. */
			archives: z.array(earlierArchiveSchema),
		})
		.optional(),
	/** Set when it was much smaller than the one before: somebody should have looked. */
	shrunkFromBytes: z.number().int().positive().optional(),
})

const commitSidecarSchema = z.strictObject({
	...commonFields,
	kind: z.literal("commit"),
	commit: z.string().regex(/^[0-9a-f]{40}$/),
	branch: z.string(),
	remote: z.string(),
})

const imageSidecarSchema = z.strictObject({
	...commonFields,
	kind: z.literal("image"),
	/** Of the archive file. */
	digest: digestSchema,
	sizeBytes: z.number().int().positive(),
	/** What `zstd --decompress` gives: the file that `docker load` takes. */
	unpackedBytes: z.number().int().positive(),
	/** The name that it has, and gets when it is loaded. */
	image: z.string(),
	/** What Docker called it, as in `docker image inspect`. */
	imageId: z.string().regex(/^sha256:[0-9a-f]{64}$/),
})

const sidecarSchema = z.discriminatedUnion("kind", [
	archiveSidecarSchema,
	commitSidecarSchema,
	imageSidecarSchema,
])

export type EarlierArchive = z.infer<typeof earlierArchiveSchema>
export type ArchiveSidecar = z.infer<typeof archiveSidecarSchema>
export type CommitSidecar = z.infer<typeof commitSidecarSchema>
export type ImageSidecar = z.infer<typeof imageSidecarSchema>
export type Sidecar = z.infer<typeof sidecarSchema>
/** Those of snapshots that are an archive and not only a note. */
export type StoredSidecar = ArchiveSidecar | ImageSidecar

export type SnapshotName = {
	/** `20261121T061236Z-0123456789ab`: unique, and sorts by time. */
	id: string
	takenAt: Date
	/** First 12 digits of the archive's digest, or of the commit. */
	shortDigest: string
}

const idPattern = /^(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})Z-([0-9a-f]{12})$/

/** The name of a snapshot that is taken now. */
export function snapshotName(takenAt: Date, digest: string): SnapshotName {
	const shortDigest = digest.slice(0, 12)
	return { id: `${stamp(takenAt)}-${shortDigest}`, takenAt, shortDigest }
}

const clockToleranceMs = 5 * 60 * 1000

/**
 * When a snapshot is taken: now, but never at or before its predecessor, since the newest is found by its name.
 * @throws {OperatorError} when the predecessor is dated well after now: one of the clocks is wrong, and a snapshot
 *   with an earlier date would never be taken for the newest
 */
export function takingTime(now: Date, predecessor: Date | undefined): Date {
	if (predecessor === undefined || now.getTime() - predecessor.getTime() >= 1000) return now
	if (predecessor.getTime() - now.getTime() > clockToleranceMs)
		throw new OperatorError(
			`the newest snapshot is from ${predecessor.toISOString()}, and this machine's clock says ${now.toISOString()}`,
			{
				hint: "timedatectl   # when this clock is right, move the snapshot with the wrong date out of the way by hand",
			},
		)
	return new Date(predecessor.getTime() + 1000)
}

/** The same snapshot, dated a second later: where another host's has its name, taken in the same second of the same bytes. */
export function aSecondLater<S extends Sidecar>(sidecar: S): { id: string; sidecar: S } {
	const takenAt = new Date(Date.parse(sidecar.takenAt) + 1000)
	return {
		id: snapshotName(takenAt, digestOf(sidecar)).id,
		sidecar: { ...sidecar, takenAt: takenAt.toISOString() },
	}
}

/** `20261121T061236Z` */
export function stamp(at: Date): string {
	return at.toISOString().replace(/\.\d+/, "").replaceAll(/[-:]/g, "")
}

/** Reads an id; undefined for anything else, impossible dates included: what can't be dated must not look newest. */
export function parseSnapshotId(id: string): SnapshotName | undefined {
	const match = idPattern.exec(id)
	if (match === null) return undefined
	const [, year, month, day, hour, minute, second, shortDigest = ""] = match
	const takenAt = new Date(`${year}-${month}-${day}T${hour}:${minute}:${second}.000Z`)
	if (Number.isNaN(takenAt.getTime()) || !id.startsWith(stamp(takenAt))) return undefined
	return { id, takenAt, shortDigest }
}

/** Where the snapshots of an artifact lie in every store. Ends with a slash. */
export const snapshotPrefix = (environment: string, artifact: string) => `${environment}/${artifact}/`

export const archiveKey = (sidecar: StoredSidecar, id: string) =>
	`${snapshotPrefix(sidecar.environment, sidecar.artifact)}${id}${isEncrypted(sidecar) ? ".tar.zst.age" : ".tar.zst"}`

export const isEncrypted = (sidecar: Sidecar) =>
	sidecar.kind === "archive" && sidecar.encryption !== undefined

/** Of the archive, or the commit. */
export const digestOf = (sidecar: Sidecar) => (sidecar.kind === "commit" ? sidecar.commit : sidecar.digest)

/** What an incremental snapshot consists of besides its own archive; undefined of any other. */
export const incrementalOf = (sidecar: Sidecar) =>
	sidecar.kind === "archive" ? sidecar.incremental : undefined

export function sidecarKey(sidecar: Sidecar, id: string): string {
	const { environment, artifact } = sidecar
	if (sidecar.kind === "commit") return `${snapshotPrefix(environment, artifact)}${id}.commit.json`
	// An incremental snapshot is its index; the archive beside it may be needed by others for longer than it is.
	return incrementalOf(sidecar) === undefined
		? `${archiveKey(sidecar, id)}.json`
		: `${snapshotPrefix(environment, artifact)}${id}.index.json`
}

/** Names every file of an incremental snapshot, and the archive that holds it. */
export const indexKey = (environment: string, artifact: string, id: string) =>
	`${snapshotPrefix(environment, artifact)}${id}.index.zst`

/** The sidecar as it is stored. One that was read gives the same bytes again: the schema's order is that of the fields. */
export const renderSidecar = (sidecar: Sidecar) =>
	`${JSON.stringify(sidecarSchema.parse(sidecar), null, "\t")}\n`

/**
 * Reads a sidecar and holds it against the name it lies under: time and digest stand in both.
 * @throws {OperatorError} when it is damaged, or belongs to something else
 */
export function parseSidecar(text: string, name: SnapshotName): Sidecar {
	const sidecar = parseJson(text)
	if (
		!digestOf(sidecar).startsWith(name.shortDigest) ||
		stamp(new Date(sidecar.takenAt)) !== stamp(name.takenAt)
	)
		throw new OperatorError(`its sidecar is that of another snapshot than ${name.id}`)
	return sidecar
}

function parseJson(text: string): Sidecar {
	let parsed: unknown
	try {
		parsed = JSON.parse(text)
	} catch (error) {
		throw new OperatorError("its sidecar is not JSON", { cause: error })
	}
	const result = sidecarSchema.safeParse(parsed)
	if (result.success) return requireTreeDigest(result.data)
	const [issue] = result.error.issues
	throw new OperatorError(`its sidecar is damaged: ${issue?.path.join(".") ?? ""} ${issue?.message ?? ""}`)
}

function requireTreeDigest(sidecar: Sidecar): Sidecar {
	if (sidecar.kind === "archive" && (sidecar.treeDigest === undefined) !== (sidecar.encryption !== undefined))
		throw new OperatorError(
			"its sidecar is damaged: a tree's digest in the clear or an encrypted one, and not both",
		)
	return sidecar
}

/** Reads the date of an older backup's name by its pattern (`ufw-{date}.tar.gz`); undefined when it doesn't fit. */
export function parseOlderName(key: string, pattern: string): Date | undefined {
	const [before = "", after = ""] = pattern.split("{date}")
	if (!key.startsWith(before) || !key.endsWith(after)) return undefined
	const text = key.slice(before.length, key.length - after.length)
	const date = new Date(`${text}T00:00:00.000Z`)
	if (!/^\d{4}-\d{2}-\d{2}$/.test(text) || Number.isNaN(date.getTime())) return undefined
	return date.toISOString().startsWith(text) ? date : undefined
}
