import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import fc from "fast-check"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { findZeroTail, kindOfHead, locate } from "../../../src/lib/models/kind.ts"
import { makeHeader, makeModel } from "../../support/model-maker.ts"

const mebibyte = 1024 * 1024

test.each([
	["empty", ""],
	["lfs-pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"],
	["lfs-pointer", "version https://hawser.github.com/spec/v1\n"],
	["html", "<!DOCTYPE html>\n<html lang=en>"],
	["html", "\uFEFF\r\n  <HTML><body>"],
	["html", "<!-- Copyright -->\n<!doctype html>"],
	["html", `<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code>`],
	["html", `<!doctype html>${"é".repeat(504)}x`],
	["json", `{"error":"Access to model is restricted"}`],
	["json", " [\n1, 2]"],
	["json", "{}"],
	["data", "PK\x03\x04"],
	["data", "GGUF\x03\0\0\0"],
	["data", "\0".repeat(1024)],
	["data", "<html>\0"],
	["data", "just some words"],
])("%s is recognized: %j", (kind, text) => {
	expect(kindOfHead(Buffer.from(text).subarray(0, 1024))).toBe(kind)
})

test("a model whose header's length reads as a letter is data, for each length", () => {
	for (let length = 2; length < 2000; length++)
		expect(kindOfHead(makeHeader(`{${" ".repeat(length - 2)}}`).subarray(0, 1024)), `${length}`).toBe("data")
})

test("no beginning makes it throw, and none with control characters is a text", () => {
	fc.assert(
		fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
			const kind = kindOfHead(Buffer.from(bytes))
			if (bytes.includes(0)) expect(kind).toBe("data")
		}),
		{ numRuns: 3000 },
	)
})

describe("an end that was never written", () => {
	const zeroTail = async (dataBytes: number, zeroBytes: number, allocatedBytes?: number) => {
		const bytes = Buffer.concat([Buffer.alloc(dataBytes, 1), Buffer.alloc(zeroBytes)])
		let readBytes = 0
		const read = async (offset: number, length: number) => {
			expect(offset).toBeGreaterThanOrEqual(0)
			readBytes += length
			return bytes.subarray(offset, offset + length)
		}
		const sizeBytes = bytes.length
		const because = await findZeroTail({
			sizeBytes,
			read,
			...(allocatedBytes !== undefined && { allocatedBytes }),
		})
		return { because, readBytes }
	}

	test("is found from 64 KiB of zeros, where the file has a hole", async () => {
		expect((await zeroTail(mebibyte, 65_536, mebibyte)).because).toMatch(/^ends in 65536 .* only 1048576 of/)
		expect((await zeroTail(mebibyte, 65_535, mebibyte)).because).toBeUndefined()
	})

	test("is found from 1 MiB of zeros where no hole is seen", async () => {
		expect((await zeroTail(10, mebibyte, mebibyte + 512)).because).toMatch(
			/^ends in 1048576 zero bytes or more$/,
		)
		expect((await zeroTail(10, mebibyte - 1, mebibyte + 512)).because).toBeUndefined()
		expect((await zeroTail(10, mebibyte)).because).toMatch(/^ends in 1048576 zero bytes/)
	})

	test("is not seen in a tensor that ends in a few zeros, nor in a small file of zeros", async () => {
		expect((await zeroTail(3 * mebibyte, 40_000)).because).toBeUndefined()
		expect((await zeroTail(0, 500_000)).because).toBeUndefined()
	})

	test("costs 4 KiB of a file that is right, a hole in its middle or not", async () => {
		expect(await zeroTail(3 * mebibyte, 0, mebibyte)).toEqual({ because: undefined, readBytes: 4096 })
	})
})

describe("what lies at a path", () => {
	let directory = ""
	beforeEach(() => {
		directory = mkdtempSync(join(tmpdir(), "comfyume-kind-"))
	})
	afterEach(() => rmSync(directory, { recursive: true }))

	test("is told apart: a file, a link to one, a broken link, a circle, a directory, a pipe's like, nothing", async () => {
		writeFileSync(join(directory, "model"), makeModel(5000))
		mkdirSync(join(directory, "directory"))
		symlinkSync("model", join(directory, "link"))
		symlinkSync("nowhere", join(directory, "broken"))
		symlinkSync("circle", join(directory, "circle"))
		symlinkSync("/dev/null", join(directory, "device"))
		const states = ["model", "link", "broken", "circle", "directory", "device", "nothing", "model/below"]
		const found = await Promise.all(states.map(async (name) => (await locate(join(directory, name))).state))
		expect(found).toEqual([
			"file",
			"file",
			"broken-link",
			"broken-link",
			"not-a-file",
			"not-a-file",
			"missing",
			"missing",
		])
	})
})
