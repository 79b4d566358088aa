// What the S3 store does when the network, the service or the credentials fail. The server's own log is the witness.
import { createHash, randomBytes } from "node:crypto"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Readable } from "node:stream"
import { buffer } from "node:stream/consumers"
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { OperatorError } from "../../../src/lib/errors.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { type S3StoreOptions, s3Store } from "../../../src/lib/storage/s3.ts"
import { exactly } from "../../../src/lib/storage/s3-read.ts"
import {
	type FaultAction,
	type S3Server,
	type S3ServerOptions,
	startS3Server,
} from "../../support/s3-server/index.ts"

const secret = "a-secret-that-must-not-show"
const content = randomBytes(40_000)
const digest = createHash("sha256").update(content).digest("hex")
const quick = { attempts: 3, retryDelayMs: 1, longestRetryDelayMs: 2000, stallMs: 400, leastBytes: 1024 }
const inParts = { singlePutBytes: 1000, partBytes: 10_000 }

let scratch: string
let file: string
let server: S3Server
const opened: AsyncDisposable[] = []

beforeAll(async () => {
	scratch = await mkdtemp(join(tmpdir(), "s3-faults-"))
	file = join(scratch, "file")
	await writeFile(file, content)
})
afterAll(() => rm(scratch, { recursive: true }))
beforeEach(async () => {
	server = await start()
})
afterEach(async () => {
	for (const one of opened.splice(0)) await one[Symbol.asyncDispose]()
})

async function start(options: Partial<S3ServerOptions> = {}) {
	const started = await startS3Server({
		buckets: ["vault"],
		credentials: [{ accessKeyId: "key-id-that-works", secretAccessKey: secret }],
		smallestPartBytes: 1024,
		...options,
	})
	opened.push(started)
	return started
}

function open(options: Partial<S3StoreOptions> = {}) {
	const store = s3Store({
		name: "r2",
		endpoint: server.endpoint,
		bucket: "vault",
		accessKeyId: new Secret("key-id-that-works"),
		secretAccessKey: new Secret(secret),
		...quick,
		...options,
	})
	opened.push(store)
	return store
}
const put = (store = open()) => store.put("a/b", file, { sizeBytes: content.length, digest, ifAbsent: true })
const count = (operation: string) => server.log.filter((entry) => entry.operation === operation).length
const failureOf = async (work: Promise<unknown>) => {
	const error = await work.then(
		() => undefined,
		(thrown: unknown) => thrown,
	)
	if (!(error instanceof OperatorError)) throw new Error(`expected an OperatorError, got ${String(error)}`)
	expect(`${error.message} ${error.hint}`).not.toContain(secret)
	return error
}

describe("a whole read", () => {
	test.each<FaultAction>(["truncate-with-right-length", "reset", "black-hole", { trickle: { everyMs: 20 } }])(
		"fails in the end under %j",
		async (action) => {
			await put()
			server.fault({ match: { operation: "GetObject" }, do: action })
			const reading = open()
				.get("a/b")
				.then((stream) => buffer(stream))
			expect((await failureOf(reading)).exitCode).toBe(4)
		},
	)
})

describe("a ranged read", () => {
	test.each<[FaultAction, RegExp]>([
		["truncate", /announces 495 bytes/],
		["extend", /announces 1006 bytes/],
		["wrong-range", /the store sent bytes 9-998/],
		["ok-instead-of-partial", /sent the whole object/],
	])("notices %j", async (action, says) => {
		await put()
		server.fault({ match: { operation: "GetObject" }, do: action })
		const error = await failureOf(open().get("a/b", { range: { first: 10, last: 999 } }))
		expect(error).toMatchObject({ exitCode: 3, message: expect.stringMatching(says) })
	})
})

test("a body that ends early or late without a word fails", async () => {
	for (const [sent, says] of [
		["1234", /sent 4 bytes instead of the 5/],
		["123456", /sent 6 bytes instead of the 5/],
	] as const) {
		const body = exactly(Readable.from([Buffer.from(sent)]), 5, (error) => error as OperatorError)
		await expect(buffer(body)).rejects.toThrow(says)
	}
})

