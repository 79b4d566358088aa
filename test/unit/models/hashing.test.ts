// Files that change, vanish or rot while their digests are taken; parts of a scrub; places held against each other.
import { appendFileSync, chmodSync, mkdirSync, mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import fc from "fast-check"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { comparePlaces } from "../../../src/lib/models/compare.ts"
import { compareViews } from "../../../src/lib/models/containers.ts"
import { digestCacheFile, openDigestCache } from "../../../src/lib/models/digest-cache.ts"
import type { Hashing } from "../../../src/lib/models/hashing.ts"
import { inOrder } from "../../../src/lib/models/in-order.ts"
import { filesOfPart, parseScrub } from "../../../src/lib/models/scrub.ts"
import { type Verdict, verifyModel } from "../../../src/lib/models/verify.ts"
import { makeModel } from "../../support/model-maker.ts"

let directory = ""
const file = "loras/a.safetensors"
beforeEach(() => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-hashing-"))
	mkdirSync(join(directory, "loras"))
	writeFileSync(join(directory, file), makeModel(5000))
})
afterEach(() => rmSync(directory, { recursive: true }))

const right = "a".repeat(64)
const other = "b".repeat(64)
const entry = { path: file, sha256: right, figures: { from: "a test", verified: true } }
// Later than any file here, so that all of them have settled.
const later = () => new Date(Date.now() + 60_000)

const hashing = (hash: Hashing["hash"], more: Partial<Hashing> = {}): Hashing => ({
	hash,
	together: 2,
	treat: () => "ask",
	now: later,
	...more,
})
const verify = (with_: Hashing, known: typeof entry | undefined = entry) =>
	verifyModel(directory, file, known, { level: "digest", hashing: with_ })

