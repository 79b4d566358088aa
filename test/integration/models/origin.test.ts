// Models from the address that they were published at: who may read them, what comes, and where the token never goes.
import { createHash } from "node:crypto"
import { buffer } from "node:stream/consumers"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { OperatorError } from "../../../src/lib/errors.ts"
import type { Offer } from "../../../src/lib/models/offer.ts"
import { type OriginOptions, openOrigin } from "../../../src/lib/models/origin.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { ObjectChanged } from "../../../src/lib/storage/object-store.ts"
import { type HuggingFace, type Published, startHuggingFace } from "../../support/hugging-face.ts"
import { makeModel } from "../../support/model-maker.ts"

const accepted = "made-up-token-with-licence"
const notAccepted = "made-up-token-without-licence"
const content = makeModel(300_000)
const digest = createHash("sha256").update(content).digest("hex")
const path = "owner/model/resolve/main/model.safetensors"

let hub: HuggingFace
beforeEach(async () => {
	hub = await startHuggingFace({ [accepted]: true, [notAccepted]: false })
})
afterEach(() => hub[Symbol.asyncDispose]())

const publish = (more: Partial<Published> = {}) => hub.publish({ path, content, ...more })

const open = (url: string, options: Partial<OriginOptions> & { gated?: boolean; repository?: string } = {}) =>
	openOrigin(url, options, {
		token: undefined,
		tokenOrigin: hub.origin,
		signal: new AbortController().signal,
		attempts: 3,
		retryDelayMs: 1,
		...options,
	})

const readRange = async ({ bytes }: Offer, first: number, last: number) => {
	if (bytes.access.kind !== "stream") throw new Error("an origin is a stream")
	return buffer(await bytes.access.open({ first, last }))
}

const failureOf = async (work: Promise<unknown>): Promise<OperatorError> => {
	const error = await work.then(
		() => undefined,
		(thrown: unknown) => thrown,
	)
	if (!(error instanceof OperatorError)) throw new Error(`expected an OperatorError, got ${String(error)}`)
	for (const secret of [accepted, notAccepted, "Signature"])
		expect(`${error.message} ${error.hint}`).not.toContain(secret)
	return error
}

describe("a public model", () => {
	test("says its size and its sha256 before it is fetched, and comes in ranges", async () => {
		const offer = await open(publish().url)
		expect(offer.bytes.sizeBytes).toBe(content.length)
		expect(offer.claim).toEqual({ digest, by: new URL(hub.origin).host })
		const halves = [await readRange(offer, 0, 99_999), await readRange(offer, 100_000, content.length - 1)]
		expect(Buffer.concat(halves).equals(content)).toBe(true)
	})

	test("is asked for without the token, although there is one", async () => {
		await open(publish().url, { token: new Secret(accepted) })
		expect(hub.publisherLog.map(({ headers }) => headers.authorization)).toEqual([undefined])
	})

	test("that the publisher gives itself has no sha256 to claim", async () => {
		const offer = await open(publish({ direct: true }).url)
		expect(offer.claim).toBeUndefined()
		expect((await readRange(offer, 5, 9)).equals(content.subarray(5, 10))).toBe(true)
	})
})

describe("a gated model", () => {
	test("comes with the token, which never reaches the storage that it is sent to", async () => {
		const offer = await open(publish({ gated: true }).url, { token: new Secret(accepted), gated: true })
		expect((await readRange(offer, 0, content.length - 1)).equals(content)).toBe(true)
		expect(hub.publisherLog.map(({ headers }) => headers.authorization)).toEqual([`Bearer ${accepted}`])
		expect(hub.storageLog.length).toBeGreaterThan(1)
		expect(JSON.stringify(hub.storageLog)).not.toContain(accepted)
		expect(hub.storageLog.filter(({ headers }) => "authorization" in headers)).toEqual([])
	})

	test("that the manifest doesn't know as gated is asked for again with the token", async () => {
		const offer = await open(publish({ gated: true }).url, { token: new Secret(accepted) })
		expect(offer.claim?.digest).toBe(digest)
		expect(JSON.stringify(hub.storageLog)).not.toContain(accepted)
	})

	test("without a token is refused with 6, and says which one is missing", async () => {
		const { message, hint, exitCode } = await failureOf(open(publish({ gated: true }).url, { gated: true }))
		expect([exitCode, message]).toEqual([6, expect.stringContaining("there is no HF_TOKEN")])
		expect(hint).toContain("secrets.env")
	})

	test("whose licence isn't accepted is refused with 6, and says where to accept it", async () => {
		const { url } = publish({ gated: true })
		const given = { token: new Secret(notAccepted), repository: "owner/model" }
		const { message, hint, exitCode } = await failureOf(open(url, given))
		expect([exitCode, hint]).toEqual([6, `accept the licence at ${hub.origin}/owner/model`])
		expect(message).toContain("licence has not been accepted")
		expect((await failureOf(open(url, { token: new Secret(notAccepted) }))).hint).toBe(hint)
	})

	test("with a token that isn't taken is refused with 6", async () => {
		const given = { token: new Secret("made-up-token-revoked"), gated: true }
		const { message, exitCode } = await failureOf(open(publish({ gated: true }).url, given))
		expect([exitCode, message]).toEqual([6, expect.stringContaining("refuses HF_TOKEN")])
	})

	test("of another publisher never sees the token", async () => {
		const given = { token: new Secret(accepted), gated: true, tokenOrigin: "https://hub.example.test" }
		const { message, exitCode } = await failureOf(open(publish({ gated: true }).url, given))
		expect([exitCode, message]).toEqual([6, expect.stringContaining("there are none for it")])
		expect(JSON.stringify([hub.publisherLog, hub.storageLog])).not.toContain(accepted)
	})
})