test("a slow reader is no stall", async () => {
	await put()
	const stream = await open({ stallMs: 50 }).get("a/b")
	let got = 0
	for await (const chunk of stream) {
		got += chunk.length
		await new Promise((resolve) => setTimeout(resolve, 100))
	}
	expect(got).toBe(content.length)
})

describe.each([
	["in one piece", {}, "PutObject"],
	["in parts", inParts, "UploadPart"],
] as const)("a put %s", (_, limits, operation) => {
	test("is refused by the server when a bit flips on the way, and leaves nothing", async () => {
		server.fault({ match: { operation }, do: "flip-bit" })
		expect((await failureOf(put(open(limits)))).message).toMatch(/what arrived is not what was sent/)
		expect(server.objects.keys("vault")).toEqual([])
	})

	test.each<FaultAction>(["reset", "black-hole", "lose-answer", { status: 503 }, { status: 429 }])(
		"gets through when one attempt meets %j",
		async (action) => {
			server.fault({ match: { operation, times: 1 }, do: action })
			expect(await put(open(limits))).toBe("stored")
			expect(await server.objects.read("vault", "a/b")).toEqual(content)
		},
	)

	test("leaves what somebody else put there after it had looked", async () => {
		const rival = Buffer.from("the rival's")
		const object = { key: "a/b", etag: '"rival"', storedAt: new Date(), metadata: {}, contentType: "" }
		const first = () => server.objects.write("vault", object, rival)
		const last = operation === "UploadPart" ? "CompleteMultipartUpload" : operation
		const fault = server.fault({ match: { operation: last }, do: { first } })
		expect(await put(open(limits))).toBe("already-there")
		expect(fault.hits).toBe(1)
		expect(await server.objects.read("vault", "a/b")).toEqual(rival)
	})

	test("that keeps failing leaves nothing, and its upload is aborted", async () => {
		server.fault({ match: { operation }, do: { status: 500 } })
		expect((await failureOf(put(open(limits)))).exitCode).toBe(4)
		expect(server.objects.keys("vault")).toEqual([])
		expect(count("AbortMultipartUpload")).toBe(operation === "UploadPart" ? 1 : 0)
		expect(count("DeleteObject")).toBe(0)
	})
})

test.each(["honoured", "ignored", "refused"] as const)(
	"parts are joined where a condition on it is %s, and a lost answer is found out",
	async (conditionalComplete) => {
		server = await start({ conditionalComplete })
		const match = {
			operation: "CompleteMultipartUpload",
			times: 1,
			after: conditionalComplete === "refused" ? 1 : 0,
		}
		const fault = server.fault({ match, do: "lose-answer" })
		expect(await put(open(inParts))).toBe("stored")
		expect(fault.hits).toBe(1)
		expect(await server.objects.read("vault", "a/b")).toEqual(content)
		const sizes = server.log.filter((entry) => entry.operation === "UploadPart").map((entry) => entry.bytesIn)
		expect(sizes).toEqual([10_000, 10_000, 10_000, 10_000])
	},
)

test("what the store keeps is held against what was sent", async () => {
	const sick = { first: () => server.objects.corrupt("vault", "a/b", (bytes) => bytes.subarray(1)) }
	server.fault({ match: { operation: "HeadObject", after: 1 }, do: sick })
	expect((await failureOf(put())).message).toMatch(/its size is 39999 instead of 40000/)
})

test("Retry-After is honoured, and an end comes when it asks for too much", async () => {
	const soon = server.fault({
		match: { operation: "ListObjectsV2", times: 1 },
		do: { status: 503, retryAfter: 1 },
	})
	const startedAt = performance.now()
	await open().probe()
	expect(soon.hits).toBe(1)
	expect(performance.now() - startedAt).toBeGreaterThan(900)
	server.fault({ match: { operation: "ListObjectsV2" }, do: { status: 503, retryAfter: 3600 } })
	expect((await failureOf(open().probe())).hint).toMatch(/again later/)
})

