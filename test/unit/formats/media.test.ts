import { readdirSync, readFileSync } from "node:fs"
import fc from "fast-check"
import { describe, expect, test } from "vitest"
import { inspectMedia, pngTexts } from "../../../src/lib/formats/media.ts"
import { makeModel } from "../../support/model-maker.ts"

const directory = new URL("../../support/media/", import.meta.url)
const fileOf = (name: string) => readFileSync(new URL(name, directory))
const readerOf = (bytes: Buffer) => async (offset: number, length: number) =>
	bytes.subarray(offset, offset + length)
const inspect = (bytes: Buffer) => inspectMedia(readerOf(bytes), bytes.length)

const box = (type: string, ...body: Buffer[]) => {
	const bytes = Buffer.concat(body)
	const head = Buffer.alloc(8)
	head.writeUInt32BE(8 + bytes.length)
	head.write(type, 4, "latin1")
	return Buffer.concat([head, bytes])
}
const longBox = (type: string, body: Buffer, sizeBytes = 16n + BigInt(body.length)) => {
	const head = Buffer.alloc(16)
	head.writeUInt32BE(1)
	head.write(type, 4, "latin1")
	head.writeBigUInt64BE(sizeBytes, 8)
	return Buffer.concat([head, body])
}
const moov = box("moov", box("mvhd", Buffer.alloc(100)), box("trak"))
const glb = (() => {
	const json = Buffer.from('{"asset":{"version":"2.0"}}\n')
	const bytes = Buffer.alloc(20 + json.length)
	bytes.write("glTF")
	bytes.writeUInt32LE(2, 4)
	bytes.writeUInt32LE(bytes.length, 8)
	bytes.writeUInt32LE(json.length, 12)
	bytes.write("JSON", 16)
	json.copy(bytes, 20)
	return bytes
})()

const wholeFiles: [string, string, Buffer][] = [
	...(
		[
			["plain.png", "png"],
			["comfyui.png", "png"],
			["plain.jpg", "jpeg"],
			["progressive.jpg", "jpeg"],
			["animated.gif", "gif"],
			["picture.webp", "webp"],
			["lossless.webp", "webp"],
			["sine.wav", "wav"],
			["video.avi", "avi"],
			["video.mp4", "mp4"],
			["faststart.mp4", "mp4"],
			["quicktime.mov", "mp4"],
			["fragments.mp4", "mp4"],
			["video.webm", "webm"],
			["video.mkv", "webm"],
			["encoder.flac", "flac"],
		] as const
	).map(([name, kind]): [string, string, Buffer] => [name, kind, fileOf(name)]),
	["an MP4 with 64-bit sizes", "mp4", Buffer.concat([box("ftyp"), moov, longBox("mdat", Buffer.alloc(99))])],
	["a GLB", "glb", glb],
	["a safetensors file", "safetensors", makeModel(90)],
]

test("every file that lies there for it is tested", () => {
	const tested = new Set([...wholeFiles.map(([name]) => name), "streamed.webm", "streamed.wav", "README.md"])
	expect(readdirSync(directory).filter((name) => !tested.has(name))).toEqual([])
})

describe.each(wholeFiles)("%s", (_, kind, bytes) => {
	test("is whole, and told by its content", async () => {
		expect(await inspect(bytes)).toEqual({ kind, state: "whole" })
	})

	test("is not whole when it is cut short anywhere", async () => {
		for (let length = 0; length < bytes.length; length++) {
			const finding = await inspect(bytes.subarray(0, length))
			expect(finding.state, `cut at ${length}`).not.toBe("whole")
		}
	})

	test("is not whole when something hangs on, or its end was never written", async () => {
		const longer = Buffer.concat([bytes, Buffer.from("more!")])
		expect((await inspect(longer)).state).not.toBe("whole")
		const half = Buffer.concat([bytes.subarray(0, bytes.length >> 1), Buffer.alloc(bytes.length)])
		expect((await inspect(half.subarray(0, bytes.length))).state).not.toBe(
			["png", "jpeg", "gif", "flac", "avi"].includes(kind) ? "whole" : "never",
		)
	})

	test("is read within bounds, little more than once", async () => {
		let readBytes = 0
		await inspectMedia(async (offset, length) => {
			expect(offset + length).toBeLessThanOrEqual(bytes.length)
			readBytes += length
			return bytes.subarray(offset, offset + length)
		}, bytes.length)
		expect(readBytes).toBeLessThanOrEqual(2 * bytes.length + 64)
	})

	test("never crashes the reader, whatever became of its bytes", async () => {
		const change = fc.tuple(fc.nat(bytes.length - 1), fc.nat(255))
		await fc.assert(
			fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 6 }), fc.nat(40), async (changes, cut) => {
				const copy = Buffer.from(bytes)
				for (const [at, value] of changes) copy[at] = value
				const finding = await inspect(copy.subarray(0, Math.max(1, copy.length - cut)))
				expect(["whole", "unfinished", "damaged", "unknown"]).toContain(finding.state)
			}),
			{ numRuns: 150 },
		)
	})
})

