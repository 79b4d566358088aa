// The transfer engine against what goes wrong on the way. The server's own log says what was transferred, and node's
// own hash what came of it.
import { execFile, spawn } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { existsSync } from "node:fs"
import { mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Readable } from "node:stream"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { Secret } from "../../../src/lib/secret.ts"
import type { ByteSource } from "../../../src/lib/storage/byte-source.ts"
import { directoryStore } from "../../../src/lib/storage/directory.ts"
import { s3Store } from "../../../src/lib/storage/s3.ts"
import { type TransferOptions, transfer } from "../../../src/lib/storage/transfer.ts"
import { poll } from "../../support/poll.ts"
import { type FaultAction, type S3Server, startS3Server } from "../../support/s3-server/index.ts"
import { childKeys, type TransferJob } from "../../support/transfer-child.ts"

const blockSizeBytes = 64 * 1024
const content = randomBytes(10 * blockSizeBytes + 777)
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex")
const blocksOf = (bytes: Buffer, size = blockSizeBytes) =>
	Array.from({ length: Math.ceil(bytes.length / size) }, (_, block) =>
		sha256(bytes.subarray(block * size, (block + 1) * size)),
	)
const digest = sha256(content)
const blocks = blocksOf(content)
const key = "models/a b+c.safetensors"

let scratch: string
let partialFile: string
let server: S3Server
beforeAll(async () => {
	scratch = await mkdtemp(join(tmpdir(), "transfer-"))
})
afterAll(() => rm(scratch, { recursive: true }))
beforeEach(async () => {
	await rm(scratch, { recursive: true })
	scratch = await mkdtemp(join(tmpdir(), "transfer-"))
	partialFile = join(scratch, "model.partial")
	server = await serve()
})
afterEach(() => server.close())

async function serve(options: { tls?: { cert: string; key: string } } = {}) {
	const started = await startS3Server({ buckets: ["vault"], credentials: [childKeys], ...options })
	await put(started, content, '"first"')
	return started
}
const put = (to: S3Server, bytes: Buffer, etag: string) =>
	to.objects.write("vault", { key, etag, storedAt: new Date(), metadata: {}, contentType: "" }, bytes)

async function source(limits: object = {}): Promise<ByteSource> {
	const store = s3Store({
		name: "r2",
		endpoint: server.endpoint,
		bucket: "vault",
		accessKeyId: new Secret(childKeys.accessKeyId),
		secretAccessKey: new Secret(childKeys.secretAccessKey),
		attempts: 3,
		retryDelayMs: 1,
		stallMs: 400,
		leastBytes: 1024,
		...limits,
	})
	const head = await store.head(key)
	if (head === undefined) throw new Error("nothing there")
	return store.byteSource(head)
}
const fetchIt = async (options: Partial<TransferOptions> = {}, from?: ByteSource) =>
	await transfer(from ?? (await source()), { partialFile, expected: { digest }, blockSizeBytes, ...options })
const gets = () => server.log.filter(({ operation }) => operation === "GetObject")
const left = async () => (await readdir(scratch)).sort()

const expectations: Record<string, TransferOptions["expected"]> = {
	"the blocks' digests": { digest, blocks },
	"the digest": { digest },
	nothing: {},
}

describe.each(Object.entries(expectations))("with %s known", (_, expected) => {
	test("all bytes come, each once, and nothing is left beside them", async () => {
		const seen: number[] = []
		const came = await fetchIt({ expected, onProgress: ({ doneBytes }) => seen.push(doneBytes) })
		expect(await readFile(partialFile)).toEqual(content)
		expect(came).toEqual({ transferredBytes: content.length, ...(expected.blocks ? {} : { digest }) })
		expect(gets().map(({ headers }) => headers["if-match"])).toEqual(Array(11).fill('"first"'))
		expect(await left()).toEqual(["model.partial"])
		expect(seen.at(-1)).toBe(content.length)
		expect(seen).toEqual(seen.toSorted((a, b) => a - b))
	})

	test.each<FaultAction>([
		"reset",
		"black-hole",
		"truncate",
		"truncate-with-right-length",
		"extend",
		"wrong-range",
		"ok-instead-of-partial",
		"html",
		{ status: 500 },
		{ status: 503, retryAfter: 1 },
		{ status: 429 },
	])("%j in the middle is got over", async (action) => {
		const fault = server.fault({ match: { operation: "GetObject", after: 3, times: 2 }, do: action })
		await fetchIt({ expected })
		expect(fault.hits).toBe(2)
		expect(sha256(await readFile(partialFile))).toBe(digest)
	})

	test("an object that is replaced in the middle is fetched anew, never mixed", async () => {
		const other = randomBytes(content.length)
		const first = () => put(server, other, '"second"')
		server.fault({ match: { operation: "GetObject", after: 4, times: 1 }, do: { first } })
		const work = fetchIt({ expected: expected.blocks ? { blocks: blocksOf(other) } : {} })
		// Blocks of the first object are refused, those of the second are what is expected; or all is begun anew.
		await work
		expect(await readFile(partialFile)).toEqual(other)
	})
})