describe("a named diagnosis", () => {
	const wrong = new Secret("wrong-and-long-enough")
	const day = 24 * 3600 * 1000
	type Case = {
		store?: Partial<S3StoreOptions>
		server?: Partial<S3ServerOptions>
		fault?: FaultAction
		says: RegExp
		exitCode: number
	}
	const cases: Record<string, Case> = {
		"an unknown key": { store: { accessKeyId: wrong }, says: /no such access key ID/, exitCode: 6 },
		"a wrong secret": { store: { secretAccessKey: wrong }, says: /signature is wrong/, exitCode: 6 },
		"a clock off by a day": {
			server: { now: () => new Date(Date.now() + day) },
			says: /clock is off/,
			exitCode: 6,
		},
		"a bucket that isn't there": { store: { bucket: "other" }, says: /no such bucket/, exitCode: 3 },
		"a token that may not list": {
			server: {
				credentials: [
					{
						accessKeyId: "key-id-that-works",
						secretAccessKey: secret,
						denies: ["ListObjectsV2", "HeadObject"],
					},
				],
			},
			says: /may not do this/,
			exitCode: 6,
		},
		"a name that isn't there": {
			store: { endpoint: "http://nowhere.invalid" },
			says: /no such host name|name server/,
			exitCode: 4,
		},
		"nobody listening": { store: { endpoint: "http://127.0.0.1:9" }, says: /refused/, exitCode: 4 },
		"an HTML page with 200": { fault: "html", says: /HTML page, not S3/, exitCode: 4 },
		"a redirect": {
			fault: { redirect: "http://198.51.100.1/" },
			says: /redirect.*198\.51\.100\.1/,
			exitCode: 3,
		},
		"a storm of 503": { fault: { status: 503 }, says: /retry later \(3 attempts\)/, exitCode: 4 },
		"a storm of 429": { fault: { status: 429 }, says: /retry later \(3 attempts\)/, exitCode: 4 },
		"a failure of the service": { fault: { status: 500 }, says: /failure of its own/, exitCode: 4 },
		silence: { fault: "black-hole", says: /stood still/, exitCode: 4 },
	}
	test.each(Object.entries(cases))(
		"%s",
		async (_, { store, server: serverOptions, fault, says, exitCode }) => {
			if (serverOptions !== undefined) server = await start(serverOptions)
			if (fault !== undefined) server.fault({ do: fault })
			for (const ask of [() => open(store).probe(), () => open(store).head("a/b"), () => put(open(store))]) {
				const error = await failureOf(ask())
				expect(error.message).toMatch(says)
				expect(error.exitCode).toBe(exitCode)
			}
			expect(server.objects.keys("vault")).toEqual([])
		},
	)

	test("a connection that is not TLS", async () => {
		const plain = createServer((socket) => socket.on("error", () => {}).end("220 not TLS\r\n"))
		await new Promise<void>((resolve) => plain.listen(0, "127.0.0.1", resolve))
		const address = plain.address()
		const port = typeof address === "object" && address !== null ? address.port : 0
		const error = await failureOf(open({ endpoint: `https://127.0.0.1:${port}` }).probe())
		plain.close()
		expect(error).toMatchObject({ exitCode: 4, message: expect.stringMatching(/no secure connection/) })
	})

	test("a token that may list and not HEAD", async () => {
		const credential = {
			accessKeyId: "key-id-that-works",
			secretAccessKey: secret,
			denies: ["HeadObject", "HeadBucket"],
		}
		server = await start({ credentials: [credential] })
		await open().probe()
		expect((await failureOf(open().head("a/b"))).message).toMatch(/may list the bucket, but not HEAD/)
	})

	test("keys that are revoked in the middle of an upload", async () => {
		const revoke = { first: () => server.revoke("key-id-that-works") }
		server.fault({ match: { operation: "UploadPart", after: 2 }, do: revoke })
		const error = await failureOf(put(open({ ...inParts, concurrentParts: 1 })))
		expect(error).toMatchObject({ exitCode: 6, message: expect.stringMatching(/no such access key ID/) })
	})
})
