// Uploads in parts that are interrupted: what the service has already isn't sent again. The server's log counts.
import { execFile, spawn } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { existsSync } from "node:fs"
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { afterEach, beforeEach, expect, test } from "vitest"
import { Secret } from "../../../src/lib/secret.ts"
import { s3Store } from "../../../src/lib/storage/s3.ts"
import { poll } from "../../support/poll.ts"
import { type FaultAction, type S3Server, startS3Server } from "../../support/s3-server/index.ts"
import { childKeys, type TransferJob } from "../../support/transfer-child.ts"

const partBytes = 10_000
const content = randomBytes(10 * partBytes + 77)
const digest = createHash("sha256").update(content).digest("hex")
const key = "loras/new.safetensors"
const limits = {
	singlePutBytes: 1000,
	partBytes,
	attempts: 2,
	retryDelayMs: 1,
	stallMs: 500,
	leastBytes: 1024,
}

let scratch: string
let file: string
let resumeFile: string
let server: S3Server
beforeEach(async () => {
	scratch = await mkdtemp(join(tmpdir(), "upload-"))
	file = join(scratch, "model")
	resumeFile = join(scratch, "model.upload")
	await writeFile(file, content)
	server = await startS3Server({
		buckets: ["vault"],
		credentials: [childKeys],
		smallestPartBytes: 1024,
		largestPage: 3,
	})
})
afterEach(async () => {
	await server.close()
	await rm(scratch, { recursive: true })
})

function open() {
	return s3Store({
		name: "r2",
		endpoint: server.endpoint,
		bucket: "vault",
		accessKeyId: new Secret(childKeys.accessKeyId),
		secretAccessKey: new Secret(childKeys.secretAccessKey),
		concurrentParts: 2,
		...limits,
	})
}
const put = async (
	options: { resumeFile?: string; signal?: AbortSignal; digest?: string } = { resumeFile },
) => {
	await using store = open()
	return await store.put(key, file, { sizeBytes: content.length, digest, ifAbsent: true, ...options })
}
const noted = async () => (await readFile(resumeFile, "utf8")).trim().split("\n").length - 1
const sent = () =>
	server.log.filter(({ operation, status }) => operation === "UploadPart" && status === 200).length
const count = (operation: string) => server.log.filter((entry) => entry.operation === operation).length
const unfinished = async () => {
	await using store = open()
	const found: string[] = []
	for await (const upload of store.listUnfinished?.("") ?? []) found.push(upload.key)
	return found
}
const arrived = async () => expect(await server.objects.read("vault", key)).toEqual(content)

test.each<FaultAction>([{ status: 503 }, { status: 403 }, "reset", "black-hole"])(
	"interrupted by %j, it is gone on with, and the parts that arrived are not sent again",
	async (action) => {
		const fault = server.fault({ match: { operation: "UploadPart", after: 6 }, do: action })
		await expect(put()).rejects.toThrow()
		fault.remove()
		expect(await unfinished()).toEqual([key])
		expect(count("AbortMultipartUpload")).toBe(0)
		const before = sent()
		const kept = await noted()
		// Of the two connections one may have been between its answer and its note.
		expect(kept).toBeGreaterThanOrEqual(before - 1)
		expect(before).toBeGreaterThanOrEqual(5)
		expect(await put()).toBe("stored")
		expect(sent() - before).toBe(11 - kept)
		expect(count("CreateMultipartUpload")).toBe(1)
		expect(existsSync(resumeFile)).toBe(false)
		await arrived()
	},
)

test("a signal leaves it to be gone on with", async () => {
	const halt = new AbortController()
	server.fault({ match: { operation: "UploadPart", after: 5, times: 1 }, do: { first: () => halt.abort() } })
	await expect(put({ resumeFile, signal: halt.signal })).rejects.toThrow(/stopped/)
	expect(await unfinished()).toEqual([key])
	expect(await put()).toBe("stored")
	expect(sent()).toBeLessThanOrEqual(13)
	expect(count("CreateMultipartUpload")).toBe(1)
	await arrived()
})

