// Digests from worker threads, held against Node's own hash over the same bytes; from the source and from the bundle.
import { execFile } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"
import { afterAll, beforeAll, expect, test } from "vitest"
import { buildCli } from "../../../scripts/build.ts"
import { openHashPool } from "../../../src/lib/storage/hash-pool.ts"
import { blockBytes } from "../../../src/lib/storage/transfer.ts"
import { makeModel } from "../../support/model-maker.ts"

let scratch: string
beforeAll(async () => {
	scratch = await mkdtemp(join(tmpdir(), "hash-pool-"))
})
afterAll(() => rm(scratch, { recursive: true }))

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex")

test.each([0, 1, blockBytes, blockBytes + 1, 2 * blockBytes + 12_345])(
	"a file of %i bytes gets its digest, its size, and the digest of each block",
	async (sizeBytes) => {
		const bytes = randomBytes(sizeBytes)
		const file = join(scratch, "file")
		await writeFile(file, bytes)
		await using pool = openHashPool(1)
		const blocks: string[] = []
		for (let at = 0; at < sizeBytes; at += blockBytes)
			blocks.push(sha256(bytes.subarray(at, at + blockBytes)))
		expect(await pool.hashFile(file, { blocks: true })).toEqual({ digest: sha256(bytes), sizeBytes, blocks })
		expect(await pool.hashFile(file)).toEqual({ digest: sha256(bytes), sizeBytes })
	},
)

test("more files than threads are all hashed, and progress comes to each one's size", async () => {
	await using pool = openHashPool(2)
	const works = Array.from({ length: 5 }, async (_, number) => {
		const bytes = randomBytes(3_000_000 + number)
		const file = join(scratch, `many-${number}`)
		await writeFile(file, bytes)
		const seen: number[] = []
		const { digest } = await pool.hashFile(file, { onProgress: (done) => seen.push(done) })
		expect(digest).toBe(sha256(bytes))
		expect(seen.at(-1)).toBe(bytes.length)
	})
	await Promise.all(works)
})

test("a file that isn't there fails with the system's code, and the thread goes on", async () => {
	await using pool = openHashPool(1)
	await expect(pool.hashFile(join(scratch, "nothing"))).rejects.toMatchObject({ code: "ENOENT" })
	await writeFile(join(scratch, "there"), "there")
	expect((await pool.hashFile(join(scratch, "there"))).digest).toBe(sha256(Buffer.from("there")))
})

test("a signal ends it with its reason, and the thread goes on", async () => {
	await using pool = openHashPool(1)
	const file = join(scratch, "large")
	await writeFile(file, Buffer.alloc(64 * 1024 * 1024))
	const halt = new AbortController()
	const hashing = pool.hashFile(file, { signal: halt.signal })
	halt.abort(new Error("enough"))
	await expect(hashing).rejects.toThrow("enough")
	await expect(pool.hashFile(file, { signal: halt.signal })).rejects.toThrow("enough")
	await writeFile(join(scratch, "there"), "there")
	expect((await pool.hashFile(join(scratch, "there"))).sizeBytes).toBe(5)
})

test("the bundle has the thread's program beside it", async () => {
	await writeFile(join(scratch, "package.json"), JSON.stringify({ version: "0.0.0", type: "module" }))
	await buildCli(join(scratch, "dist/cli"))
	const bytes = makeModel(3_000_000)
	await mkdir(join(scratch, "models/loras"), { recursive: true })
	await writeFile(join(scratch, "models/loras/small.safetensors"), bytes)
	const program = join(scratch, "dist/cli/cli.js")
	const argv = ["manifest", "create", "--models", join(scratch, "models")]
	const { stdout } = await promisify(execFile)(process.execPath, [program, ...argv], { cwd: scratch })
	expect(stdout).toContain(sha256(bytes))
})
