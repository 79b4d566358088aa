// Models in an object store, judged without being downloaded: one listing for what is there, two to four ranged reads
// for the structure of each.
import { createHash } from "node:crypto"
import { exitCodes, OperatorError } from "../errors.ts"
import type { ReadRange } from "../formats/safetensors.ts"
import { ObjectChanged, type ObjectHead, type ObjectStore } from "../storage/object-store.ts"
import type { Digested } from "./hashing.ts"
import { inOrder } from "./in-order.ts"
import type { ModelEntry } from "./manifest.ts"
import { asExtra, type Judged, judge, type Level, type Verdict, verdictOf } from "./verify.ts"

export type RemoteOptions = {
	level: Level
	/** Stream every byte through here and hash it, instead of taking the store's word. Nothing is kept. */
	deep: boolean
	/** What another place's bytes came to, where the manifest knows no digest. */
	digestElsewhere?: (path: string) => string | undefined
	signal?: AbortSignal
	onBytes?: (bytes: number) => void
	now: () => Date
}

const objectsAtOnce = 8
// Each takes a connection's whole rate, and a core to hash.
const streamsAtOnce = 2

/** All objects of the store by their keys: sizes and ETags, by listing alone. */
export async function listObjects(store: ObjectStore): Promise<Map<string, ObjectHead>> {
	const heads = new Map<string, ObjectHead>()
	for await (const head of store.list("")) heads.set(head.key, head)
	return heads
}

/**
 * Judges the models of an object store: the manifest's in their order, then what else lies there.
 * @throws {OperatorError} when the store can't be reached any more or refuses us; what is wrong with one object is its
 * verdict
 */
export async function* verifyObjects(
	store: ObjectStore,
	heads: ReadonlyMap<string, ObjectHead>,
	models: readonly ModelEntry[],
	options: RemoteOptions,
): AsyncGenerator<Verdict> {
	const known = new Set(models.map(({ path }) => path))
	const extra = [...heads.values()].filter(({ key }) => !known.has(key))
	const works = [
		...models.map((entry) => async () => {
			const head = heads.get(entry.path)
			if (head !== undefined) return verifyObject(store, head, entry, options)
			return verdictOf(entry.path, { status: "missing", tier: "exists", because: "it is not there" }, entry)
		}),
		...extra.map(
			(head) => async () =>
				asExtra(await verifyObject(store, head, undefined, { ...options, level: "exists" })),
		),
	]
	const streams = options.level === "digest" && options.deep
	for await (const verdict of inOrder(works, streams ? streamsAtOnce : objectsAtOnce)) {
		options.signal?.throwIfAborted()
		yield verdict
	}
}

/** Judges one object. @throws {OperatorError} as `verifyObjects` */
export async function verifyObject(
	store: ObjectStore,
	head: ObjectHead,
	entry: ModelEntry | undefined,
	options: RemoteOptions,
): Promise<Verdict> {
	const { key: path, sizeBytes } = head
	const read = objectReader(store, head, options.signal)
	let digested: Digested | undefined
	const digest = async () =>
		(digested = await (options.deep ? streamDigest(store, head, options) : claimedDigest(store, head)))
	const endsAs = (known: ModelEntry) => lastBlocksAre(store, head, known, options)
	const judged = await judge(path, { sizeBytes, read, digest, endsAs }, entry, options.level).catch(
		(error: unknown): Judged => {
			options.signal?.throwIfAborted()
			if (!(error instanceof OperatorError)) throw error
			// Not this object's fault: the next ones would fail the same way, each after its own retries.
			if (error.exitCode === exitCodes.unreachable || error.exitCode === exitCodes.refusedCredentials)
				throw error
			const because =
				error instanceof ObjectChanged
					? "it was replaced while it was read: look again"
					: `it can't be read: ${error.message}`
			return { status: "unknown", tier: "none", because }
		},
	)
	const elsewhere = options.digestElsewhere?.(path)
	const has = digested !== undefined && "sha256" in digested ? digested.sha256 : undefined
	if (judged.status === "ok" && entry?.sha256 === undefined && elsewhere !== undefined && has !== undefined) {
		const because = `its sha256 is ${has} here, and ${elsewhere} of the other place's bytes`
		if (has !== elsewhere)
			return verdictOf(path, { ...judged, status: "differs", tier: "digest", because, sizeBytes }, entry)
	}
	return verdictOf(path, { ...judged, sizeBytes }, entry)
}