test("after kill -9 no more than one part per connection is sent again", async () => {
	const child = fileURLToPath(new URL("../../support/transfer-child.ts", import.meta.url))
	const upload = { file, sizeBytes: content.length, digest, resumeFile }
	const job: TransferJob = { endpoint: server.endpoint, key, store: limits, upload }
	const slow = { ...job, upload: { ...upload, limitBytesPerSecond: 50_000 } }
	const killed = spawn(process.execPath, [child, JSON.stringify(slow)], { stdio: "ignore" })
	await poll(() => sent() >= 5, { what: "five parts", deadlineMs: 20_000 })
	killed.kill("SIGKILL")
	await new Promise((resolve) => killed.once("exit", resolve))
	expect(server.objects.keys("vault")).toEqual([])
	await promisify(execFile)(process.execPath, [child, JSON.stringify(job)])
	expect(sent()).toBeLessThanOrEqual(11 + 3)
	expect(count("CreateMultipartUpload")).toBe(1)
	await arrived()
})

const interrupt = async () => {
	const fault = server.fault({ match: { operation: "UploadPart", after: 6 }, do: { status: 503 } })
	await expect(put()).rejects.toThrow()
	fault.remove()
}

test("an upload that the service has dropped meanwhile is begun anew", async () => {
	await interrupt()
	const state = await readFile(resumeFile, "utf8")
	expect(await put()).toBe("stored")
	await server.objects.lose("vault", key)
	await writeFile(resumeFile, state)
	expect(await put()).toBe("stored")
	expect(count("CreateMultipartUpload")).toBe(2)
	await arrived()
})

test("an upload that the service drops in the middle of going on is begun anew", async () => {
	await interrupt()
	server.fault({ match: { operation: "UploadPart", times: 1 }, do: { status: 404, code: "NoSuchUpload" } })
	expect(await put()).toBe("stored")
	expect(count("CreateMultipartUpload")).toBe(2)
	await arrived()
})

test("a part that the service lost, or keeps another one of, is sent again", async () => {
	await interrupt()
	const before = sent()
	const kept = await noted()
	const [head = "", ...lines] = (await readFile(resumeFile, "utf8")).split("\n")
	const other = lines.map((line, index) =>
		index === 1 ? line.replace(/"etag":"[^,]*"/, '"etag":"other"') : line,
	)
	await writeFile(resumeFile, [head, ...other].join("\n"))
	expect(await put()).toBe("stored")
	expect(sent() - before).toBe(11 - kept + 1)
	await arrived()
})

test("a file that is another one by now is sent whole, and the upload of the old one is aborted", async () => {
	await interrupt()
	const other = randomBytes(content.length)
	await writeFile(file, other)
	expect(await put({ resumeFile, digest: createHash("sha256").update(other).digest("hex") })).toBe("stored")
	expect(count("AbortMultipartUpload")).toBe(1)
	expect(await unfinished()).toEqual([])
	expect(await server.objects.read("vault", key)).toEqual(other)
})

test("a file that doesn't have the digest that was named is never joined, and nothing is left of it", async () => {
	await interrupt()
	const changed = Buffer.from(content)
	changed[content.length - 1] = (changed[content.length - 1] ?? 0) ^ 1
	await writeFile(file, changed)
	await expect(put()).rejects.toThrow(/does not have the digest/)
	expect(server.objects.keys("vault")).toEqual([])
	expect(await unfinished()).toEqual([])
	expect(existsSync(resumeFile)).toBe(false)
})

test("what stands there already is left, and the upload is aborted", async () => {
	const rival = Buffer.from("the rival's")
	const object = { key, etag: '"rival"', storedAt: new Date(), metadata: {}, contentType: "" }
	const first = () => server.objects.write("vault", object, rival)
	server.fault({ match: { operation: "CompleteMultipartUpload" }, do: { first } })
	expect(await put()).toBe("already-there")
	expect(await unfinished()).toEqual([])
	expect(existsSync(resumeFile)).toBe(false)
})

test("a lost answer to the joining is found out after going on, too", async () => {
	await interrupt()
	server.fault({ match: { operation: "CompleteMultipartUpload", times: 1 }, do: "lose-answer" })
	expect(await put()).toBe("stored")
	expect(count("CreateMultipartUpload")).toBe(1)
	await arrived()
})

test("without a file to note it in, an interrupted upload is aborted", async () => {
	server.fault({ match: { operation: "UploadPart", after: 6 }, do: { status: 503 } })
	await expect(put({})).rejects.toThrow()
	expect(await unfinished()).toEqual([])
})
