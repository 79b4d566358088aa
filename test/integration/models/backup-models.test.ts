// Models go to the vault once, whole, and nothing that stands there is ever touched.
import { mkdirSync, rmSync, statSync, truncateSync } from "node:fs"
import { afterEach, beforeEach, expect, test } from "vitest"
import { makeModel, writeSparseModel } from "../../support/model-maker.ts"
import { createModelWorld, entryOf, flipped, type ModelWorld, sha256 } from "../../support/model-world.ts"

const names = ["a", "b", "c"].map((name) => `loras/${name}.safetensors`)
const [a, b, c] = names as [string, string, string]
const contentOf = (name: string) => makeModel(40_000, names.indexOf(name) + 1)

let world: ModelWorld
beforeEach(async () => {
	world = await createModelWorld()
	world.declare(names.map((name) => entryOf(name, contentOf(name))))
	for (const name of names) world.write(name, contentOf(name))
})
afterEach(async () => {
	// Whatever else happened: nothing was taken away, and nothing unfinished stands there.
	expect(world.s3.log.filter(({ operation }) => operation.startsWith("DeleteObject"))).toEqual([])
	await world[Symbol.asyncDispose]()
})

const operations = () => world.s3.log.map(({ operation, bucket, key }) => `${operation} ${bucket}/${key}`)

test("what the vault lacks is stored under its own name with its sha256, whatever the manifest names", async () => {
	world.write("vae/unlisted.safetensors", contentOf(a))
	world.write("vae/readme.txt", "not a model")
	const { exitCode, outcome, notes, rows } = await world.backup()
	expect([exitCode, names.map(outcome)]).toEqual([0, names.map(() => "applied")])
	expect(world.vaultKeys()).toEqual([...names, "vae/unlisted.safetensors"])
	for (const name of names) {
		expect(world.vault(name)?.metadata["sha256"]).toBe(sha256(contentOf(name)))
		expect((await world.vaultContent(name)).equals(contentOf(name))).toBe(true)
	}
	expect(notes).toEqual(["1 files are no models by their names, and are left out"])
	expect(rows).toContainEqual(
		expect.objectContaining({ artifact: `models/${a}`, source: "share, r2", ok: true }),
	)
	// And from there it comes back.
	rmSync(world.file(a))
	expect((await world.restore()).exitCode).toBe(0)
	expect(world.digest(a)).toBe(sha256(contentOf(a)))
})

test("28 models of 200 GB that the vault has already cost one listing, and no byte of them is read", async () => {
	rmSync(world.models, { recursive: true })
	mkdirSync(world.models)
	const many = Array.from({ length: 28 }, (_, index) => `vae/${index}.safetensors`)
	for (const name of many) writeSparseModel(world.file(name), 7_150_000_000)
	const sizeBytes = statSync(world.file("vae/0.safetensors")).size
	for (const name of many) await pretend(name, sizeBytes)
	const started = performance.now()
	const { exitCode, outcome, rows } = await world.backup()
	expect([exitCode, many.map(outcome)]).toEqual([0, many.map(() => "satisfied")])
	// Hashing 200 GB takes minutes.
	expect(performance.now() - started).toBeLessThan(10_000)
	expect(rows).toEqual([
		expect.objectContaining({ artifact: "models", verified: "28 models stored already" }),
	])
	const ofVault = operations().filter((line) => line.includes("model-vault"))
	// One probe of the bucket and one list, of one page.
	expect(ofVault).toEqual(["ListObjectsV2 model-vault/", "ListObjectsV2 model-vault/"])
})

test("a damaged model is refused and named, and the others are stored", async () => {
	truncateSync(world.file(a), 20_000)
	world.write(b, flipped(contentOf(b)))
	const { exitCode, because, outcome, hint } = await world.backup()
	expect([exitCode, names.map(outcome)]).toEqual([3, ["failed", "failed", "applied"]])
	expect(because(a)).toMatch(/^truncated: .*; nothing damaged is stored$/)
	expect(because(b)).toContain(`not ${sha256(contentOf(b))}: nothing damaged is stored`)
	expect(hint(b)).toMatch(/^comfyume restore --env sandbox .* --only models --deep$/)
	expect(world.vaultKeys()).toEqual([c])
})

