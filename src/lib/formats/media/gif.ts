// GIF: blocks up to the trailer, which must be the last byte. Format: GIF89a.
import { damaged, type StructureFinding, unfinished, type Window, whole } from "./finding.ts"

/** Walks the blocks, reading the file once. */
export async function inspectGif(window: Window): Promise<StructureFinding> {
	const head = await window.take(0, 13, "its head")
	if (!/^GIF8[79]a$/.test(head.toString("latin1", 0, 6))) return damaged("it doesn't begin as GIF does")
	let at = 13 + colorTableBytes(head[10] ?? 0)
	let hasImage = false
	for (let count = 0; ; count++) {
		if (count > mostBlocks) return damaged(`it has more than ${mostBlocks} blocks`)
		const [block] = await window.take(at, 1, "its blocks")
		if (block === 0x3b) {
			if (!hasImage) return damaged("it ends before its image begins")
			const rest = window.sizeBytes - at - 1
			return rest === 0 ? whole : damaged(`it goes on for ${rest} bytes after its end`)
		}
		if (block === 0x2c) {
			const flags = (await window.take(at + 9, 1, "an image"))[0] ?? 0
			at = await afterSubBlocks(window, at + 11 + colorTableBytes(flags))
			hasImage = true
		} else if (block === 0x21) at = await afterSubBlocks(window, at + 2)
		else return damaged(`at byte ${at} stands no block that is known`)
		if (at > window.sizeBytes) return unfinished("it ends inside a block")
	}
}

const mostBlocks = 5_000_000

const colorTableBytes = (flags: number) => ((flags & 0x80) === 0 ? 0 : 3 * 2 ** ((flags & 7) + 1))

async function afterSubBlocks(window: Window, from: number): Promise<number> {
	let at = from
	for (;;) {
		const length = (await window.take(at, 1, "a block"))[0] ?? 0
		at += 1 + length
		if (length === 0) return at
	}
}
