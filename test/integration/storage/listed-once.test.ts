import { createHash } from "node:crypto"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { Secret } from "../../../src/lib/secret.ts"
import { listedOnce } from "../../../src/lib/storage/listed-once.ts"
import type { ObjectStore } from "../../../src/lib/storage/object-store.ts"
import { s3Store } from "../../../src/lib/storage/s3.ts"
import { type S3Server, startS3Server } from "../../support/s3-server/index.ts"

let server: S3Server
let store: ObjectStore
let file: string
let directory: string
beforeEach(async () => {
	server = await startS3Server({
		buckets: ["vault"],
		credentials: [{ accessKeyId: "a-key", secretAccessKey: "a-secret" }],
	})
	const keys = { accessKeyId: new Secret("a-key"), secretAccessKey: new Secret("a-secret") }
	const { endpoint } = server
	store = listedOnce(s3Store({ name: "r2", endpoint, bucket: "vault", region: "auto", ...keys }), "staging/")
	directory = mkdtempSync(join(tmpdir(), "listed-once-"))
	file = join(directory, "file")
	writeFileSync(file, "content")
})
afterEach(async () => {
	rmSync(directory, { recursive: true })
	await server.close()
})

const put = (key: string) =>
	store.put(key, file, {
		sizeBytes: 7,
		digest: createHash("sha256").update("content").digest("hex"),
		ifAbsent: true,
	})
async function keys(prefix: string): Promise<string[]> {
	const found: string[] = []
	for await (const { key } of store.list(prefix)) found.push(key)
	return found
}
const listings = () => server.log.filter(({ operation }) => operation === "ListObjectsV2").length

test("parts of one listing cost one request, also when they are asked for at the same time", async () => {
	for (const key of ["staging/a/1", "staging/b/1", "production/a/1"]) await put(key)
	// A HEAD of what isn't there ends in a listing of one key, which tells a missing object from a missing bucket.
	const before = listings()
	expect(await Promise.all(["staging/a/", "staging/b/", "staging/c/"].map(keys))).toEqual([
		["staging/a/1"],
		["staging/b/1"],
		[],
	])
	expect(await keys("staging/a/")).toEqual(["staging/a/1"])
	expect(listings() - before).toBe(1)
})

test("what this run puts is in the next listing", async () => {
	await put("staging/a/1")
	expect(await keys("staging/a/")).toHaveLength(1)
	await put("staging/a/2")
	expect(await keys("staging/a/")).toHaveLength(2)
})

test("what lies elsewhere is asked for by itself", async () => {
	await put("production/a/1")
	expect(await keys("staging/")).toEqual([])
	expect(await keys("production/")).toEqual(["production/a/1"])
})

test("a listing that failed is asked for again", async () => {
	await put("staging/a/1")
	const broken = server.fault({ match: { operation: "ListObjectsV2" }, do: { status: 403 } })
	await expect(keys("staging/a/")).rejects.toThrow()
	broken.remove()
	expect(await keys("staging/a/")).toEqual(["staging/a/1"])
})