test.each<[FaultAction, number, RegExp]>([
	["reset", 4, /reset|closed/],
	["black-hole", 4, /stood still/],
	["wrong-range", 3, /asked for bytes \d+-\d+, it sent bytes/],
	["ok-instead-of-partial", 3, /sent the whole/],
	["html", 4, /HTML page, not S3/],
	[{ redirect: "http://198.51.100.1/" }, 3, /redirect/],
	[{ status: 503 }, 4, /retry later/],
	[{ status: 403, code: "AccessDenied" }, 6, /may not do this/],
])(
	"%j all the time comes to an end that names it, and a later run goes on",
	async (action, exitCode, says) => {
		const fault = server.fault({ match: { operation: "GetObject", after: 5 }, do: action })
		await expect(fetchIt({ lanes: 1 })).rejects.toMatchObject({
			exitCode,
			message: expect.stringMatching(says),
		})
		expect(gets().length).toBeLessThanOrEqual(5 + 4)
		fault.remove()
		const before = gets().length
		await fetchIt({ lanes: 1 })
		expect(gets().length - before).toBe(6)
		expect(await readFile(partialFile)).toEqual(content)
	},
)

test("who asks to come back much later is not waited for", async () => {
	server.fault({ match: { operation: "GetObject" }, do: { status: 503, retryAfter: 3600 } })
	await expect(fetchIt()).rejects.toMatchObject({ exitCode: 4, hint: expect.stringMatching(/again later/) })
})

describe("a bit that is flipped", () => {
	const match = { operation: "GetObject", after: 2 }

	test("on the way is noticed by its block, and that block alone comes again", async () => {
		server.fault({ match: { ...match, times: 1 }, do: "flip-bit" })
		const { transferredBytes } = await fetchIt({ expected: { blocks } })
		expect(await readFile(partialFile)).toEqual(content)
		expect(gets().length).toBe(12)
		expect(transferredBytes).toBe(content.length)
	})

	test("at the source names source and block after a few tries", async () => {
		const damaged = Buffer.from(content)
		damaged[3 * blockSizeBytes + 5] = (damaged[3 * blockSizeBytes + 5] ?? 0) ^ 1
		await server.objects.corrupt("vault", key, () => damaged)
		const failing = fetchIt({ expected: { blocks }, lanes: 1 })
		await expect(failing).rejects.toMatchObject({
			exitCode: 3,
			message: expect.stringMatching(
				/models\/a b\+c\.safetensors in r2 .*: block 3 \(bytes 196608 to 262143\)/,
			),
		})
		expect(gets().length).toBe(6)
	})

	test("is noticed by the whole digest, and nothing of it is gone on with", async () => {
		server.fault({ match: { ...match, times: 1 }, do: "flip-bit" })
		await expect(fetchIt()).rejects.toThrow(/its digest is/)
		expect(await left()).toEqual([])
		await fetchIt()
		// All blocks twice; a slow answer may have been asked for once more.
		expect(gets().length).toBeGreaterThanOrEqual(22)
		expect(await readFile(partialFile)).toEqual(content)
	})
})

test("a signal leaves a partial file, and the next run goes on with it", async () => {
	const halt = new AbortController()
	const first = () => halt.abort(new Error("enough"))
	server.fault({ match: { operation: "GetObject", after: 6, times: 1 }, do: { first } })
	await expect(fetchIt({ lanes: 1, signal: halt.signal })).rejects.toThrow(/stopped/)
	const before = gets().length
	await fetchIt({ lanes: 1 })
	expect(gets().length - before).toBeLessThanOrEqual(6)
	expect(await readFile(partialFile)).toEqual(content)
})

