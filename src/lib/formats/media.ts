// Says of a file that ComfyUI writes whether all of it is there, by its content and not by its name.
import { EndedEarly, type StructureFinding, type Window, windowOf } from "./media/finding.ts"
import { inspectFlac } from "./media/flac.ts"
import { inspectGif } from "./media/gif.ts"
import { inspectGlb } from "./media/glb.ts"
import { inspectJpeg } from "./media/jpeg.ts"
import { inspectMatroska } from "./media/matroska.ts"
import { inspectMp4, looksLikeMp4 } from "./media/mp4.ts"
import { inspectPng, type PngTexts, pngSignature, readPngTexts } from "./media/png.ts"
import { inspectRiff, riffKind } from "./media/riff.ts"
import { inspectSafetensors, type ReadRange } from "./safetensors.ts"

export type MediaKind =
	| "png"
	| "jpeg"
	| "gif"
	| "webp"
	| "wav"
	| "avi"
	| "mp4"
	| "webm"
	| "flac"
	| "glb"
	| "safetensors"
	| "unknown"

export type MediaFinding = { kind: MediaKind } & StructureFinding

const readers: Readonly<
	Record<Exclude<MediaKind, "safetensors" | "unknown">, (window: Window) => Promise<StructureFinding>>
> = {
	png: inspectPng,
	jpeg: inspectJpeg,
	gif: inspectGif,
	webp: inspectRiff,
	wav: inspectRiff,
	avi: inspectRiff,
	mp4: inspectMp4,
	webm: inspectMatroska,
	flac: inspectFlac,
	glb: inspectGlb,
}

const headBytes = 16

/**
 * Judges a file by its structure. Never throws for what the bytes are; memory stays below a few MiB.
 * @param read may throw, and what it throws is handed on
 * @param sizeBytes of the whole file
 */
export async function inspectMedia(read: ReadRange, sizeBytes: number): Promise<MediaFinding> {
	if (sizeBytes === 0) return { kind: "unknown", state: "unfinished", because: "it is empty" }
	const head = await read(0, Math.min(headBytes, sizeBytes))
	if (head.length < Math.min(headBytes, sizeBytes))
		return { kind: "unknown", state: "unfinished", because: "it became shorter while it was read" }
	const kind = mediaKind(head)
	if (kind === "unknown")
		return sizeBytes < headBytes
			? { kind, state: "unfinished", because: `it is only ${sizeBytes} bytes long` }
			: { kind, state: "unknown", because: "its kind isn't known, so nothing says where it ends" }
	if (kind === "safetensors") return { kind, ...(await safetensorsFinding(read, sizeBytes)) }
	try {
		return { kind, ...(await readers[kind](windowOf(read, sizeBytes))) }
	} catch (error) {
		if (error instanceof EndedEarly) return { kind, state: "unfinished", because: error.message }
		throw error
	}
}

/**
 * Reads texts out of a PNG that was found whole.
 * @param keywords which; ComfyUI writes `prompt` (what ran) and `workflow` (what the editor showed)
 */
export function pngTexts(read: ReadRange, sizeBytes: number, keywords: readonly string[]): Promise<PngTexts> {
	return readPngTexts(windowOf(read, sizeBytes), new Set(keywords))
}

function mediaKind(head: Buffer): MediaKind {
	if (head.length >= 8 && head.subarray(0, 8).equals(pngSignature)) return "png"
	if (head.length >= 3 && head.readUIntBE(0, 3) === 0xffd8ff) return "jpeg"
	if (/^GIF8[79]a/.test(head.toString("latin1", 0, 6))) return "gif"
	const riff = riffKind(head)
	if (riff !== undefined) return riff
	if (looksLikeMp4(head)) return "mp4"
	if (head.length >= 4 && head.readUInt32BE(0) === 0x1a45dfa3) return "webm"
	if (head.toString("latin1", 0, 4) === "fLaC") return "flac"
	if (head.toString("latin1", 0, 4) === "glTF") return "glb"
	// Eight bytes of a length below 4 GiB, then the brace that opens the header.
	if (head.length >= 9 && head.readUInt32LE(4) === 0 && head[8] === 0x7b) return "safetensors"
	return "unknown"
}

async function safetensorsFinding(read: ReadRange, sizeBytes: number): Promise<StructureFinding> {
	const finding = await inspectSafetensors(read, sizeBytes)
	if (finding.state === "ok") return { state: "whole" }
	if (finding.state === "not-safetensors") return { state: "unknown", because: finding.because }
	return { state: finding.state === "truncated" ? "unfinished" : "damaged", because: finding.because }
}