test("an upload that was stopped is gone on with, and its parts are not sent again", async () => {
	const large = makeModel(100 * 1024 * 1024, 9)
	rmSync(world.models, { recursive: true })
	world.declare([entryOf(a, large)])
	world.write(a, large)
	const stop = new AbortController()
	world.s3.fault({
		match: { operation: "UploadPart", after: 4, times: 1 },
		do: { first: () => stop.abort() },
	})
	expect((await world.backup({ signal: stop.signal })).exitCode).not.toBe(0)
	expect(world.vaultKeys()).toEqual([])
	const sent = () => world.requests("UploadPart").filter(({ status }) => status === 200).length
	const before = sent()
	expect(before).toBeGreaterThanOrEqual(2)

	const { exitCode, outcome } = await world.backup()
	expect([exitCode, outcome(a)]).toEqual([0, "applied"])
	expect((await world.vaultContent(a)).equals(large)).toBe(true)
	// Seven parts of 16 MiB; those that were under way when it was stopped may come twice.
	expect(sent()).toBeLessThanOrEqual(7 + 3)
	expect(sent() - before).toBeLessThan(7)
	expect(world.requests("CreateMultipartUpload")).toHaveLength(1)
})

test("what differs between share and vault is said with 3, and neither is touched", async () => {
	await world.store(a, makeModel(39_000))
	await world.store(b, flipped(contentOf(b)))
	const shallow = await world.backup()
	expect([shallow.exitCode, names.map(shallow.outcome)]).toEqual([3, ["failed", "satisfied", "applied"]])
	expect(shallow.because(a)).toContain("under this name: neither is touched")
	const deep = await world.backup({ deep: true })
	expect([deep.exitCode, names.map(deep.outcome)]).toEqual([3, ["failed", "failed", "satisfied"]])
	expect(deep.because(b)).toContain(`the share has sha256 ${sha256(contentOf(b))}`)
	expect((await world.vaultContent(b)).equals(flipped(contentOf(b)))).toBe(true)
	for (const name of names) expect(world.digest(name)).toBe(sha256(contentOf(name)))
})

test("a model that differs only from a figure that nobody verified is stored, and that is said", async () => {
	const figures = { from: "a listing", verified: false }
	world.declare([{ path: a, sizeBytes: contentOf(a).length, sha256: sha256(contentOf(b)), figures }])
	const { exitCode, outcome, notes } = await world.backup()
	expect([exitCode, outcome(a)]).toEqual([3, "applied"])
	expect(notes).toContainEqual(expect.stringContaining("was never verified"))
})

test("a dry run stores nothing and says what it would", async () => {
	const { exitCode, outcome, because } = await world.backup({ dryRun: true })
	expect([exitCode, names.map(outcome)]).toEqual([0, names.map(() => "planned")])
	expect(because(a)).toMatch(/^r2 doesn't have it: \d/)
	expect(world.vaultKeys()).toEqual([])
})

test("a share without a model is what one that isn't mounted looks like", async () => {
	rmSync(world.models, { recursive: true })
	mkdirSync(world.models)
	const { exitCode, because, rows } = await world.backup()
	expect([exitCode, because("models")]).toEqual([3, expect.stringContaining("there is no model below")])
	expect(rows).toEqual([expect.objectContaining({ artifact: "models", ok: false })])
})

test("a vault that can't be reached fails with 4 and blocks nothing but models", async () => {
	await world.s3.close()
	const { exitCode, outcome } = await world.backup()
	expect([exitCode, outcome("models"), outcome(a)]).toEqual([4, "failed", "blocked"])
})

/** An object that is as large as it says, without its bytes. */
async function pretend(path: string, sizeBytes: number): Promise<void> {
	await world.store(path, Buffer.from("x"))
	Object.assign(world.vault(path) ?? {}, { sizeBytes })
}
