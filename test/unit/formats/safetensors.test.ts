import fc from "fast-check"
import { describe, expect, test } from "vitest"
import { inspectSafetensors } from "../../../src/lib/formats/safetensors.ts"
import { makeHeader, makeModel, tensorsOf } from "../../support/model-maker.ts"
import { assertOften } from "../../support/properties.ts"

const readerOf = (bytes: Buffer) => async (offset: number, length: number) =>
	bytes.subarray(offset, offset + length)
const inspect = (bytes: Buffer, sizeBytes = bytes.length) => inspectSafetensors(readerOf(bytes), sizeBytes)
const withData = (header: Parameters<typeof makeHeader>[0], dataBytes: number) =>
	inspect(Buffer.concat([makeHeader(header), Buffer.alloc(dataBytes, 1)]))

describe("a whole file passes", () => {
	test.each([
		["F4", 2, 1],
		["F6_E2M3", 4, 3],
		["F6_E3M2", 4, 3],
		["BOOL", 1, 1],
		["U8", 1, 1],
		["I8", 1, 1],
		["F8_E5M2", 1, 1],
		["F8_E4M3", 1, 1],
		["F8_E8M0", 1, 1],
		["F8_E4M3FNUZ", 1, 1],
		["F8_E5M2FNUZ", 1, 1],
		["I16", 1, 2],
		["U16", 1, 2],
		["F16", 1, 2],
		["BF16", 1, 2],
		["I32", 1, 4],
		["U32", 1, 4],
		["F32", 1, 4],
		["C64", 1, 8],
		["F64", 1, 8],
		["I64", 1, 8],
		["U64", 1, 8],
	])("with tensors of %s, and no longer when a byte is missing", async (dtype, elements, sizeBytes) => {
		const header = { a: { dtype, shape: [3, elements], data_offsets: [0, 3 * sizeBytes] } }
		expect(await withData(header, 3 * sizeBytes)).toMatchObject({ state: "ok", tensors: 1 })
		expect(await withData(header, 3 * sizeBytes - 1)).toMatchObject({ state: "truncated" })
	})

	test.each([
		["no tensor at all", "{}", 0],
		["padding", `{"__metadata__":{"a":"b"}}${" ".repeat(40)}`, 0],
		[
			"a scalar and an empty tensor",
			{
				a: { dtype: "F32", shape: [], data_offsets: [0, 4] },
				b: { dtype: "F32", shape: [0, 9], data_offsets: [4, 4] },
			},
			4,
		],
		[
			"a key that is not known",
			{ a: { dtype: "U8", shape: [2], data_offsets: [0, 2], more: [{ x: [1.5e3, null, true, "y"] }] } },
			2,
		],
		[
			"tensors in another order than their bytes",
			Object.fromEntries(Object.entries(tensorsOf([3, 4, 5])).reverse()),
			12,
		],
	])("with %s", async (_, header, dataBytes) => {
		expect(await withData(header, dataBytes)).toMatchObject({ state: "ok" })
	})
})

const tensor = (shape: unknown, offsets: unknown, dtype: unknown = "U8") =>
	JSON.stringify({ a: { dtype, shape, data_offsets: offsets } })
const numbers = (shape: string) => `{"a":{"dtype":"U8","shape":${shape},"data_offsets":[0,4]}}`

