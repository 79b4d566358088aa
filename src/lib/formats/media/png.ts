// PNG: chunks up to IEND at the end of the file, each with its CRC; and the texts ComfyUI leaves in it.
// Format: https://www.w3.org/TR/png-3/
import { crc32, inflateSync } from "node:zlib"
import {
	damaged,
	EndedEarly,
	mostAtOnceBytes,
	type StructureFinding,
	unfinished,
	type Window,
	whole,
} from "./finding.ts"

export const pngSignature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a])

const frameBytes = 12
const longestChunkBytes = 0x7fffffff
/** Above this only the first chunk, the last of the image and the texts are summed. */
const sumAllUpToBytes = 256 * 1024 * 1024
const mostChunks = 1_000_000

type Chunk = { type: string; offset: number; length: number }

/** Checks chunks, order, sums and the end. A file of up to 256 MiB is read once, a larger one in small parts. */
export async function inspectPng(window: Window): Promise<StructureFinding> {
	const { sizeBytes } = window
	const signature = await window.take(0, pngSignature.length, "its signature")
	if (!signature.equals(pngSignature)) return damaged("it doesn't begin as PNG does")
	let lastImageData: Chunk | undefined
	let count = 0
	for await (const chunk of chunksOf(window)) {
		count++
		if (count > mostChunks) return damaged(`it has more than ${mostChunks} chunks`)
		if (!/^[A-Za-z]{4}$/.test(chunk.type))
			return damaged(`at byte ${chunk.offset} there should be a chunk's name`)
		if (count === 1 && (chunk.type !== "IHDR" || chunk.length !== 13))
			return damaged("its first chunk is not the header")
		if (chunk.length > longestChunkBytes) return damaged(`the chunk at byte ${chunk.offset} is too long`)
		const end = chunk.offset + frameBytes + chunk.length
		if (end > sizeBytes)
			return unfinished(`it ends inside its ${chunk.type} chunk, ${end - sizeBytes} bytes too early`)
		const isSmallPart = count === 1 || chunk.type === "IEND"
		if ((sizeBytes <= sumAllUpToBytes || isSmallPart) && !(await sumIsRight(window, chunk)))
			return damaged(`the sum of its ${chunk.type} chunk at byte ${chunk.offset} is wrong`)
		if (chunk.type === "IDAT") lastImageData = chunk
		if (chunk.type !== "IEND") continue
		if (lastImageData === undefined) return damaged("it has no image data")
		if (sizeBytes > sumAllUpToBytes && !(await sumIsRight(window, lastImageData)))
			return damaged("the sum of its last image data is wrong")
		if (end < sizeBytes) return damaged(`it goes on for ${sizeBytes - end} bytes after its end`)
		return whole
	}
	return unfinished("it has no end yet (no IEND)")
}

async function* chunksOf(window: Window): AsyncGenerator<Chunk> {
	let offset = pngSignature.length
	while (offset < window.sizeBytes) {
		const head = await window.take(offset, 8, "a chunk's head")
		const chunk = { type: head.toString("latin1", 4, 8), offset, length: head.readUInt32BE(0) }
		yield chunk
		offset += frameBytes + chunk.length
	}
}

async function sumIsRight(window: Window, { type, offset, length }: Chunk): Promise<boolean> {
	let sum = 0
	const end = offset + 8 + length
	for (let at = offset + 4; at < end; ) {
		const piece = await window.take(at, Math.min(mostAtOnceBytes, end - at), `its ${type} chunk`)
		sum = crc32(piece, sum)
		at += piece.length
	}
	return (await window.take(end, 4, `its ${type} chunk`)).readUInt32BE(0) === sum
}

export type PngTexts = {
	/** By keyword; the first of each. */
	texts: ReadonlyMap<string, string>
	/** Keywords of texts that were there, and too long or not readable. */
	unreadable: readonly string[]
}

const longestKeywordBytes = 79
const mostTextBytes = 16 * 1024 * 1024

/**
 * Reads some of the texts of a PNG that is whole: tEXt, zTXt and iTXt, each up to 16 MiB, inflated or not (ComfyUI writes
 * `prompt` and `workflow` as tEXt).
 */
export async function readPngTexts(window: Window, keywords: ReadonlySet<string>): Promise<PngTexts> {
	const texts = new Map<string, string>()
	const unreadable: string[] = []
	let count = 0
	try {
		for await (const chunk of chunksOf(window)) {
			if (chunk.type === "IEND" || ++count > mostChunks) break
			if (!["tEXt", "zTXt", "iTXt"].includes(chunk.type)) continue
			const headBytes = Math.min(chunk.length, longestKeywordBytes + 1)
			const head = Buffer.from(await window.take(chunk.offset + 8, headBytes, "a text"))
			const keyword = head.toString("latin1", 0, Math.max(0, head.indexOf(0)))
			if (!keywords.has(keyword) || texts.has(keyword)) continue
			const text = await textOf(window, chunk, keyword.length + 1)
			if (text === undefined) unreadable.push(keyword)
			else texts.set(keyword, text)
		}
	} catch (error) {
		if (!(error instanceof EndedEarly)) throw error
	}
	return { texts, unreadable }
}

async function textOf(window: Window, chunk: Chunk, skip: number): Promise<string | undefined> {
	const pieces: Buffer[] = []
	if (chunk.length > mostTextBytes) return undefined
	for (let at = skip; at < chunk.length; ) {
		const length = Math.min(mostAtOnceBytes, chunk.length - at)
		pieces.push(Buffer.from(await window.take(chunk.offset + 8 + at, length, "a text")))
		at += length
	}
	const bytes = Buffer.concat(pieces)
	if (chunk.type === "tEXt") return bytes.toString("latin1")
	if (chunk.type === "zTXt") return inflate(bytes.subarray(1))?.toString("latin1")
	// iTXt: compression flag and method, language, translated keyword, each of the last two ended by zero.
	const language = bytes.indexOf(0, 2)
	const translated = language < 0 ? -1 : bytes.indexOf(0, language + 1)
	if (translated < 0) return undefined
	const text = bytes.subarray(translated + 1)
	return (bytes[0] === 1 ? inflate(text) : text)?.toString("utf8")
}

function inflate(bytes: Buffer): Buffer | undefined {
	try {
		return inflateSync(bytes, { maxOutputLength: mostTextBytes })
	} catch {
		return undefined
	}
}
