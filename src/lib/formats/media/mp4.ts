// MP4 and MOV: boxes that close to the end of the file, with `moov`. Encoders write `mdat` first with a size of zero or
// one that is filled in at the end: such a file sat at 48 bytes for two seconds, so a stable size proves nothing.
import { damaged, type StructureFinding, unfinished, type Window, whole } from "./finding.ts"

const mostBoxes = 1_000_000
const known = new Set(
	"ftyp moov mdat moof mfra free skip wide udta uuid meta sidx ssix styp pnot prft emsg pdin".split(" "),
)

/** Whether the beginning of a file is that of an MP4 or MOV. */
export function looksLikeMp4(head: Buffer): boolean {
	return ["ftyp", "wide", "moov", "mdat", "pnot"].includes(head.toString("latin1", 4, 8))
}

type Box = { type: string; offset: number; bodyOffset: number; end: number }

/** Checks the outer boxes and those inside of `moov`. Reads only their heads. */
export async function inspectMp4(window: Window): Promise<StructureFinding> {
	const { sizeBytes } = window
	const seen = new Set<string>()
	let at = 0
	let count = 0
	while (at < sizeBytes) {
		const box = await readBox(window, at)
		if (typeof box === "string") return unfinished(box)
		if (box.end < box.bodyOffset) return damaged(`the box at byte ${at} is shorter than its head`)
		if (!known.has(box.type)) return damaged(`at byte ${at} stands no box that is known here`)
		if (box.end > sizeBytes)
			return unfinished(`its ${box.type} box ends ${box.end - sizeBytes} bytes after the file`)
		if (box.type === "moov") {
			const problem = await insideMoov(window, box)
			if (problem !== undefined) return problem
		}
		if (++count > mostBoxes) return damaged(`it has more than ${mostBoxes} boxes`)
		seen.add(box.type)
		at = box.end
	}
	if (!seen.has("moov")) return unfinished("it has no index yet (no moov)")
	// Fragments can end after any of them: only the random access table at the end says that it was the last.
	if (seen.has("moof") && !seen.has("mfra"))
		return { state: "unknown", because: "it is in fragments, and nothing says which is the last" }
	if (!seen.has("mdat")) return unfinished("it has no media data yet (no mdat)")
	return whole
}

/** A box's head; a text says why it has no end. */
async function readBox(window: Window, offset: number): Promise<Box | string> {
	const head = await window.take(offset, 8, "a box's head")
	const type = head.toString("latin1", 4, 8)
	const size = head.readUInt32BE(0)
	if (size === 0) return `the size of its ${JSON.stringify(type)} box isn't filled in yet`
	if (size !== 1) return { type, offset, bodyOffset: offset + 8, end: offset + size }
	const long = (await window.take(offset + 8, 8, "a box's head")).readBigUInt64BE(0)
	if (long === 0n) return `the size of its ${JSON.stringify(type)} box isn't filled in yet`
	const end = long > BigInt(Number.MAX_SAFE_INTEGER) ? Number.MAX_SAFE_INTEGER : offset + Number(long)
	return { type, offset, bodyOffset: offset + 16, end }
}

async function insideMoov(window: Window, moov: Box): Promise<StructureFinding | undefined> {
	let hasHeader = false
	let hasTrack = false
	for (let at = moov.bodyOffset; at < moov.end; ) {
		if (moov.end - at < 8) return damaged("its moov box ends inside a box")
		const box = await readBox(window, at)
		if (typeof box === "string") return unfinished(box)
		if (box.end > moov.end || box.end < box.bodyOffset)
			return damaged("a box in its moov box is of the wrong size")
		hasHeader ||= box.type === "mvhd"
		hasTrack ||= box.type === "trak"
		at = box.end
	}
	return hasHeader && hasTrack ? undefined : damaged("its moov box has no header or no track")
}
