// An object is judged by few ranged reads, whatever its size and its header are.
import { Readable } from "node:stream"
import { describe, expect, test } from "vitest"
import { verifyObject } from "../../../src/lib/models/remote.ts"
import type { GetOptions, ObjectStore } from "../../../src/lib/storage/object-store.ts"
import { makeHeader, makeModel, tensorsOf } from "../../support/model-maker.ts"

const mebibyte = 1024 * 1024
const key = "loras/a.safetensors"

/** Only what judging may use; everything else would throw. */
function storeOf(content: Buffer) {
	const asked: GetOptions[] = []
	const store = {
		name: "r2",
		get: async (_: string, options: GetOptions) => {
			asked.push(options)
			const { first = 0, last = 0 } = options.range ?? {}
			if (last >= content.length || first > last) throw new Error(`no such range: ${first} to ${last}`)
			return Readable.from([content.subarray(first, last + 1)])
		},
	} as unknown as ObjectStore
	return { store, asked }
}

async function judge(content: Buffer) {
	const { store, asked } = storeOf(content)
	const head = { key, sizeBytes: content.length, etag: '"e"', storedAt: new Date(0) }
	const options = { level: "structure", deep: false, now: () => new Date() } as const
	const { status } = await verifyObject(store, head, undefined, options)
	const readBytes = asked.reduce((sum, { range }) => sum + (range ? range.last - range.first + 1 : 0), 0)
	expect(asked.every(({ ifMatch, range }) => ifMatch === '"e"' && range !== undefined)).toBe(true)
	return { status, requests: asked.length, readBytes }
}

const longHeader = (dataBytes: number) => {
	const header = makeHeader({ __metadata__: { note: "x".repeat(300_000) }, ...tensorsOf([dataBytes]) })
	return Buffer.concat([header, Buffer.alloc(dataBytes, 7)])
}
const withZeros = (zeroBytes: number, sizeBytes: number) => {
	const model = makeModel(sizeBytes)
	return model.fill(0, model.length - zeroBytes)
}

describe("an object", () => {
	test.each([
		["of some bytes", makeModel(500), "ok", 1],
		["of 100 KiB", makeModel(100 * 1024), "ok", 1],
		["of 500 KiB", makeModel(500 * 1024), "ok", 1],
		["of 1 MiB and a little", makeModel(mebibyte + 1000), "ok", 2],
		["of 8 MiB", makeModel(8 * mebibyte), "ok", 2],
		["with a long header", longHeader(3 * mebibyte), "ok", 3],
		["with a long header and little else", longHeader(1000), "ok", 2],
		["that ends in 1 MiB of zeros", withZeros(mebibyte, 3 * mebibyte), "zero-tail", 3],
		["that ends in almost 1 MiB of zeros", withZeros(mebibyte - 1, 3 * mebibyte), "ok", 3],
		["that ends in a few zeros", withZeros(5000, 3 * mebibyte), "ok", 3],
		["of one byte", Buffer.from("x"), "truncated", 1],
	])("%s", async (_, content, status, requests) => {
		const found = await judge(content)
		expect({ status: found.status, requests: found.requests }).toEqual({ status, requests })
		expect(found.readBytes).toBeLessThan(128 * 1024 + 300_100 + mebibyte)
	})
})
