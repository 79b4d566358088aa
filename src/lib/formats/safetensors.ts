// Judges a safetensors file by its header alone: a few kilobytes say whether gigabytes are all there.
// Format: https://github.com/huggingface/safetensors (eight bytes of length, JSON, then the tensors without holes).
import { HeaderError, parseHeader, type TensorSpan } from "./safetensors-header.ts"

/** Gives `length` bytes from `offset`, fewer only where the file ends. A file's, or an object's by ranged reads. */
export type ReadRange = (offset: number, length: number) => Promise<Buffer>

export type SafetensorsFinding =
	| { state: "ok"; tensors: number; headerBytes: number }
	| { state: "not-safetensors" | "truncated" | "damaged"; because: string }

const lengthBytes = 8
const [openBrace] = Buffer.from("{")

/** The reference implementation's own limit. */
const longestHeaderBytes = 100_000_000

/**
 * Checks the structure: header, dtypes, shapes, and that the tensors fill the file from the header to its last byte.
 * The tensors themselves are not read: a flipped bit in them is not found. Never throws for what the bytes are.
 * @param read may throw, and what it throws is handed on
 * @param sizeBytes of the whole file
 */
export async function inspectSafetensors(read: ReadRange, sizeBytes: number): Promise<SafetensorsFinding> {
	if (sizeBytes <= lengthBytes) return { state: "truncated", because: `it is only ${sizeBytes} bytes long` }
	const head = await read(0, lengthBytes + 1)
	if (head.length <= lengthBytes)
		return { state: "truncated", because: "it became shorter while it was read" }
	const stated = head.readBigUInt64LE(0)
	if (head[lengthBytes] !== openBrace)
		return { state: "not-safetensors", because: "no JSON stands where its header should begin" }
	if (stated > BigInt(longestHeaderBytes))
		return { state: "damaged", because: `its header claims ${stated} bytes; 100 MB are the most` }
	const headerBytes = Number(stated)
	if (headerBytes < 2) return { state: "damaged", because: `its header claims ${headerBytes} bytes` }
	const dataBytes = sizeBytes - lengthBytes - headerBytes
	if (dataBytes < 0)
		return { state: "truncated", because: `it ends inside its header, ${-dataBytes} bytes too early` }
	const header = await read(lengthBytes, headerBytes)
	if (header.length < headerBytes)
		return { state: "truncated", because: "it became shorter while it was read" }
	try {
		const tensors = parseHeader(header)
		return layoutProblem(tensors, dataBytes) ?? { state: "ok", tensors: tensors.length, headerBytes }
	} catch (error) {
		if (error instanceof HeaderError) return { state: "damaged", because: error.message }
		throw error
	}
}

/** No holes, no overlaps, and the last tensor ends where the file ends. */
function layoutProblem(tensors: TensorSpan[], dataBytes: number): SafetensorsFinding | undefined {
	let end = 0
	for (const tensor of tensors.sort((one, other) => one.begin - other.begin || one.end - other.end)) {
		if (tensor.begin !== end) {
			const name = JSON.stringify(tensor.name.slice(0, 80))
			const because =
				tensor.begin > end
					? `before the tensor ${name} there is a hole of ${tensor.begin - end} bytes`
					: `the tensor ${name} overlaps the one before by ${end - tensor.begin} bytes`
			return { state: "damaged", because }
		}
		end = tensor.end
	}
	if (end > dataBytes)
		return {
			state: "truncated",
			because: `of ${end} bytes of tensors the last ${end - dataBytes} are missing`,
		}
	if (end < dataBytes)
		return { state: "damaged", because: `it goes on after the last tensor, ${dataBytes - end} B too far` }
	return undefined
}