describe("a file that is hashed", () => {
	test("and written to meanwhile is not judged, and not remembered", async () => {
		const cache = await openDigestCache(join(directory, "cache.json"), later)
		const verdict = await verify(
			hashing(
				async (path) => {
					appendFileSync(path, "more")
					return right
				},
				{ cache },
			),
		)
		expect(verdict).toMatchObject({ status: "unknown", right: false })
		expect(verdict.because).toMatch(/changed while it was read/)
		const again = await verify(hashing(async () => other, { cache }))
		expect(again.status).not.toBe("ok")
	})

	test("and replaced meanwhile by one with the same size and time is not judged", async () => {
		const at = new Date("2026-01-01T00:00:00Z")
		utimesSync(join(directory, file), at, at)
		const verdict = await verify(
			hashing(async (path) => {
				rmSync(path)
				writeFileSync(path, makeModel(5000, 2))
				utimesSync(path, at, at)
				return right
			}),
		)
		expect(verdict).toMatchObject({ status: "unknown", right: false })
	})

	test("and taken away meanwhile is missing", async () => {
		const verdict = await verify(
			hashing(async () => Promise.reject(Object.assign(new Error("gone"), { code: "ENOENT" }))),
		)
		expect(verdict).toMatchObject({ status: "missing", right: false })
	})

	test("on a disk that fails is unknown, with the system's words; a stopped run is no verdict", async () => {
		const failing = hashing(async () => Promise.reject(Object.assign(new Error("EIO: i/o"), { code: "EIO" })))
		expect(await verify(failing)).toMatchObject({
			status: "unknown",
			because: "it can't be read: EIO: i/o",
			right: false,
		})
		await expect(verify(hashing(async () => Promise.reject(new Error("stopped"))))).rejects.toThrow("stopped")
	})

	test("and may not be read, or lies where nobody may look, is unknown and not right", async () => {
		const asNobody = async (look: () => Promise<Verdict>) => {
			// Nothing is closed to root.
			const root = process.getuid?.() === 0
			if (root) process.seteuid?.(65_534)
			try {
				return await look()
			} finally {
				if (root) process.seteuid?.(0)
			}
		}
		const look = () => asNobody(() => verifyModel(directory, file, undefined, { level: "structure" }))
		chmodSync(directory, 0o755)
		chmodSync(join(directory, file), 0o000)
		const closed = await look()
		expect(closed).toMatchObject({ status: "unknown", tier: "none", right: false })
		expect(closed.because).toMatch(/can't be read: EACCES/)
		chmodSync(join(directory, "loras"), 0o000)
		expect(await look()).toMatchObject({ status: "unknown", tier: "none", right: false })
		chmodSync(join(directory, "loras"), 0o755)
	})

	test("and rots on the disk is told without a manifest, each time anew", async () => {
		const cacheFile = join(directory, "cache.json")
		const treat = () => "hash" as const
		const cache = await openDigestCache(cacheFile, later)
		const first = await verifyModel(directory, file, undefined, {
			level: "digest",
			hashing: hashing(async () => right, { cache, treat }),
		})
		expect(first.status).toBe("ok")
		await cache.save()
		for (const _ of [1, 2]) {
			const reopened = await openDigestCache(cacheFile, later)
			const verdict = await verifyModel(directory, file, undefined, {
				level: "digest",
				hashing: hashing(async () => other, { cache: reopened, treat }),
			})
			expect(verdict).toMatchObject({ status: "digest-mismatch", right: false })
			expect(verdict.because).toMatch(/changed by themselves/)
			await reopened.save()
		}
	})
})

test("two runs that note digests at once lose none, and files that are gone are forgotten", async () => {
	const cacheFile = digestCacheFile(directory, "/models")
	const identity = { device: "1", inode: "2", sizeBytes: 3, modifiedNs: "4", changedNs: "5" }
	const [one, two] = [await openDigestCache(cacheFile, later), await openDigestCache(cacheFile, later)]
	await one.note("a", identity, { sha256: right, startedAt: later() })
	await two.note("b", identity, { sha256: other, startedAt: later() })
	await one.save()
	await two.save()
	const both = await openDigestCache(cacheFile, later)
	expect([both.find("a", identity)?.sha256, both.find("b", identity)?.sha256]).toEqual([right, other])
	for (const key of ["device", "inode", "modifiedNs", "changedNs"] as const)
		expect(both.find("a", { ...identity, [key]: "9" })).toBeUndefined()
	expect(both.find("a", { ...identity, sizeBytes: 9 })).toBeUndefined()
	await both.save(new Set(["b"]))
	const rest = await openDigestCache(cacheFile, later)
	expect([rest.find("a", identity), rest.find("b", identity)?.sha256]).toEqual([undefined, other])
	expect(digestCacheFile(directory, "/others")).not.toBe(cacheFile)
})

test("a digest is remembered from two seconds after the last change of bytes or rights", async () => {
	const cache = await openDigestCache(join(directory, "cache.json"), later)
	const changedMs = Date.parse("2026-01-01T00:00:00Z")
	const changed = `${changedMs}000000`
	for (const [path, modifiedNs, changedNs] of [
		["a", changed, "0"],
		["b", "0", changed],
	] as const) {
		const identity = { device: "1", inode: "2", sizeBytes: 3, modifiedNs, changedNs }
		const noteAfter = (ms: number) =>
			cache.note(path, identity, { sha256: right, startedAt: new Date(changedMs + ms) })
		await noteAfter(1999)
		expect(cache.find(path, identity)).toBeUndefined()
		await noteAfter(2000)
		expect(cache.find(path, identity)?.sha256).toBe(right)
	}
})

describe("the parts of a scrub", () => {
	test("hold every file once, and none more than its share and the largest file", () => {
		const sizes = fc.dictionary(fc.string({ minLength: 1 }), fc.nat(1_000_000), { noNullPrototype: true })
		fc.assert(
			fc.property(sizes, fc.integer({ min: 1, max: 40 }), (files, parts) => {
				const all = new Map(Object.entries(files))
				const total = [...all.values()].reduce((sum, size) => sum + size, 0)
				const largest = Math.max(0, ...all.values())
				const found = Array.from({ length: parts }, (_, index) =>
					filesOfPart(all, { part: index + 1, parts }),
				)
				expect(found.flatMap((part) => [...part]).sort()).toEqual([...all.keys()].sort())
				for (const part of found) {
					const bytes = [...part].reduce((sum, path) => sum + (all.get(path) ?? 0), 0)
					expect(bytes).toBeLessThanOrEqual(total / parts + largest + 1)
				}
			}),
		)
	})

	test.each(["0/7", "8/7", "1", "1/0", "a/b", "-1/7", "01/7", "1/7 "])("are not named by %j", (text) => {
		expect(() => parseScrub(text)).toThrow(/names no part/)
	})
})

test("results come in order, no more at once than allowed, and a failure ends it where it stands", async () => {
	let running = 0
	let most = 0
	const work = (value: number) => async () => {
		most = Math.max(most, ++running)
		await new Promise((resolve) => setTimeout(resolve, 10 - value))
		running--
		if (value === 5) throw new Error("five")
		return value
	}
	const found: number[] = []
	const works = [1, 2, 3, 4, 5, 6, 7, 8].map(work)
	await expect(
		(async () => {
			for await (const value of inOrder(works, 3)) found.push(value)
		})(),
	).rejects.toThrow("five")
	expect(found).toEqual([1, 2, 3, 4])
	expect({ most, running }).toEqual({ most: 3, running: 0 })
})

test("a place of the right size isn't blamed for another's wrong one; without a known size both are", () => {
	const listings = [
		{ place: "share", files: new Map([["vae/a.safetensors", 5]]) },
		{ place: "r2", files: new Map([["vae/a.safetensors", 7]]) },
	]
	const verdict: Verdict = {
		...{ path: "vae/a.safetensors", status: "ok", tier: "structure", because: "", sizeBytes: 5 },
		...{ needed: true, right: true },
	}
	const { compare } = comparePlaces(listings, [])
	const known = { path: "vae/a.safetensors", sizeBytes: 5, figures: { from: "a test", verified: true } }
	expect(compare("share", verdict, known).status).toBe("ok")
	expect(compare("share", verdict, { path: "vae/a.safetensors" }).status).toBe("differs")
})

test("a broken link on the share is no stale listing", () => {
	const views = new Map([["comfy-user001", new Map<string, number>()]])
	expect(compareViews(views, new Map([["vae/a.safetensors", undefined]]))).toEqual([])
	expect(compareViews(views, new Map([["vae/a.safetensors", 5]]))).toHaveLength(1)
})