describe("a partial file", () => {
	const interrupted = async (expected: TransferOptions["expected"]) => {
		const fault = server.fault({ match: { operation: "GetObject", after: 6 }, do: { status: 403 } })
		await expect(fetchIt({ expected, lanes: 1 })).rejects.toThrow()
		fault.remove()
		return gets().length
	}

	test.each([
		["the blocks' digests", { blocks }],
		["the digest", { digest }],
	])("whose bytes were changed meanwhile is found out by %s", async (_, expected) => {
		const before = await interrupted(expected)
		const bytes = await readFile(partialFile)
		bytes[2 * blockSizeBytes + 1] = (bytes[2 * blockSizeBytes + 1] ?? 0) ^ 1
		await writeFile(partialFile, bytes)
		await fetchIt({ expected })
		expect(gets().length - before).toBe(6)
		expect(await readFile(partialFile)).toEqual(content)
	})

	test("of an object that was replaced since is begun anew", async () => {
		await interrupted({ digest })
		const other = randomBytes(content.length)
		await put(server, other, '"second"')
		const before = gets().length
		await fetchIt({ expected: {} })
		expect(gets().length - before).toBe(11)
		expect(await readFile(partialFile)).toEqual(other)
	})

	test("that nothing is noted of is believed by its blocks' digests only", async () => {
		await writeFile(partialFile, content.subarray(0, 7 * blockSizeBytes + 9))
		await fetchIt({ expected: { blocks } })
		expect(gets().length).toBe(4)
		await fetchIt({ expected: { digest } })
		expect(gets().length).toBe(4 + 11)
		expect(await readFile(partialFile)).toEqual(content)
	})

	test("of another length is brought to the right one", async () => {
		await writeFile(partialFile, Buffer.concat([content, Buffer.from("more")]))
		await fetchIt({ expected: { blocks } })
		expect(gets().length).toBe(0)
		expect(await readFile(partialFile)).toEqual(content)
	})
})

test("of a seed its good blocks are taken, and only the others are fetched", async () => {
	const seedFile = join(scratch, "seed")
	const damaged = Buffer.from(content)
	for (const at of [0, 5 * blockSizeBytes - 1, content.length - 1]) damaged[at] = (damaged[at] ?? 0) ^ 255
	await writeFile(seedFile, damaged)
	const came = await fetchIt({ expected: { blocks }, seedFile })
	expect(
		gets()
			.map(({ headers }) => headers.range)
			.toSorted(),
	).toEqual(["bytes=0-65535", "bytes=262144-327679", `bytes=${10 * blockSizeBytes}-${content.length - 1}`])
	expect(came.transferredBytes).toBe(2 * blockSizeBytes + 777)
	expect(await readFile(partialFile)).toEqual(content)
	expect(await readFile(seedFile)).toEqual(damaged)
	await truncate(seedFile, 4 * blockSizeBytes)
	await rm(partialFile)
	await fetchIt({ expected: { blocks }, seedFile })
	expect(gets().length).toBe(3 + 8)
})

test("a manifest whose blocks don't fit the size is refused before anything is written", async () => {
	await expect(fetchIt({ expected: { blocks: blocks.slice(1) } })).rejects.toThrow(
		/11 blocks; the manifest names 10/,
	)
	expect(await left()).toEqual([])
})

test("a limit on the bandwidth is kept over all connections", async () => {
	const startedAt = performance.now()
	await fetchIt({ limitBytesPerSecond: content.length, expected: {} })
	expect(performance.now() - startedAt).toBeGreaterThan(600)
})

describe("from a share", () => {
	const share = async () => {
		await writeFile(join(scratch, "model"), content)
		const store = directoryStore({ name: "share", directory: scratch })
		const head = await store.head("model")
		if (head === undefined) throw new Error("nothing there")
		return store.byteSource(head)
	}

	test.each(Object.values(expectations))("all bytes come with %j known", async (expected) => {
		await fetchIt({ expected }, await share())
		expect(await readFile(partialFile)).toEqual(content)
	})

	test("a file that is written to meanwhile is noticed", async () => {
		const from = await share()
		if (from.access.kind !== "file") throw new Error("not a file")
		const { path } = from.access
		const written: Promise<void>[] = []
		const work = fetchIt(
			{
				expected: {},
				limitBytesPerSecond: content.length * 2,
				onProgress: () => {
					if (written.length === 0) written.push(writeFile(path, randomBytes(content.length)))
				},
			},
			from,
		)
		await expect(work).rejects.toThrow(/replaced while it was read/)
		await Promise.all(written)
		expect(await left()).toEqual(["model"])
	})
})

