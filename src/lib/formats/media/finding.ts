// What a reader of a media file answers, and how it reads: in blocks, each once, and never beyond the end.
import type { ReadRange } from "../safetensors.ts"

/**
 * `whole`: the structure closes where the file ends. `unfinished`: it may still be being written, or was cut short.
 * `damaged`: no writing could make it right. `unknown`: its structure doesn't say where it ends.
 */
export type StructureFinding =
	| { state: "whole" }
	| { state: "unfinished" | "damaged" | "unknown"; because: string }

export const whole: StructureFinding = { state: "whole" }
export const unfinished = (because: string): StructureFinding => ({ state: "unfinished", because })
export const damaged = (because: string): StructureFinding => ({ state: "damaged", because })

/** The file ends before what its structure promises. */
export class EndedEarly extends Error {
	override name = "EndedEarly"
}

/** A file that is read in blocks: a walk over thousands of small pieces costs few reads. */
export type Window = {
	sizeBytes: number
	/**
	 * Exactly these bytes; valid until the next call.
	 * @throws {EndedEarly} where the file ends before
	 */
	take(offset: number, length: number, what: string): Promise<Buffer>
}

const blockBytes = 64 * 1024
/** No piece that a reader takes at once is larger: memory stays bounded whatever a file claims. */
export const mostAtOnceBytes = 1024 * 1024

/** @param read may throw, and what it throws is handed on */
export function windowOf(read: ReadRange, sizeBytes: number): Window {
	let start = 0
	let block: Buffer = Buffer.alloc(0)
	return {
		sizeBytes,
		async take(offset, length, what) {
			const missingBytes = offset + length - sizeBytes
			if (missingBytes > 0) throw new EndedEarly(`it ends inside ${what}, ${missingBytes} bytes too early`)
			if (length > mostAtOnceBytes) throw new RangeError(`${length} bytes are too many to take at once`)
			if (offset < start || offset + length > start + block.length) {
				start = offset
				block = await read(offset, Math.min(Math.max(length, blockBytes), sizeBytes - offset))
				if (block.length < length) throw new EndedEarly("it became shorter while it was read")
			}
			return block.subarray(offset - start, offset - start + length)
		},
	}
}