describe("what is being written is unfinished", () => {
	test.each<[string, Buffer, RegExp]>([
		["nothing yet", Buffer.alloc(0), /empty/],
		["an MP4 of 48 bytes", fileOf("video.mp4").subarray(0, 48), /mdat.*(isn't filled in|after the file)/],
		[
			"an MP4 whose media runs to the end",
			Buffer.concat([box("ftyp"), moov, Buffer.from("\0\0\0\0mdat....")]),
			/filled in/,
		],
		["an MP4 without its index", Buffer.concat([box("ftyp"), box("mdat", Buffer.alloc(9))]), /no moov/],
		["an MP4 without media", Buffer.concat([box("ftyp"), moov]), /no mdat/],
		[
			"an MP4 with a 64-bit size beyond its end",
			Buffer.concat([box("ftyp"), moov, longBox("mdat", Buffer.alloc(9), 2n ** 60n)]),
			/after the file/,
		],
		["a WAV whose sizes are not known", fileOf("streamed.wav"), /isn't filled in/],
		["a WAV that is only a head", fileOf("sine.wav").subarray(0, 44), /missing/],
		["a PNG without its end", fileOf("plain.png").subarray(0, -12), /no IEND/],
		["a JPEG that ends with its preview's end", jpegUpToPreview(), /too early/],
		["eight zeros", Buffer.alloc(8), /only 8 bytes/],
	])("%s", async (_, bytes, because) => {
		expect(await inspect(bytes)).toMatchObject({
			state: "unfinished",
			because: expect.stringMatching(because) as unknown,
		})
	})
})

function jpegUpToPreview(): Buffer {
	const bytes = fileOf("progressive.jpg")
	return bytes.subarray(0, bytes.indexOf(Buffer.from([0xff, 0xd9])) + 2)
}

test("a Matroska file whose size was never filled in is whole only when its index stands at its end", async () => {
	expect(await inspect(fileOf("streamed.webm"))).toMatchObject({ kind: "webm", state: "unfinished" })
	const bytes = fileOf("video.webm")
	const segment = bytes.indexOf(Buffer.from("18538067", "hex"))
	Buffer.from("01ffffffffffffff", "hex").copy(bytes, segment + 4)
	expect(await inspect(bytes)).toEqual({ kind: "webm", state: "whole" })
	const cues = bytes.lastIndexOf(Buffer.from("1c53bb6b", "hex"))
	expect(await inspect(bytes.subarray(0, cues))).toMatchObject({ state: "unfinished" })
})

test.each<[string, string, (bytes: Buffer) => void, RegExp]>([
	["a flipped bit in a PNG's image", "plain.png", (bytes) => flip(bytes, bytes.indexOf("IDAT") + 9), /sum/],
	["a flipped bit in a PNG's head", "plain.png", (bytes) => flip(bytes, 17), /sum of its IHDR/],
	[
		"a FLAC that states fewer samples",
		"encoder.flac",
		(bytes) => bytes.writeUInt32BE(1000, 22),
		/more samples/,
	],
	[
		"an MP4's track that runs over",
		"video.mp4",
		(bytes) => flip(bytes, bytes.indexOf("trak") - 3),
		/wrong size/,
	],
])("%s is found damaged", async (_, name, change, because) => {
	const bytes = fileOf(name)
	change(bytes)
	expect(await inspect(bytes)).toMatchObject({
		state: "damaged",
		because: expect.stringMatching(because) as unknown,
	})
})

function flip(bytes: Buffer, at: number): void {
	bytes[at] = (bytes[at] ?? 0) ^ 0x10
}

test("a flipped bit in a FLAC's last frame, and samples that are missing, make it unfinished", async () => {
	const bytes = fileOf("encoder.flac")
	flip(bytes, bytes.length - 20)
	expect(await inspect(bytes)).toMatchObject({ state: "unfinished" })
	const more = fileOf("encoder.flac")
	more.writeUInt32BE(1501, 22)
	expect(await inspect(more)).toMatchObject({
		state: "unfinished",
		because: "of 1501 samples it has only 1500",
	})
})

test("fragments without a table of their end, and what is of no known kind, are said to be unknown", async () => {
	const fragments = Buffer.concat([box("ftyp"), moov, box("moof"), box("mdat", Buffer.alloc(9))])
	expect(await inspect(fragments)).toMatchObject({ kind: "mp4", state: "unknown" })
	expect(await inspect(Buffer.from("a text of no kind"))).toMatchObject({ kind: "unknown", state: "unknown" })
})

test("random bytes behind any beginning never crash, and are never whole", async () => {
	const heads = wholeFiles.map(([, , bytes]) => bytes.subarray(0, 16))
	await fc.assert(
		fc.asyncProperty(fc.constantFrom(...heads), fc.uint8Array({ maxLength: 400 }), async (head, tail) => {
			const finding = await inspect(Buffer.concat([head, tail]))
			expect(finding.state).not.toBe("whole")
		}),
		{ numRuns: 2000 },
	)
})

test("the prompt is read from a PNG as ComfyUI wrote it, from every kind of text, and nothing else", async () => {
	const bytes = fileOf("comfyui.png")
	const { texts } = await pngTexts(readerOf(bytes), bytes.length, ["prompt", "workflow", "title"])
	expect(JSON.parse(texts.get("prompt") ?? "")).toMatchObject({
		9: { inputs: { filename_prefix: "cq/20261121/j/a1/9~Film" } },
	})
	expect(JSON.parse(texts.get("workflow") ?? "")).toEqual({ nodes: [] })
	expect(texts.get("title")).toBe("Café 火")
	expect((await pngTexts(readerOf(bytes), bytes.length, ["prompt"])).texts.size).toBe(1)
	expect((await pngTexts(readerOf(bytes.subarray(0, 90)), 90, ["workflow"])).texts.size).toBe(0)
})
