// What a destination holds of a host's artifacts, and since when it is known to be the newest state. Read from one
// listing and a few small files, never from what a backup run says of itself.
import { z } from "zod"
import { messageOf, systemError } from "../errors.ts"
import type { ObjectHead } from "../storage/object-store.ts"
import { clockToleranceMs } from "./schedule.ts"
import { parseSnapshotId, type Sidecar, type SnapshotName, snapshotPrefix, stamp } from "./snapshot.ts"
import { type Copy, copiesAmong, lackingPiece, readSidecar, type Source } from "./source.ts"

export type Owner = { environment: string; host: string }

/** A finished snapshot of this host: its sidecar can be read and fits, its archive is there in the right size. */
export type Finished = { copy: Copy; name: SnapshotName; sidecar: Sidecar }

/** What one destination holds of one artifact. */
export type Standing = {
	newest?: Finished
	/** When a scheduled run last found that the newest snapshot still is what lies on the host. */
	confirmedAt?: Date
	/** What stands there and can't count, newer than `newest`: each with the reason. */
	passedOver: readonly string[]
	/** Newer than `newest`, and by their sidecars other hosts'. */
	foreign: readonly { name: SnapshotName; host: string }[]
}

export type Holdings = {
	destination: Source
	/** @throws {OperatorError} when the destination doesn't give what it has listed */
	standing(artifact: string): Promise<Standing>
	/** All snapshots of an artifact, by whatever host, finished or not; newest first. */
	copies(artifact: string): readonly Copy[]
	/** Keys of confirmations, oldest first. */
	confirmations: readonly string[]
	/** Everything that was listed: snapshots and records of this environment's hosts. */
	heads: readonly ObjectHead[]
}

const confirmationSchema = z.strictObject({
	version: z.literal(1),
	kind: z.literal("unchanged"),
	comfyume: z.string(),
	environment: z.string(),
	host: z.string(),
	at: z.iso.datetime(),
	/** Artifact -> its newest snapshot, which held what lay on the host. */
	unchanged: z.record(z.string(), z.string()),
})

/** A record that what has not changed was looked at. Without it nobody could tell it from a backup that stopped. */
export type Confirmation = z.infer<typeof confirmationSchema>

/** Where the records of a host lie in every store. Ends with a slash. */
export const confirmationPrefix = ({ environment, host }: Owner) => `${environment}/records/backups/${host}/`

export const confirmationKey = (owner: Owner, at: Date) => `${confirmationPrefix(owner)}${stamp(at)}.json`

export const renderConfirmation = (confirmation: Confirmation) =>
	`${JSON.stringify(confirmation, null, "\t")}\n`

/** How many confirmations are read at most; hourly ones of four days. */
const mostConfirmations = 100
const largestRecordBytes = 256 * 1024

/**
 * Lists a destination once.
 * @throws {OperatorError} the destination's own trouble, or what listing it came to
 */
export async function listHoldings(destination: Source, owner: Owner, now: Date): Promise<Holdings> {
	if (destination.trouble !== undefined) throw destination.trouble
	const { name, store } = destination
	const heads: ObjectHead[] = []
	try {
		for await (const head of store.list(`${owner.environment}/`)) heads.push(head)
	} catch (error) {
		throw systemError(error, `listing ${name} (${store.place})`)
	}
	const newestMs = now.getTime() + clockToleranceMs
	const prefix = confirmationPrefix(owner)
	const confirmations = heads.filter(({ key }) => key.startsWith(prefix)).map(({ key }) => key)
	const read = confirmationReader(destination, owner, confirmations, newestMs)
	const copies = (artifact: string) =>
		copiesAmong(destination, heads, snapshotPrefix(owner.environment, artifact)).sort((a, b) =>
			a.name.id < b.name.id ? 1 : -1,
		)
	return {
		destination,
		copies,
		confirmations,
		heads,
		standing: async (artifact) => {
			const passedOver: string[] = []
			const all = copies(artifact)
			const held = new Map(all.map((copy) => [copy.name.id, copy]))
			const foreign: { name: SnapshotName; host: string }[] = []
			for (const copy of all) {
				if (copy.name.takenAt.getTime() > newestMs) {
					passedOver.push(`${copy.name.id} is dated in the future`)
					continue
				}
				const judged = await judge(copy, { ...owner, artifact }, held)
				if (judged.foreign) {
					foreign.push({ name: copy.name, host: judged.host })
					continue
				}
				if (judged.finished === undefined) {
					passedOver.push(`${copy.name.id}: ${judged.because}`)
					continue
				}
				const confirmedAt = await read(artifact, judged.finished.name)
				return {
					newest: judged.finished,
					passedOver,
					foreign,
					...(confirmedAt === undefined ? {} : { confirmedAt }),
				}
			}
			return { passedOver, foreign }
		},
	}
}

