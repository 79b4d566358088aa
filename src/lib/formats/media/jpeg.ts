// JPEG: marker segments from SOI to EOI at the end of the file. A preview inside has an EOI of its own, so the last
// two bytes alone prove nothing: the scan is walked.
import { damaged, type StructureFinding, unfinished, type Window, whole } from "./finding.ts"

const startOfScan = 0xda
const endOfImage = 0xd9
const mostSegments = 2_000_000
const pieceBytes = 64 * 1024

/** Reads the whole file once, 64 KiB at a time. */
export async function inspectJpeg(window: Window): Promise<StructureFinding> {
	const { sizeBytes } = window
	const head = await window.take(0, 2, "its beginning")
	if (head[0] !== 0xff || head[1] !== 0xd8) return damaged("it doesn't begin as JPEG does")
	let at = 2
	let hasScan = false
	for (let count = 0; ; count++) {
		if (count > mostSegments) return damaged(`it has more than ${mostSegments} segments`)
		const [first, marker = 0] = await window.take(at, 2, "a segment")
		if (first !== 0xff) return damaged(`at byte ${at} there should be a marker`)
		if (marker === 0xff) {
			at++ // Fill bytes may stand before a marker.
			continue
		}
		if (marker === endOfImage) {
			if (!hasScan) return damaged("it ends before its image begins")
			return at + 2 === sizeBytes
				? whole
				: damaged(`it goes on for ${sizeBytes - at - 2} bytes after its end`)
		}
		if (marker === 0 || marker === 0xd8) return damaged(`at byte ${at} there should be a marker`)
		at += 2
		if (marker === 0x01 || isRestart(marker)) continue
		const length = (await window.take(at, 2, "a segment")).readUInt16BE(0)
		if (length < 2) return damaged(`the segment at byte ${at - 2} has no length`)
		at += length
		if (at > sizeBytes) return unfinished(`it ends inside a segment, ${at - sizeBytes} bytes too early`)
		if (marker !== startOfScan) continue
		hasScan = true
		const next = await endOfScan(window, at)
		if (next === undefined) return unfinished("it ends inside its image (no EOI)")
		at = next
	}
}

const isRestart = (marker: number) => marker >= 0xd0 && marker <= 0xd7

/** Where the next marker stands that is neither stuffing nor a restart. */
async function endOfScan(window: Window, from: number): Promise<number | undefined> {
	let at = from
	while (at + 1 < window.sizeBytes) {
		const piece = await window.take(at, Math.min(pieceBytes, window.sizeBytes - at), "its image")
		let found = piece.indexOf(0xff)
		while (found >= 0 && found + 1 < piece.length) {
			const next = piece[found + 1] ?? 0
			if (next !== 0 && !isRestart(next)) return at + found
			found = piece.indexOf(0xff, found + 2)
		}
		at += found >= 0 ? found : piece.length
		if (found === 0 && piece.length === 1) return undefined
	}
	return undefined
}
