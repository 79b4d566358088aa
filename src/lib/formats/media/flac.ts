// FLAC: the frames have no length, but the last one states its first sample and ends in a sum: together with the number
// of samples in front they prove the end without decoding. Format: RFC 9639.
import { damaged, mostAtOnceBytes, type StructureFinding, unfinished, type Window, whole } from "./finding.ts"

const mostTries = 64

type StreamInfo = { mostBlockSamples: number; mostFrameBytes: number; samples: number }

/** Reads the blocks in front and the last frame. */
export async function inspectFlac(window: Window): Promise<StructureFinding> {
	if ((await window.take(0, 4, "its beginning")).toString("latin1") !== "fLaC")
		return damaged("it doesn't begin as FLAC does")
	let at = 4
	let info: StreamInfo | undefined
	for (let isLast = false; !isLast; ) {
		const head = await window.take(at, 4, "a block in front")
		const type = (head[0] ?? 0) & 0x7f
		isLast = ((head[0] ?? 0) & 0x80) !== 0
		const length = head.readUIntBE(1, 3)
		if (type === 127 || (info === undefined) !== (type === 0))
			return damaged("its blocks in front are in disorder")
		if (info === undefined) {
			if (length !== 34) return damaged("its stream information is of the wrong length")
			info = streamInfo(await window.take(at + 4, length, "its stream information"))
		}
		at += 4 + length
	}
	if (info === undefined) return damaged("it has no stream information")
	if (at >= window.sizeBytes) return unfinished("it has no sound yet")
	const reached = await lastFrame(window, at, info)
	if (reached === undefined) return unfinished("it doesn't end with a whole frame")
	if (info.samples === 0) return { state: "unknown", because: "how many samples it has isn't filled in" }
	if (reached < info.samples) return unfinished(`of ${info.samples} samples it has only ${reached}`)
	return reached === info.samples ? whole : damaged(`it has more samples than the ${info.samples} it states`)
}

function streamInfo(bytes: Buffer): StreamInfo {
	return {
		mostBlockSamples: bytes.readUInt16BE(2),
		mostFrameBytes: bytes.readUIntBE(7, 3),
		samples: ((bytes[13] ?? 0) & 0x0f) * 2 ** 32 + bytes.readUInt32BE(14),
	}
}

/** How many samples there are up to the end of the frame that ends with the file. */
async function lastFrame(window: Window, from: number, info: StreamInfo): Promise<number | undefined> {
	const most = info.mostFrameBytes === 0 ? mostAtOnceBytes : Math.min(info.mostFrameBytes, mostAtOnceBytes)
	const tailBytes = Math.min(window.sizeBytes - from, most)
	const tail = await window.take(window.sizeBytes - tailBytes, tailBytes, "its last frame")
	let tries = 0
	for (let at = tail.length - 9; at >= 0; at--) {
		if (tail[at] !== 0xff || ((tail[at + 1] ?? 0) & 0xfe) !== 0xf8) continue
		const samples = frameEnd(tail.subarray(at), info)
		// A frame that ends with its own sum comes to zero when the sum is summed too.
		// Sound can look like a frame's head by chance; a file made of heads must not cost a sum for each.
		if (samples !== undefined && ++tries > mostTries) return undefined
		if (samples !== undefined && crc16(tail.subarray(at)) === 0) return samples
	}
	return undefined
}

/** Reads a frame's head; undefined when it is none. */
function frameEnd(frame: Buffer, info: StreamInfo): number | undefined {
	const blockCode = (frame[2] ?? 0) >> 4
	const rateCode = (frame[2] ?? 0) & 0x0f
	const first = frame[4] ?? 0
	const numberBytes = first < 0x80 ? 1 : Math.clz32(~first << 24)
	if (numberBytes > 7 || (numberBytes === 1 && first >= 0x80)) return undefined
	let number = numberBytes === 1 ? first : first & (0x7f >> numberBytes)
	for (let index = 1; index < numberBytes; index++) {
		const byte = frame[4 + index] ?? 0
		if (byte >> 6 !== 2) return undefined
		number = number * 64 + (byte & 0x3f)
	}
	let at = 4 + numberBytes
	const block = blockSamples(blockCode, frame, at)
	if (block === undefined) return undefined
	at += blockCode === 6 ? 1 : blockCode === 7 ? 2 : 0
	at += rateCode === 12 ? 1 : rateCode === 13 || rateCode === 14 ? 2 : 0
	if (at + 3 > frame.length || crc8(frame.subarray(0, at + 1)) !== 0) return undefined
	const isVariable = ((frame[1] ?? 0) & 1) === 1
	return (isVariable ? number : number * info.mostBlockSamples) + block
}

function blockSamples(code: number, frame: Buffer, at: number): number | undefined {
	if (code === 0) return undefined
	if (code === 1) return 192
	if (code <= 5) return 576 << (code - 2)
	if (code === 6) return (frame[at] ?? 0) + 1
	if (code === 7) return at + 1 < frame.length ? frame.readUInt16BE(at) + 1 : undefined
	return 256 << (code - 8)
}

function crc8(bytes: Buffer): number {
	return cyclic(bytes, 0x07, 8)
}

function crc16(bytes: Buffer): number {
	return cyclic(bytes, 0x8005, 16)
}

function cyclic(bytes: Buffer, polynomial: number, bits: number): number {
	const top = 1 << (bits - 1)
	const mask = (1 << bits) - 1
	let sum = 0
	for (const byte of bytes) {
		sum ^= byte << (bits - 8)
		for (let bit = 0; bit < 8; bit++) sum = (sum & top ? (sum << 1) ^ polynomial : sum << 1) & mask
	}
	return sum
}