/** What was noted in its metadata, which only asking for the object itself shows. */
async function claimedDigest(store: ObjectStore, { key, claimedDigest }: ObjectHead): Promise<Digested> {
	const noted = claimedDigest ?? (await store.head(key))?.claimedDigest
	if (noted === undefined) return { state: "none", because: "no sha256 was noted when it was stored" }
	return { state: "claimed", sha256: noted }
}

// As long as the zeros that make one suspicious.
const suspiciousBytes = 1024 * 1024

/** Reads the blocks that a suspicious end lies in, and holds them against the manifest's digests. False without those. */
async function lastBlocksAre(
	store: ObjectStore,
	{ key, etag, sizeBytes }: ObjectHead,
	{ blocks, figures }: ModelEntry,
	{ signal, onBytes }: Pick<RemoteOptions, "signal" | "onBytes">,
): Promise<boolean> {
	if (blocks === undefined || figures?.verified !== true) return false
	const firstBlock = Math.floor(Math.max(0, sizeBytes - suspiciousBytes) / blocks.sizeBytes)
	for (let index = firstBlock; index < blocks.sha256.length; index++) {
		const first = index * blocks.sizeBytes
		const range = { first, last: Math.min(first + blocks.sizeBytes, sizeBytes) - 1 }
		const hash = createHash("sha256")
		const stream = await store.get(key, { range, ifMatch: etag, ...(signal && { signal }) })
		for await (const chunk of stream as AsyncIterable<Buffer>) {
			hash.update(chunk)
			onBytes?.(chunk.length)
		}
		if (hash.digest("hex") !== blocks.sha256[index]) return false
	}
	return true
}

/**
 * Every byte through this machine; with If-Match, so that it is of one object.
 * @throws {OperatorError} when it can't be read, {ObjectChanged} when it was replaced meanwhile
 */
export async function streamDigest(
	store: ObjectStore,
	{ key, etag }: ObjectHead,
	{ signal, onBytes, now }: Pick<RemoteOptions, "signal" | "onBytes" | "now">,
): Promise<Extract<Digested, { state: "read" }>> {
	const hash = createHash("sha256")
	const startedAt = now()
	const stream = await store.get(key, { ifMatch: etag, ...(signal && { signal }) })
	for await (const chunk of stream as AsyncIterable<Buffer>) {
		hash.update(chunk)
		onBytes?.(chunk.length)
	}
	return { state: "read", sha256: hash.digest("hex"), hashedAt: startedAt.toISOString(), now: true }
}

// The kind, the length of the header and most headers are in the first; a model that is right ends in data, which the
// second shows. Only long headers and ends of zeros cost another request each.
const frontBytes = 64 * 1024
const wholeBytes = 2 * frontBytes
const rearBytes = 1024 * 1024

/** Small reads of an object in few requests: what was fetched of its beginning and its end is kept until it is judged. */
function objectReader(
	store: ObjectStore,
	{ key, etag, sizeBytes }: ObjectHead,
	signal: AbortSignal | undefined,
): ReadRange {
	let front: Buffer = Buffer.alloc(0)
	let rear: Buffer = Buffer.alloc(0)
	const fetch = async (first: number, end: number): Promise<Buffer> => {
		const range = { first, last: end - 1 }
		const stream = await store.get(key, { range, ifMatch: etag, ...(signal && { signal }) })
		const chunks: Buffer[] = []
		for await (const chunk of stream as AsyncIterable<Buffer>) chunks.push(chunk)
		return Buffer.concat(chunks)
	}
	return async (offset, length) => {
		const end = Math.min(offset + length, sizeBytes)
		const rearBegins = () => sizeBytes - rear.length
		if (front.length > 0 && offset >= front.length && offset >= sizeBytes - rearBytes) {
			// The second look at the end is for all that a look at it can want.
			const first = rear.length === 0 ? offset : Math.max(front.length, sizeBytes - rearBytes)
			if (offset < rearBegins()) rear = Buffer.concat([await fetch(first, rearBegins()), rear])
			return rear.subarray(offset - rearBegins(), end - rearBegins())
		}
		if (end > front.length) {
			const wanted = sizeBytes <= wholeBytes ? sizeBytes : Math.max(end, Math.min(frontBytes, sizeBytes))
			front = Buffer.concat([front, await fetch(front.length, wanted)])
		}
		return front.subarray(offset, end)
	}
}
