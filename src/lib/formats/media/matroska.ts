// WebM and Matroska: EBML elements whose sizes close to the end of the file. A writer leaves the segment's size unknown
// until the end; where it stays so (a stream), the index at the end says that all was written.
// Format: RFC 8794, RFC 9559.
import { damaged, type StructureFinding, unfinished, type Window, whole } from "./finding.ts"

const ids = {
	ebml: 0x1a45dfa3,
	segment: 0x18538067,
	tracks: 0x1654ae6b,
	cluster: 0x1f43b675,
	cues: 0x1c53bb6b,
} as const

// What may stand in a segment; the first of these after a cluster of unknown size ends it.
const insideSegment = new Set<number>([
	...[ids.tracks, ids.cluster, ids.cues, 0x114d9b74, 0x1549a966, 0x1941a469, 0x1043a770, 0x1254c367],
	...[0xec, 0xbf],
])
const mostElements = 2_000_000

const beyondAnyFile = 2 ** 52

type Element = { id: number; bodyOffset: number; sizeBytes: number | "unknown" }

/** Reads heads of elements alone; inside of clusters of unknown size, those of their blocks. */
export async function inspectMatroska(window: Window): Promise<StructureFinding> {
	const head = await readElement(window, 0)
	if (head?.id !== ids.ebml || head.sizeBytes === "unknown")
		return damaged("it doesn't begin as Matroska does")
	const segment = await readElement(window, head.bodyOffset + head.sizeBytes)
	if (segment?.id !== ids.segment) return damaged("no segment follows its head")
	if (segment.sizeBytes !== "unknown") {
		const end = segment.bodyOffset + segment.sizeBytes
		if (end > window.sizeBytes)
			return unfinished(`of its segment ${end - window.sizeBytes} bytes are missing`)
		if (end < window.sizeBytes)
			return damaged(`it goes on for ${window.sizeBytes - end} bytes after its segment`)
	}
	return await walkSegment(window, segment)
}

async function walkSegment(window: Window, segment: Element): Promise<StructureFinding> {
	const seen = new Set<number>()
	let cuesAreLast = false
	let inOpenCluster = false
	let count = 0
	for (let at = segment.bodyOffset; at < window.sizeBytes; ) {
		const element = await readElement(window, at)
		if (element === undefined) return damaged(`at byte ${at} stands no element`)
		if (++count > mostElements) return damaged(`it has more than ${mostElements} elements`)
		const isInner = inOpenCluster && !insideSegment.has(element.id)
		if (!isInner) {
			if (!insideSegment.has(element.id)) return damaged(`at byte ${at} stands no element that is known here`)
			seen.add(element.id)
			if (element.id === ids.cluster) cuesAreLast = false
			if (element.id === ids.cues) cuesAreLast = true
		}
		if (element.sizeBytes === "unknown") {
			if (element.id !== ids.cluster) return damaged(`the element at byte ${at} has no size`)
			inOpenCluster = true
			at = element.bodyOffset
			continue
		}
		if (!isInner) inOpenCluster = false
		at = element.bodyOffset + element.sizeBytes
		if (at > window.sizeBytes)
			return unfinished(`it ends inside an element, ${at - window.sizeBytes} bytes too early`)
	}
	if (!seen.has(ids.tracks) || !seen.has(ids.cluster)) return unfinished("it has no tracks or no media yet")
	if (segment.sizeBytes === "unknown" && !cuesAreLast)
		return unfinished("its size isn't filled in yet, and no index stands at its end")
	return whole
}

async function readElement(window: Window, offset: number): Promise<Element | undefined> {
	const [first = 0] = await window.take(offset, 1, "an element's head")
	const idBytes = Math.clz32(first) - 23
	if (idBytes > 4) return undefined
	const id = (await window.take(offset, idBytes, "an element's head")).readUIntBE(0, idBytes)
	const sizeOffset = offset + idBytes
	const [lead = 0] = await window.take(sizeOffset, 1, "an element's head")
	const sizeLength = Math.clz32(lead) - 23
	if (sizeLength > 8) return undefined
	const bytes = await window.take(sizeOffset, sizeLength, "an element's head")
	let value = BigInt(lead & (0xff >> sizeLength))
	let isUnknown = value === BigInt(0xff >> sizeLength)
	for (const byte of bytes.subarray(1)) {
		value = (value << 8n) | BigInt(byte)
		isUnknown &&= byte === 0xff
	}
	const sizeBytes = Math.min(Number(value), beyondAnyFile)
	return { id, bodyOffset: sizeOffset + sizeLength, sizeBytes: isUnknown ? "unknown" : sizeBytes }
}