describe("from a stream", () => {
	const streaming = (open: (first: number, last: number) => Readable): ByteSource => ({
		name: "elsewhere",
		place: "the model elsewhere",
		sizeBytes: content.length,
		access: { kind: "stream", open: async ({ first, last }) => open(first, last) },
	})

	test("all bytes come, however they are cut, and one that breaks off is asked again", async () => {
		let opened = 0
		const from = streaming((first, last) => {
			opened++
			const whole = content.subarray(first, last + 1)
			const cut = opened === 2 ? whole.subarray(0, 1000) : whole
			return Readable.from([cut.subarray(0, 7), cut.subarray(7, 900), cut.subarray(900)])
		})
		await fetchIt({}, from)
		expect(opened).toBe(12)
		expect(await readFile(partialFile)).toEqual(content)
	})

	test("a failure in its middle is told as it is", async () => {
		const from = streaming(() => {
			async function* broken() {
				yield Buffer.alloc(10)
				throw new TypeError("a bug in the source")
			}
			return Readable.from(broken())
		})
		await expect(fetchIt({}, from)).rejects.toThrow(/a bug in the source/)
	})
})

const child = fileURLToPath(new URL("../../support/transfer-child.ts", import.meta.url))
const run = (job: TransferJob, environment: NodeJS.ProcessEnv = {}) =>
	promisify(execFile)(process.execPath, [child, JSON.stringify(job)], {
		env: { ...process.env, ...environment },
	})

test.each([
	["the blocks' digests", { digest, blocks }],
	["the digest", { digest }],
])("after kill -9 no more than one block per connection comes twice, with %s known", async (_, expected) => {
	const lanes = 2
	const download = { partialFile, expected, blockSizeBytes, lanes }
	const job = { endpoint: server.endpoint, key, download }
	const slow = { ...job, download: { ...download, limitBytesPerSecond: 4 * blockSizeBytes } }
	const killed = spawn(process.execPath, [child, JSON.stringify(slow)], { stdio: "ignore" })
	await poll(() => gets().length >= 5, { what: "five blocks", deadlineMs: 20_000 })
	killed.kill("SIGKILL")
	await new Promise((resolve) => killed.once("exit", resolve))
	expect(existsSync(`${partialFile}.json`)).toBe(true)
	await run(job)
	expect(gets().length).toBeLessThanOrEqual(blocks.length + lanes)
	expect(await readFile(partialFile)).toEqual(content)
	expect(await left()).toEqual(["model.partial"])
})

test("over TLS with a certificate of one's own, and not without it", async () => {
	const [certFile, keyFile] = [join(scratch, "cert.pem"), join(scratch, "key.pem")]
	const request = [
		"req",
		"-x509",
		"-newkey",
		"ec",
		"-pkeyopt",
		"ec_paramgen_curve:P-256",
		"-nodes",
		"-days",
		"2",
	]
	const names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
	await promisify(execFile)("openssl", [...request, ...names, "-keyout", keyFile, "-out", certFile])
	await server.close()
	server = await serve({
		tls: { cert: await readFile(certFile, "utf8"), key: await readFile(keyFile, "utf8") },
	})
	const large = randomBytes(5_000_000)
	await put(server, large, '"large"')
	const job = { endpoint: server.endpoint, key, store: { attempts: 1 } }
	const download = { partialFile, expected: { digest: sha256(large) }, blockSizeBytes: 2_000_000 }
	await run({ ...job, download }, { NODE_EXTRA_CA_CERTS: certFile })
	expect(await readFile(partialFile)).toEqual(large)
	await expect(run({ ...job, download })).rejects.toThrow(/no secure connection/)
})

describe("a disk that is too small", () => {
	let mount: string
	const mounted = async (sizeBytes: number) => {
		mount = await mkdtemp(join(tmpdir(), "transfer-small-"))
		await promisify(execFile)("mount", ["-t", "tmpfs", "-o", `size=${sizeBytes}`, "tmpfs", mount])
		return join(mount, "model.partial")
	}
	afterEach(async () => {
		await promisify(execFile)("umount", [mount])
		await rm(mount, { recursive: true })
	})

	test("is refused before anything is fetched", async () => {
		const small = await mounted(content.length)
		await expect(fetchIt({ partialFile: small })).rejects.toMatchObject({
			exitCode: 7,
			message: expect.stringContaining(mount),
		})
		expect(gets()).toEqual([])
		expect(await readdir(mount)).toEqual([])
	})

	test("that fills up meanwhile is told, and its room is given back", async () => {
		const small = await mounted(2 * content.length)
		const first = () => writeFile(join(mount, "other"), randomBytes(2 * content.length - 4 * blockSizeBytes))
		server.fault({ match: { operation: "GetObject", after: 3, times: 1 }, do: { first } })
		const failing = fetchIt({ partialFile: small, lanes: 1 })
		await expect(failing).rejects.toMatchObject({ exitCode: 7, message: expect.stringContaining(small) })
		expect(await readdir(mount)).toEqual(["other"])
		expect((await stat(join(mount, "other"))).size).toBeGreaterThan(0)
	})
})