describe("what is no model is named before a byte of it is kept", () => {
	test.each([
		["an HTML page", Buffer.from("<!DOCTYPE html><html><body>Sign in</body></html>")],
		["a Git LFS pointer", Buffer.from("version https://git-lfs.github.com/spec/v1\nsize 40000\n")],
		["a JSON text", Buffer.from('{"error": "not here"}')],
	])("%s that is given as a file", async (what, page) => {
		expect((await failureOf(open(publish({ content: page }).url))).message).toContain(what)
	})

	test("an HTML page with 200", async () => {
		const { url } = publish()
		hub.trouble({ on: "storage", status: 200, html: true })
		expect((await failureOf(open(url))).message).toContain("answered with an HTML page, not a file")
	})

	test("a file that isn't there, which strangers can't tell from a private one", async () => {
		const url = `${hub.origin}/owner/model/resolve/main/nothing`
		expect((await failureOf(open(url, { token: new Secret(accepted) }))).message).toContain("no such file")
		expect((await failureOf(open(url))).exitCode).toBe(6)
	})

	test("a storage that has another size than the publisher says", async () => {
		const { url } = publish({ says: { sizeBytes: 5 } })
		expect((await failureOf(open(url))).message).toContain("says it has 5 bytes")
	})

	test("a storage that knows no ranges", async () => {
		const { url } = publish()
		hub.trouble({ on: "storage", ignores: "ranges" })
		expect((await failureOf(open(url))).message).toContain("gives no ranges")
	})

	test("an address without encryption, and a redirect to one", async () => {
		expect((await failureOf(open("http://127.0.0.1:1/x"))).exitCode).toBe(8)
		const { url } = publish({ gated: true })
		hub.trouble({ on: "publisher", redirect: "http://127.0.0.1:1/x" })
		const { message, exitCode } = await failureOf(open(url, { token: new Secret(accepted), gated: true }))
		expect([exitCode, message]).toEqual([8, expect.stringContaining("redirects to http://127.0.0.1:1")])
	})

	test("redirects without end", async () => {
		const { url } = publish()
		hub.trouble({ on: "publisher", redirect: url })
		expect((await failureOf(open(url))).message).toContain("redirects more than 5 times")
	})
})

describe("a transfer", () => {
	test("that is cut off goes on where it broke", async () => {
		const offer = await open(publish().url)
		const before = hub.storageLog.length
		hub.trouble({ on: "storage", cutAfterBytes: 70_000 }, 2)
		expect((await readRange(offer, 0, content.length - 1)).equals(content)).toBe(true)
		const ranges = hub.storageLog.slice(before).map(({ headers }) => headers.range)
		expect(ranges).toHaveLength(3)
		expect(ranges[0]).toBe(`bytes=0-${content.length - 1}`)
		for (const range of ranges.slice(1)) expect(range).not.toMatch(/^bytes=0-/)
	})

	test("whose link expires asks the publisher for a new one, also in the middle", async () => {
		const offer = await open(publish().url)
		expect(hub.publisherLog).toHaveLength(1)
		await readRange(offer, 0, 9)
		expect(hub.publisherLog).toHaveLength(1)
		hub.trouble({ on: "storage", cutAfterBytes: 50_000 }, 1)
		const [first, ...others] = await Promise.all([readRange(offer, 0, content.length - 1), hub.expireLinks()])
		expect(others).toHaveLength(1)
		expect(first.equals(content)).toBe(true)
		expect(hub.publisherLog.length).toBeGreaterThan(1)
	})

	test.each([false, true])("of a file that was replaced in between is no mixture", async (ignored) => {
		if (ignored) hub.trouble({ on: "storage", ignores: "conditions" })
		const offer = await open(publish().url)
		publish({ content: makeModel(300_000, 2) })
		hub.expireLinks()
		await expect(readRange(offer, 0, 99)).rejects.toBeInstanceOf(ObjectChanged)
	})

	test("of a file that the publisher gives itself notices its replacement too", async () => {
		const offer = await open(publish({ direct: true }).url)
		publish({ content: makeModel(300_000, 2), direct: true })
		await expect(readRange(offer, 0, 99)).rejects.toBeInstanceOf(ObjectChanged)
	})

	test("that an overloaded publisher refuses is tried again, and ends with 4 when it stays so", async () => {
		const { url } = publish()
		hub.trouble({ on: "publisher", status: 503, retryAfterSeconds: 0 }, 2)
		expect((await open(url)).claim?.digest).toBe(digest)
		hub.trouble({ on: "publisher", status: 503, html: true })
		const { message, exitCode } = await failureOf(open(url))
		expect([exitCode, message]).toEqual([4, expect.stringContaining("retry later")])
	})

	test("that is asked to come back much later ends at once", async () => {
		const { url } = publish()
		hub.trouble({ on: "publisher", status: 429, retryAfterSeconds: 3600 })
		expect((await failureOf(open(url))).exitCode).toBe(4)
		expect(hub.publisherLog).toHaveLength(1)
	})

	test("from an address that nobody answers ends with 4", async () => {
		const { url } = publish()
		const gone = await startHuggingFace({})
		await gone[Symbol.asyncDispose]()
		expect((await failureOf(open(url.replace(hub.origin, gone.origin)))).exitCode).toBe(4)
	})
})
