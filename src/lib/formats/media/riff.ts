// RIFF: WAV, WEBP and AVI. The sizes in front must be those of what follows; writers fill them in at the end.
import { damaged, type StructureFinding, unfinished, type Window, whole } from "./finding.ts"

const mostChunks = 1_000_000

/** The kind of a RIFF file by the first twelve bytes. */
export function riffKind(head: Buffer): "wav" | "webp" | "avi" | undefined {
	if (head.toString("latin1", 0, 4) !== "RIFF") return undefined
	const kinds = { WAVE: "wav", WEBP: "webp", "AVI ": "avi" } as const
	const form = head.toString("latin1", 8, 12)
	return form === "WAVE" || form === "WEBP" || form === "AVI " ? kinds[form] : undefined
}

const needed = {
	wav: ["fmt ", "data"],
	webp: ["VP8 |VP8L|VP8X"],
	avi: ["LIST"],
} as const

/** Checks that the chunks fill the file; an AVI above 1 GiB continues in further RIFF parts. Reads only heads. */
export async function inspectRiff(window: Window): Promise<StructureFinding> {
	const { sizeBytes } = window
	const kind = riffKind(await window.take(0, 12, "its head"))
	if (kind === undefined) return damaged("it doesn't begin as RIFF does")
	const seen = new Map<string, number>()
	let at = 0
	let count = 0
	while (at < sizeBytes) {
		const head = await window.take(at, 12, "its head")
		const name = head.toString("latin1", 0, 4)
		if (name !== "RIFF") {
			if (kind !== "avi") return unfinished(`it goes on ${sizeBytes - at} bytes beyond the size it states`)
			return damaged(`at byte ${at} there should be RIFF`)
		}
		const stated = head.readUInt32LE(4)
		if (stated === 0 || stated === 0xffffffff) return unfinished("its size isn't filled in yet")
		const end = at + 8 + stated
		if (end > sizeBytes) return unfinished(`of the size it states ${end - sizeBytes} bytes are missing`)
		for (let inner = at + 12; inner < end; ) {
			const chunk = await window.take(inner, 8, "a chunk")
			const length = chunk.readUInt32LE(4)
			const type = chunk.toString("latin1", 0, 4)
			seen.set(type, Math.max(length, seen.get(type) ?? 0))
			inner += 8 + length
			// Chunks are padded to an even length, the last one often isn't.
			if (inner < end && length % 2 === 1) inner++
			if (inner > end) return unfinished(`its ${JSON.stringify(type)} chunk is longer than the file it is in`)
			if (++count > mostChunks) return damaged(`it has more than ${mostChunks} chunks`)
		}
		at = end + (end < sizeBytes && stated % 2 === 1 ? 1 : 0)
	}
	for (const names of needed[kind]) {
		const length = Math.max(0, ...names.split("|").map((name) => seen.get(name) ?? 0))
		if (length === 0) return unfinished(`it has no ${names.trim().replaceAll("|", "or ")} yet`)
	}
	return whole
}
