// A place that keeps objects under keys: an S3 bucket (R2) or a directory (the share). Nothing here deletes.
import type { Readable } from "node:stream"
import { OperatorError } from "../errors.ts"
import type { Room } from "../host/disk.ts"
import type { ByteRange, ByteSource } from "./byte-source.ts"

export type ObjectHead = {
	key: string
	sizeBytes: number
	/** When the store took it, by the store's clock. */
	storedAt: Date
	/** Identifies this very content of the key; changes when the object is replaced. */
	etag: string
	/** The sha256 noted when it was put, in hex. A claim, not a proof: whoever reads it verifies. */
	claimedDigest?: string
}

export type GetOptions = {
	range?: ByteRange
	/** Fails with `ObjectChanged` when the object is no longer the one with this etag. */
	ifMatch?: string
	signal?: AbortSignal
}

/** The object is no longer the one that `ifMatch` named: whoever reads in ranges starts over. */
export class ObjectChanged extends OperatorError {
	constructor(object: string, cause?: unknown) {
		super(`${object}: it was replaced while it was read`, cause === undefined ? {} : { cause })
		this.name = "ObjectChanged"
	}
}

export type PutOptions = {
	sizeBytes: number
	/** sha256 in hex of the bytes that are sent. The store's copy is held against it before `put` returns. */
	digest: string
	/** Never replace what is there. The only way backups write. */
	ifAbsent: true
	/**
	 * A file of this machine that an upload in parts is noted in: when it is interrupted, a later put of the same bytes
	 * to the same key with the same file goes on with it. Without it, and for what can't be gone on with, it is aborted.
	 */
	resumeFile?: string
	/** For a store behind a network. */
	limitBytesPerSecond?: number
	signal?: AbortSignal
	/** Called with the number of bytes sent so far. */
	onProgress?: (doneBytes: number) => void
}

type PutResult =
	/** Stored by this call and confirmed by the store: size and checksum. */
	| "stored"
	/** Something stood there already, and was left as it is. Whether it is the same, the caller verifies. */
	| "already-there"

/**
 * Objects under keys, without a way to delete or to replace. Keys are relative paths with `/`; no empty, `.` or `..`
 * part. Every method throws an `OperatorError` that names store and key: `unreachable`, `refusedCredentials`,
 * `noSpace`, or `incomplete` for anything else that the store says.
 */
export interface ObjectStore {
	/** In the operator's words: `share`, `r2`. What reports and `--from` call it. */
	readonly name: string
	/** Where it really is: a directory, or endpoint and bucket. Never holds a credential. */
	readonly place: string

	/**
	 * Finds out whether the store can be used at all, before anything is done with it: a mounted share, an endpoint
	 * that answers, a bucket that exists, credentials that are taken.
	 */
	probe(): Promise<void>
	/** What is free where the objects lie; absent for a store without such a limit. */
	room?(): Promise<Room>
	/** Undefined when there is no such object. */
	head(key: string): Promise<ObjectHead | undefined>
	/** All objects whose key begins with the prefix, in byte order of their keys. The prefix ends with `/` or is empty. */
	list(prefix: string): AsyncIterable<ObjectHead>
	/**
	 * The object's bytes. The stream fails when the store sends more or fewer bytes than it announced or than the range
	 * asks for. The digest is not verified here.
	 */
	get(key: string, options?: GetOptions): Promise<Readable>
	/**
	 * The same bytes for the transfer engine (`transfer.ts`), which reads them in ranges and at its own pace.
	 * @param head as this store's `head` or `list` gave it: its etag is held against every range
	 */
	byteSource(head: ObjectHead): ByteSource
	/**
	 * Stores a file under a key that holds nothing yet. Of two who put at once exactly one is told `stored`. A failed
	 * put leaves nothing under the key.
	 * @param localFile path of the file to send, on this machine
	 */
	put(key: string, localFile: string, options: PutOptions): Promise<PutResult>
	/** Uploads in parts below the prefix that were begun and neither finished nor aborted, by whomever. */
	listUnfinished?(prefix: string): AsyncIterable<{ key: string; uploadId: string; startedAt: Date }>
	[Symbol.asyncDispose](): Promise<void>
}

/**
 * A store that can also set a damaged object aside and take a good one in its place. Only directories can: an object
 * store that is append-only must refuse it.
 */
export interface HealableStore extends ObjectStore {
	/** Renames the object to `<key>.bad-<time>` so that the key is free again. */
	setAside(key: string, at: Date): Promise<void>
}
