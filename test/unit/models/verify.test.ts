import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { locate } from "../../../src/lib/models/kind.ts"
import { openModel } from "../../../src/lib/models/open.ts"
import { judge } from "../../../src/lib/models/verify.ts"
import { writeSparseModel } from "../../support/model-maker.ts"

let directory = ""
beforeEach(() => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-verify-"))
})
afterEach(() => rmSync(directory, { recursive: true }))

async function judgeCounting(file: string): Promise<{ status: string; readBytes: number }> {
	const located = await locate(file)
	if (located.state !== "file") throw new Error(located.because)
	await using model = await openModel(file)
	let readBytes = 0
	const read = (offset: number, length: number) => {
		readBytes += length
		return model.read(offset, length)
	}
	const { sizeBytes, allocatedBytes } = located
	const { status } = await judge(file, { sizeBytes, allocatedBytes, read }, undefined, "structure")
	return { status, readBytes }
}

test("28 models of 200 GB pass by their structure with less than 4 MiB read", async () => {
	let total = 0
	for (let index = 0; index < 28; index++) {
		const file = join(directory, `${index}.safetensors`)
		writeSparseModel(file, 7_150_000_000 + index)
		const { status, readBytes } = await judgeCounting(file)
		expect(status).toBe("ok")
		total += readBytes
	}
	expect(total).toBeGreaterThan(28 * 4096)
	expect(total).toBeLessThan(4 * 1024 * 1024)
})

test("a model that ends in a hole is a zero tail, although its size and its header are right", async () => {
	const file = join(directory, "a.safetensors")
	writeSparseModel(file, 7_150_000_000, 0)
	expect(await judgeCounting(file)).toMatchObject({ status: "zero-tail" })
})