export type Judged =
	| { foreign: true; host: string }
	| { foreign: false; finished: Finished; because?: undefined }
	/** It can't count; `because` says why. */
	| { foreign: false; finished?: undefined; because: string }

/**
 * Whether a copy is a finished snapshot of this host. Foreign: of another host, whose business it is.
 * @param held every copy of the artifact in the same place, by the snapshot's id
 */
export async function judge(
	copy: Copy,
	owner: Owner & { artifact: string },
	held: ReadonlyMap<string, Copy>,
): Promise<Judged> {
	const bad = (because: string): Judged => ({ foreign: false, because })
	let sidecar: Sidecar
	try {
		sidecar = await readSidecar(copy)
	} catch (error) {
		return bad(messageOf(error))
	}
	if (sidecar.environment !== owner.environment) return bad(`it was taken from ${sidecar.environment}`)
	if (sidecar.artifact !== owner.artifact) return bad(`its sidecar is that of ${sidecar.artifact}`)
	if (sidecar.host !== owner.host) return { foreign: true, host: sidecar.host }
	if (sidecar.kind !== "commit") {
		const lacking = lackingPiece(copy, sidecar, held)
		if (lacking !== undefined) return bad(lacking)
	}
	return { foreign: false, finished: { copy, name: copy.name, sidecar } }
}

/** Gives when an artifact's newest snapshot was last confirmed, reading as few records as that takes. */
function confirmationReader(
	{ store }: Source,
	owner: Owner,
	keys: readonly string[],
	newestMs: number,
): (artifact: string, newest: SnapshotName) => Promise<Date | undefined> {
	const records = keys
		.map((key) => ({ key, at: timeOf(key) }))
		.filter((record): record is { key: string; at: Date } => record.at !== undefined)
		.filter(({ at }) => at.getTime() <= newestMs)
		.sort((a, b) => b.at.getTime() - a.at.getTime())
		.slice(0, mostConfirmations)
	const known = new Map<string, Promise<Confirmation | undefined>>()
	const readOnce = (key: string) => {
		const reading = known.get(key) ?? readConfirmation(store, key)
		known.set(key, reading)
		return reading
	}
	return async (artifact, newest) => {
		for (const { key, at } of records) {
			if (at <= newest.takenAt) return undefined
			const record = await readOnce(key)
			if (record?.environment !== owner.environment || record.host !== owner.host) continue
			if (record.unchanged[artifact] === newest.id) return at
		}
		return undefined
	}
}

/** When a record was written, by its key; undefined for what is no record's name. */
export function timeOf(key: string): Date | undefined {
	const file = key.slice(key.lastIndexOf("/") + 1)
	return file.endsWith(".json")
		? parseSnapshotId(`${file.slice(0, -".json".length)}-000000000000`)?.takenAt
		: undefined
}

/** Undefined for what is no confirmation: then it confirms nothing. */
const readConfirmation = (store: Source["store"], key: string) => readRecord(store, key, confirmationSchema)

/** Undefined for what can't be read as a record of this kind, or says another time than its name. */
export async function readRecord<T extends { at: string }>(
	store: Source["store"],
	key: string,
	schema: z.ZodType<T>,
): Promise<T | undefined> {
	const chunks: Buffer[] = []
	let sizeBytes = 0
	for await (const chunk of await store.get(key)) {
		sizeBytes += (chunk as Buffer).length
		if (sizeBytes > largestRecordBytes) return undefined
		chunks.push(chunk as Buffer)
	}
	try {
		const parsed = schema.parse(JSON.parse(Buffer.concat(chunks).toString("utf8")))
		return stamp(new Date(parsed.at)) === stamp(timeOf(key) ?? new Date(0)) ? parsed : undefined
	} catch {
		return undefined
	}
}

/** The later of the two: when the destination was last known to hold the newest state. */
export function evidenceOf({ newest, confirmedAt }: Standing): Date | undefined {
	return confirmedAt ?? newest?.name.takenAt
}
