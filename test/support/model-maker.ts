// Models for tests: safetensors files as small, as large or as broken as a test wants them.
import { closeSync, ftruncateSync, mkdirSync, openSync, writeSync } from "node:fs"
import { dirname } from "node:path"

type Tensor = { dtype: string; shape: readonly number[]; data_offsets: readonly [number, number] }

/** The length and the header of a safetensors file. */
export function makeHeader(header: string | Readonly<Record<string, unknown>>): Buffer {
	const text = Buffer.from(typeof header === "string" ? header : JSON.stringify(header))
	const length = Buffer.alloc(8)
	length.writeBigUInt64LE(BigInt(text.length))
	return Buffer.concat([length, text])
}

/** A header of U8 tensors of these sizes, in order and without holes. */
export function tensorsOf(sizes: readonly number[]): Record<string, Tensor> {
	let at = 0
	return Object.fromEntries(
		sizes.map((size, index) => {
			const begin = at
			at += size
			return [`layer.${index}.weight`, { dtype: "U8", shape: [size], data_offsets: [begin, at] }]
		}),
	)
}

/** A whole file: one tensor of bytes that are never zero, different for each seed. */
export function makeModel(sizeBytes: number, seed = 1): Buffer {
	const data = Buffer.alloc(sizeBytes)
	for (let at = 0, value = seed; at < sizeBytes; at++) {
		value = (Math.imul(value, 1103515245) + 12345) >>> 0
		data[at] = 1 + ((value >>> 16) % 255)
	}
	return Buffer.concat([makeHeader({ __metadata__: { format: "pt" }, ...tensorsOf([sizeBytes]) }), data])
}

/**
 * Writes a model of any size that takes a few kilobytes of disk: header, a hole, and its last bytes.
 * @param lastBytes bytes of data at its end; without any the file ends in the hole
 */
export function writeSparseModel(file: string, dataBytes: number, lastBytes = 4096): void {
	writeSparseModelOf(file, [Math.floor(dataBytes / 2), Math.ceil(dataBytes / 2)], lastBytes)
}

/** The same with tensors of these sizes. */
export function writeSparseModelOf(file: string, sizes: readonly number[], lastBytes = 4096): void {
	mkdirSync(dirname(file), { recursive: true })
	const header = makeHeader(tensorsOf(sizes))
	const dataBytes = sizes.reduce((sum, size) => sum + size, 0)
	const descriptor = openSync(file, "w")
	writeSync(descriptor, header)
	ftruncateSync(descriptor, header.length + dataBytes)
	if (lastBytes > 0)
		writeSync(descriptor, Buffer.alloc(lastBytes, 7), 0, lastBytes, header.length + dataBytes - lastBytes)
	closeSync(descriptor)
}
