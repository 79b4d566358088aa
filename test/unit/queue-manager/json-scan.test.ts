// The scanner says yes to what JSON.parse reads and no to all else, and finds members where they stand.
import { setImmediate } from "node:timers/promises"
import fc from "fast-check"
import { expect, test } from "vitest"
import { isFilledObject, scanJson } from "../../../src/queue-manager/http/json-scan.ts"
import { runs } from "../../support/runs.ts"

const parses = (text: string) => {
	try {
		const value: unknown = JSON.parse(text)
		return typeof value === "object" && value !== null && !Array.isArray(value)
	} catch {
		return false
	}
}
const scans = (text: string) =>
	scanJson(Buffer.from(text)).then(
		() => true,
		() => false,
	)

test("finds every member, as JSON.parse would give it", async () => {
	await fc.assert(
		fc.asyncProperty(fc.dictionary(fc.string(), fc.jsonValue()), fc.nat(3), async (object, indent) => {
			const bytes = Buffer.from(JSON.stringify(object, undefined, indent))
			const { members } = await scanJson(bytes)
			const found = [...members].map(([name, { start, end }]) => [
				name,
				JSON.parse(bytes.toString("utf8", start, end)),
			])
			expect(found).toEqual(Object.entries(JSON.parse(bytes.toString())))
		}),
		{ numRuns: runs(300) },
	)
})

test("says no to exactly what JSON.parse says no to, one change away from JSON", async () => {
	const letters = fc.constantFrom(...'{}[]",:0-.eE\\u\n\t truefalsn1'.split(""))
	await fc.assert(
		fc.asyncProperty(
			fc.dictionary(fc.string(), fc.jsonValue(), { maxKeys: 4 }),
			fc.nat(),
			letters,
			fc.boolean(),
			async (object, where, letter, instead) => {
				const text = JSON.stringify(object)
				const at = where % text.length
				const changed = text.slice(0, at) + letter + text.slice(at + (instead ? 1 : 0))
				// Half of a pair of surrogates can't be sent.
				fc.pre(changed.isWellFormed())
				expect([changed, await scans(changed)]).toEqual([changed, parses(changed)])
			},
		),
		{ numRuns: runs(2000) },
	)
})

test("takes the last of two members with one name, and a name however it is escaped", async () => {
	const bytes = Buffer.from('{"a":1,"\\u0061":22, "__proto__": {"x": 1}}')
	const { members } = await scanJson(bytes)
	expect([...members.keys()]).toEqual(["a", "__proto__"])
	const { start = 0, end = 0 } = members.get("a") ?? {}
	expect(bytes.toString("utf8", start, end)).toBe("22")
})

test("counts the kinds of nodes wherever they stand", async () => {
	const nodes = {
		1: { class_type: "KSampler" },
		2: { class_type: "KSampler" },
		3: { class_type: "SaveImage" },
	}
	const { classTypes } = await scanJson(Buffer.from(JSON.stringify({ workflow: nodes })))
	expect(Object.fromEntries(classTypes)).toEqual({ KSampler: 2, SaveImage: 1 })
})

test("refuses what is nested too deep, and what is no UTF-8", async () => {
	await expect(scanJson(Buffer.from(`{"a":${"[".repeat(100_000)}`))).rejects.toThrow(/nested deeper/)
	await expect(scanJson(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]))).rejects.toThrow(/UTF-8/)
})

test("lets others work while it reads megabytes", async () => {
	const bytes = Buffer.from(JSON.stringify({ workflow: Array.from({ length: 200_000 }, (_, n) => ({ n })) }))
	let turns = 0
	let done = false
	const scanned = scanJson(bytes).finally(() => {
		done = true
	})
	while (!done) {
		await setImmediate()
		turns += 1
	}
	await scanned
	expect(turns).toBeGreaterThan(10)
})

test("knows an object with members from an empty one and from all else", async () => {
	const filled = (text: string) => isFilledObject(Buffer.from(text), { start: 0, end: text.length })
	expect(['{"a":1}', "{ }", "{}", "[1]", '"x"', "null"].map(filled)).toEqual([
		true,
		false,
		false,
		false,
		false,
		false,
	])
})
