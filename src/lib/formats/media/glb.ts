// GLB (binary glTF 2.0): a stated length, and chunks that fill it.
import { damaged, type StructureFinding, unfinished, type Window, whole } from "./finding.ts"

const mostChunks = 10_000

/** Reads the heads of the chunks. */
export async function inspectGlb(window: Window): Promise<StructureFinding> {
	const head = await window.take(0, 12, "its head")
	if (head.toString("latin1", 0, 4) !== "glTF") return damaged("it doesn't begin as GLB does")
	const stated = head.readUInt32LE(8)
	if (stated < 12) return unfinished("its length isn't filled in yet")
	if (stated > window.sizeBytes) return unfinished(`${stated - window.sizeBytes} of its bytes are missing`)
	if (stated < window.sizeBytes)
		return damaged(`it goes on for ${window.sizeBytes - stated} bytes after its end`)
	let count = 0
	for (let at = 12; at < stated; count++) {
		const chunk = await window.take(at, 8, "a chunk's head")
		if (count === 0 && chunk.toString("latin1", 4, 8) !== "JSON")
			return damaged("its first chunk is not JSON")
		if (count > mostChunks) return damaged(`it has more than ${mostChunks} chunks`)
		at += 8 + chunk.readUInt32LE(0)
		if (at > stated) return damaged("a chunk is longer than the file")
	}
	return count === 0 ? unfinished("it has no chunk yet") : whole
}
