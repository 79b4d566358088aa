// Where the bytes of one large file can be had in ranges: a bucket, the share, the address that a model was published at.
import type { Readable } from "node:stream"

/** First and last byte, both included, as HTTP counts them. */
export type ByteRange = { first: number; last: number }

export type ByteSource = {
	/** In the operator's words: `r2`, `share`, `huggingface.co`. */
	name: string
	/** Object and place, for errors. Never holds a token or a signature. */
	place: string
	sizeBytes: number
	access: /** A file that this machine can open. */
		| { kind: "file"; path: string }
		/** Whatever else can be read in ranges. Fails with `ObjectChanged` when it is no longer the same object. */
		| { kind: "stream"; open: (range: ByteRange, signal?: AbortSignal) => Promise<Readable> }
}
