// What every object store promises, asked of each of them. The bytes in and out are compared with node's own hash and
// with the disk, never with what a store says of itself.
import { createHash, randomBytes } from "node:crypto"
import { mkdtemp, readdir, readlink, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { buffer } from "node:stream/consumers"
import { CreateBucketCommand, PutObjectCommand, S3Client } from "@aws-sdk/client-s3"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { OperatorError } from "../../src/lib/errors.ts"
import { Secret } from "../../src/lib/secret.ts"
import { directoryStore } from "../../src/lib/storage/directory.ts"
import { ObjectChanged, type ObjectStore } from "../../src/lib/storage/object-store.ts"
import { s3Store } from "../../src/lib/storage/s3.ts"
import { startS3Server } from "../support/s3-server/index.ts"

type Subject = {
	store: ObjectStore
	/** Replaces an object behind the store's back. */
	replace(key: string, content: Buffer): Promise<void>
	close(): Promise<void>
}

const subjects: Record<string, (scratch: string) => Promise<Subject>> = {
	"a directory": async (scratch) => {
		const directory = await mkdtemp(join(scratch, "share-"))
		return {
			store: directoryStore({ name: "share", directory }),
			replace: async (key, content) => {
				await rm(join(directory, key))
				await writeFile(join(directory, key), content)
			},
			close: async () => {},
		}
	},
	"S3, each file in one piece": () => s3Subject({}),
	"S3, files in parts": () => s3Subject({ singlePutBytes: 1000, partBytes: 4096 }),
	// moto checks no signature and knows other rules than ours: where both agree, our server is honest.
	...independentServer(),
}

function independentServer(): Record<string, () => Promise<Subject>> {
	const endpoint = process.env.COMFYUME_TEST_S3_ENDPOINT
	if (endpoint === undefined) {
		// Said, not passed over: without it nobody but ourselves vouches for the strict server.
		console.warn("contract: no independent S3 server was asked (COMFYUME_TEST_S3_ENDPOINT is not set)")
		return {}
	}
	return {
		[`the independent S3 server at ${endpoint}, one piece`]: () => independent(endpoint, {}),
		[`the independent S3 server at ${endpoint}, parts`]: () =>
			independent(endpoint, { singlePutBytes: 1000, partBytes: 5 * 1024 * 1024 }),
	}
}

async function independent(endpoint: string, limits: object): Promise<Subject> {
	const bucket = `contract-${randomBytes(6).toString("hex")}`
	const credentials = { accessKeyId: "contract-key", secretAccessKey: "contract-secret" }
	const client = new S3Client({ endpoint, region: "us-east-1", forcePathStyle: true, credentials })
	await client.send(new CreateBucketCommand({ Bucket: bucket }))
	return {
		store: s3Store({ name: "r2", endpoint, bucket, region: "us-east-1", ...keys, ...limits }),
		replace: async (key, content) => {
			await client.send(new PutObjectCommand({ Bucket: bucket, Key: key, Body: content }))
		},
		close: async () => client.destroy(),
	}
}

const keys = { accessKeyId: new Secret("contract-key"), secretAccessKey: new Secret("contract-secret") }

async function s3Subject(limits: object): Promise<Subject> {
	const server = await startS3Server({
		buckets: ["vault"],
		credentials: [{ accessKeyId: "contract-key", secretAccessKey: "contract-secret" }],
		smallestPartBytes: 1024,
		largestPage: 3,
	})
	return {
		store: s3Store({ name: "r2", endpoint: server.endpoint, bucket: "vault", ...keys, ...limits }),
		replace: async (key, content) => {
			const object = server.objects.find("vault", key)
			if (object === undefined) throw new Error(`no ${key}`)
			await server.objects.write("vault", { ...object, etag: '"another"' }, content)
		},
		close: () => server.close(),
	}
}

const sha256 = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex")

let scratch: string
beforeAll(async () => {
	scratch = await mkdtemp(join(tmpdir(), "object-store-"))
})
afterAll(() => rm(scratch, { recursive: true }))

describe.each(Object.entries(subjects))("%s", (name, openSubject) => {
	let subject: Subject
	let store: ObjectStore
	beforeAll(async () => {
		subject = await openSubject(scratch)
		store = subject.store
	})
	afterAll(async () => {
		await store[Symbol.asyncDispose]()
		await subject.close()
	})

	async function put(key: string, content: Buffer, options: { digest?: string; signal?: AbortSignal } = {}) {
		const file = join(scratch, randomBytes(6).toString("hex"))
		await writeFile(file, content)
		const all = { sizeBytes: content.length, digest: sha256(content), ifAbsent: true as const, ...options }
		return await store.put(key, file, all)
	}
	const read = async (key: string, options = {}) => await buffer(await store.get(key, options))
	const all = async (prefix: string) => {
		const found: string[] = []
		for await (const { key } of store.list(prefix)) found.push(key)
		return found
	}

	test("can be used", async () => {
		await expect(store.probe()).resolves.toBeUndefined()
	})

	test.each([0, 1, 4096, 10_000, 1024 * 1024 + 7])("gives back the %i bytes that it took", async (size) => {
		const content = randomBytes(size)
		const key = `sizes/${size}`
		expect(await put(key, content)).toBe("stored")
		expect(sha256(await read(key))).toBe(sha256(content))
		expect((await store.head(key))?.sizeBytes).toBe(size)
	})

	test("knows nothing of a key that was never put", async () => {
		expect(await store.head("never/put")).toBeUndefined()
		await expect(store.get("never/put")).rejects.toThrow(OperatorError)
	})

	test("takes keys with blanks, signs and letters of all alphabets", async () => {
		const key = "odd/a b+c&d=e%20f'(g)*!~/ü-漢.txt"
		await put(key, Buffer.from("odd"))
		expect(await all("odd/")).toEqual([key])
		expect(String(await read(key))).toBe("odd")
	})

	test("leaves what is there, and says so", async () => {
		await put("taken", Buffer.from("first"))
		expect(await put("taken", Buffer.from("second"))).toBe("already-there")
		expect(String(await read("taken"))).toBe("first")
	})

	// moto looks and writes in two steps, so that two of its threads can both find the key empty.
	const decidesAtOnce = !name.startsWith("the independent")
	const testRace = decidesAtOnce ? test : () => {}
	testRace("tells exactly one of several who put at once that it stored", async () => {
		const results = await Promise.all(
			["one", "two", "three", "four"].map((text) => put("race", Buffer.from(text.repeat(1000)))),
		)
		expect(results.toSorted()).toEqual(["already-there", "already-there", "already-there", "stored"])
	})

	test("takes nothing when the file doesn't have the digest or the size that was named", async () => {
		const refused = put("wrong/digest", Buffer.from("content"), { digest: sha256(Buffer.from("other")) })
		await expect(refused).rejects.toThrow(/digest/)
		const file = join(scratch, "short")
		await writeFile(file, "12345")
		const options = { sizeBytes: 6, digest: sha256(Buffer.from("12345")), ifAbsent: true as const }
		await expect(store.put("wrong/size", file, options)).rejects.toThrow(/5 bytes instead of 6/)
		expect(await all("wrong/")).toEqual([])
	})

	test("lists in byte order, below the prefix only, however many pages it takes", async () => {
		const names = ["b", "a/z", "a-b", "a.b", "a/b/c", "Z", "ä", "a0", "aa", "a/b-c"]
		for (const name of names) await put(`order/${name}`, Buffer.from(name))
		await put("order-not", Buffer.from("beside"))
		const expected = names.map((name) => `order/${name}`)
		expected.sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
		expect(await all("order/")).toEqual(expected)
		expect(await all("order/a/")).toEqual(["order/a/b-c", "order/a/b/c", "order/a/z"])
		expect(await all("order/none/")).toEqual([])
	})

	test("says the same of an object in its list and in its head", async () => {
		await put("same/object", Buffer.from("same"))
		const head = await store.head("same/object")
		for await (const listed of store.list("same/")) {
			expect(listed.etag).toBe(head?.etag)
			expect(listed.sizeBytes).toBe(4)
			expect(Math.abs(listed.storedAt.getTime() - Date.now())).toBeLessThan(60_000)
		}
	})

	test("gives the bytes of a range, both ends included, and refuses one beyond the end", async () => {
		await put("ranged", Buffer.from("0123456789"))
		expect(String(await read("ranged", { range: { first: 2, last: 5 } }))).toBe("2345")
		expect(String(await read("ranged", { range: { first: 9, last: 9 } }))).toBe("9")
		await expect(read("ranged", { range: { first: 5, last: 10 } })).rejects.toThrow(OperatorError)
		await expect(read("ranged", { range: { first: 20, last: 30 } })).rejects.toThrow(OperatorError)
	})

	test("notices that an object was replaced between two ranges", async () => {
		await put("replaced", Buffer.from("0123456789"))
		const ifMatch = (await store.head("replaced"))?.etag
		expect(String(await read("replaced", { range: { first: 0, last: 4 }, ifMatch }))).toBe("01234")
		await subject.replace("replaced", Buffer.from("abcdefghijk"))
		await expect(read("replaced", { range: { first: 5, last: 9 }, ifMatch })).rejects.toThrow(ObjectChanged)
	})

	test.each(["", "/a", "a//b", "a/../b", "..", "./a", "a/", "a\0b"])("refuses %j as a key", async (key) => {
		for (const attempt of [() => store.head(key), () => store.get(key), () => put(key, Buffer.from("x"))])
			await expect(attempt()).rejects.toMatchObject({ exitCode: 8 })
	})

	test.each([".a.0123.partial", "a.bad-20260102T030405Z", ".comfyume.lock"])(
		"keeps the name %j for itself",
		async (name) => {
			await expect(put(`reserved/${name}`, Buffer.from("x"))).rejects.toMatchObject({ exitCode: 8 })
		},
	)

	test("tells of progress up to the whole size", async () => {
		const content = randomBytes(10_000)
		const file = join(scratch, "progress")
		await writeFile(file, content)
		const seen: number[] = []
		await store.put("progress", file, {
			sizeBytes: content.length,
			digest: sha256(content),
			ifAbsent: true,
			onProgress: (doneBytes) => seen.push(doneBytes),
		})
		expect(Math.max(...seen)).toBe(10_000)
	})

	test("leaves nothing, and no file open, when it is stopped", async () => {
		const stop = new AbortController()
		const content = randomBytes(3 * 1024 * 1024)
		const file = join(scratch, "stopped")
		await writeFile(file, content)
		const putting = store.put("stopped/object", file, {
			sizeBytes: content.length,
			digest: sha256(content),
			ifAbsent: true,
			signal: stop.signal,
			onProgress: () => stop.abort(),
		})
		await expect(putting).rejects.toThrow(/stopped/)
		expect(await all("stopped/")).toEqual([])
		expect(await openFilesNamed(file)).toBe(0)
		expect(await put("stopped/object", Buffer.from("second try"))).toBe("stored")
	})

	test("ends a read that is stopped", async () => {
		await put("reading", randomBytes(3 * 1024 * 1024))
		const stop = new AbortController()
		const stream = await store.get("reading", { signal: stop.signal })
		const reading = (async () => {
			for await (const _ of stream) stop.abort()
		})()
		await expect(reading).rejects.toThrow(OperatorError)
	})
})

async function openFilesNamed(path: string): Promise<number> {
	const links = await Promise.all(
		(await readdir("/proc/self/fd")).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => "")),
	)
	return links.filter((link) => link === path).length
}
