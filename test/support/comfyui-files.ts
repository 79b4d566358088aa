// The files of the ComfyUI stand-in, and how they grow: as the real one was measured to write them.
import { appendFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { basename, dirname, join } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import { crc32, deflateSync } from "node:zlib"

export type Timing = {
	/** Before a node writes anything. */
	runMs: number
	/** A PNG is there, and empty, for so long. */
	pngEmptyMs: number
	/** An MP4 has 48 bytes for so long. */
	mp4HeadMs: number
	/** Between the files of a batch. */
	batchGapMs: number
}

export const measured: Timing = { runMs: 200, pngEmptyMs: 300, mp4HeadMs: 2_000, batchGapMs: 400 }

const media = (name: string) => readFileSync(new URL(`./media/${name}`, import.meta.url))

export type SavedFile = { filename: string; subfolder: string; type: "output" }
export type Saving = {
	outputDirectory: string
	prefix: string
	/** What ran, for the PNG's text. */
	prompt: unknown
	workflow?: unknown
	timing: Timing
	signal: AbortSignal
	noMetadata?: boolean
}

/** The next name as ComfyUI counts it: `<base>_<counter of five digits>_<ending>`. */
function nextPath({ outputDirectory, prefix }: Saving, tail: string) {
	const subfolder = dirname(prefix) === "." ? "" : dirname(prefix)
	const directory = join(outputDirectory, subfolder)
	const base = basename(prefix)
	mkdirSync(directory, { recursive: true })
	const counters = readdirSync(directory)
		.filter((name) => name.startsWith(`${base}_`))
		.map((name) => Number.parseInt(name.slice(base.length + 1), 10) || 0)
	const filename = `${base}_${String(Math.max(0, ...counters) + 1).padStart(5, "0")}${tail}`
	return { path: join(directory, filename), filename, subfolder }
}

/** SaveImage: each picture empty at first; those of a batch one after the other. */
export async function saveImages(saving: Saving, count: number, seed: string): Promise<SavedFile[]> {
	const files: SavedFile[] = []
	for (let index = 0; index < count; index++) {
		if (index > 0) await pause(saving.timing.batchGapMs, undefined, { signal: saving.signal })
		const { path, filename, subfolder } = nextPath(saving, "_.png")
		writeFileSync(path, "")
		await pause(saving.timing.pngEmptyMs, undefined, { signal: saving.signal })
		const texts = saving.noMetadata
			? {}
			: { prompt: saving.prompt, ...(saving.workflow === undefined ? {} : { workflow: saving.workflow }) }
		writeFileSync(path, makePng(`${seed}#${index}`, texts))
		files.push({ filename, subfolder, type: "output" })
	}
	return files
}

/** SaveVideo and Video Helper Suite: the head of an MP4 for a while, then all of it. */
export async function saveVideo(saving: Saving, tail = "_.mp4"): Promise<SavedFile[]> {
	const { path, filename, subfolder } = nextPath(saving, tail)
	const bytes = media("video.mp4")
	writeFileSync(path, bytes.subarray(0, 48))
	await pause(saving.timing.mp4HeadMs, undefined, { signal: saving.signal })
	writeFileSync(path, bytes.subarray(0, 1000))
	appendFileSync(path, bytes.subarray(1000))
	return [{ filename, subfolder, type: "output" }]
}

/** What is written at once. */
export async function saveOther(saving: Saving, source: string, tail: string): Promise<SavedFile[]> {
	const { path, filename, subfolder } = nextPath(saving, tail)
	writeFileSync(path, media(source))
	return [{ filename, subfolder, type: "output" }]
}

/** A real PNG of 8 × 8 points with texts as ComfyUI leaves them: JSON in tEXt, in ASCII. */
export function makePng(seed: string, texts: Record<string, unknown>): Buffer {
	const chunk = (type: string, body: Buffer) => {
		const bytes = Buffer.alloc(12 + body.length)
		bytes.writeUInt32BE(body.length)
		bytes.write(type, 4, "latin1")
		body.copy(bytes, 8)
		bytes.writeUInt32BE(crc32(bytes.subarray(4, 8 + body.length)), 8 + body.length)
		return bytes
	}
	const head = Buffer.from([0, 0, 0, 8, 0, 0, 0, 8, 8, 2, 0, 0, 0])
	const points = Buffer.alloc(8 * 25)
	let value = crc32(seed)
	for (let at = 0; at < points.length; at++) {
		value = (Math.imul(value, 1103515245) + 12345) >>> 0
		points[at] = at % 25 === 0 ? 0 : value >>> 24
	}
	const ascii = (value: unknown) =>
		JSON.stringify(value).replaceAll(
			/[\u0080-\uffff]/g,
			(letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`,
		)
	return Buffer.concat([
		Buffer.from("89504e470d0a1a0a", "hex"),
		chunk("IHDR", head),
		...Object.entries(texts).map(([key, value]) =>
			chunk("tEXt", Buffer.from(`${key}\0${ascii(value)}`, "latin1")),
		),
		chunk("IDAT", deflateSync(points)),
		chunk("IEND", Buffer.alloc(0)),
	])
}