test.each([
	[
		"a tensor twice",
		`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`,
		/"a" stands twice/,
	],
	[
		"a tensor twice, once in escapes",
		`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0061":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`,
		/"a" stands twice/,
	],
	[
		"a tensor's key twice",
		`{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}`,
		/"dtype" stands twice/,
	],
	["metadata twice", `{"__metadata__":{},"__metadata__":{}}`, /"__metadata__" stands twice/],
	["metadata that is no text", `{"__metadata__":{"a":1}}`, /a text in __metadata__/],
	["an unknown dtype", tensor([4], [0, 4], "F7"), /unknown dtype "F7"/],
	["a dtype that every object has", tensor([4], [0, 4], "constructor"), /unknown dtype/],
	["no dtype", `{"a":{"shape":[4],"data_offsets":[0,4]}}`, /no dtype/],
	["no shape", `{"a":{"dtype":"U8","data_offsets":[0,4]}}`, /no shape/],
	["one offset", tensor([4], [4]), /no two data_offsets/],
	["three offsets", tensor([4], [0, 4, 4]), /more than two/],
	["offsets that run backwards", tensor([4], [4, 0]), /before it begins/],
	[
		"a shape that takes other than its offsets",
		tensor([5], [0, 4]),
		/5 bytes by its shape, 4 by its offsets/,
	],
	["half a byte", tensor([3], [0, 1], "F4"), /inside a byte/],
	["a shape beyond counting", numbers("[4294967296,4294967296]"), /larger than can be counted/],
	["a number beyond counting", numbers("[9007199254740993]"), /larger than can be counted/],
	["a negative size", numbers("[-4]"), /whole number/],
	["a fraction", numbers("[4.0]"), /whole number/],
	["an exponent", numbers("[4e0]"), /whole number/],
	["a leading zero", numbers("[04]"), /whole number/],
	["a number of a thousand digits", numbers(`[${"9".repeat(1000)}]`), /larger than can be counted/],
	["a hole at its beginning", tensor([2], [2, 4]), /hole of 2 bytes/],
	[
		"a hole",
		`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}`,
		/"b" there is a hole of 1 byte/,
	],
	[
		"an overlap",
		`{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}`,
		/"b" overlaps the one before by 1/,
	],
	["bytes behind its last tensor", tensor([3], [0, 3]), /after the last tensor, 1 B too far/],
	["something behind its header", `${tensor([4], [0, 4])}x`, /other than padding/],
	["zeros for padding", `${tensor([4], [0, 4])}\0\0`, /other than padding/],
	["a comma too many", `{"a":{"dtype":"U8","shape":[4,],"data_offsets":[0,4]}}`, /whole number/],
	["an open end", `{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}`, /comma or the end/],
	["an open text", `{"a`, /has no end/],
	["half of a surrogate pair", `{"\\ud800":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, /is not JSON/],
	["a list a million deep", `{"a":{"x":${"[".repeat(1_000_000)}`, /nested deeper/],
	["a tensor that is a number", `{"a":4}`, /the { of the tensor "a"/],
])("%s is damage, and named", async (_, header, because) => {
	expect(await withData(header, 4)).toEqual({ state: "damaged", because: expect.stringMatching(because) })
})

test("a header that is not UTF-8 is damage", async () => {
	const header = makeHeader(`{"__metadata__":{"a":"?"}}`)
	header[header.indexOf("?")] = 0xff
	expect(await inspect(header)).toEqual({ state: "damaged", because: "the header is not UTF-8" })
})

test("a header longer than 100 MB is refused before it is read", async () => {
	const head = Buffer.concat([Buffer.alloc(8), Buffer.from("{")])
	head.writeBigUInt64LE(100_000_001n)
	let asked = 0
	const read = async (offset: number, length: number) => {
		asked = Math.max(asked, offset + length)
		return head.subarray(offset, offset + length)
	}
	expect(await inspectSafetensors(read, 2 ** 40)).toMatchObject({ state: "damaged" })
	expect(asked).toBeLessThan(100)
})

test("what is something else is called so", async () => {
	for (const text of ["<!DOCTYPE html><html>", "version https://git-lfs", "PK\x03\x04 a zip archive"])
		expect(await inspect(Buffer.from(text))).toMatchObject({ state: "not-safetensors" })
})

test("a file cut at any byte is truncated, and never whole", async () => {
	const bytes = makeModel(300)
	expect(await inspect(bytes)).toMatchObject({ state: "ok" })
	for (let length = 0; length < bytes.length; length++)
		expect(await inspect(bytes.subarray(0, length)), `cut to ${length}`).toMatchObject({ state: "truncated" })
})

test("a file that shrinks while it is read is truncated", async () => {
	const bytes = makeModel(300)
	for (const length of [0, 8, 9, 40])
		expect(await inspect(bytes.subarray(0, length), bytes.length)).toMatchObject({ state: "truncated" })
})

const names = fc.oneof(
	fc.string(),
	fc.string({ unit: "binary" }),
	fc.constantFrom("__proto__", "constructor"),
)

test("any set of tensors that fills its file passes, whatever the names, the order and the padding", async () => {
	const parts = fc.uniqueArray(fc.tuple(names, fc.nat(50)), { selector: ([name]) => name, maxLength: 12 })
	await assertOften(
		fc.asyncProperty(parts, fc.nat(9), fc.boolean(), async (tensors, padding, reverse) => {
			let at = 0
			const members = tensors
				.filter(([name]) => name !== "__metadata__" && name.isWellFormed())
				.map(([name, size]) => {
					at += size
					return `${JSON.stringify(name)}:{"dtype":"I8","shape":[1,${size}],"data_offsets":[${at - size},${at}]}`
				})
			const header = `{${(reverse ? members.reverse() : members).join(",")}}${" ".repeat(padding)}`
			expect(await withData(header, at)).toMatchObject({ state: "ok", tensors: members.length })
			expect(await withData(header, at + 1)).toMatchObject({ state: "damaged" })
		}),
		1000,
	)
})

test("no input makes it throw, and it takes nothing for JSON that JSON.parse refuses", async () => {
	const json = fc.json({ maxDepth: 6 }).map(Buffer.from)
	const model = Buffer.concat([
		makeHeader({ __metadata__: { a: "b" }, ...tensorsOf([3, 5]) }),
		Buffer.alloc(8, 1),
	])
	const changed = fc
		.array(fc.tuple(fc.nat(model.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 })
		.map((changes) => {
			const bytes = Buffer.from(model)
			for (const [at, value] of changes) bytes[at] = value
			return bytes
		})
	const anything = fc.uint8Array({ maxLength: 300 }).map(Buffer.from)
	const wrapped = fc.oneof(json, anything).map((bytes) => makeHeader(bytes.toString("latin1")))
	await assertOften(
		fc.asyncProperty(fc.oneof(anything, wrapped, changed), async (bytes) => {
			const finding = await inspect(bytes)
			if (finding.state !== "ok") {
				expect(finding.because).not.toBe("")
				return
			}
			const header = bytes.subarray(8, 8 + finding.headerBytes).toString()
			const parsed: Record<string, unknown> = JSON.parse(header)
			expect(Object.keys(parsed).filter((key) => key !== "__metadata__")).toHaveLength(finding.tensors)
		}),
		5000,
	)
})
