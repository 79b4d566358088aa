import { readFileSync } from "node:fs"
import fc from "fast-check"
import { describe, expect, test } from "vitest"
import { stringify } from "yaml"
import { parseManifest, renderManifest, unknownsOf } from "../../../src/lib/models/manifest.ts"
import { assertOften } from "../../support/properties.ts"

const digest = "0123456789abcdef".repeat(4)
const shipped = readFileSync(new URL("../../../manifests/models.yaml", import.meta.url), "utf8")
const manifestOf = (...models: unknown[]) => stringify({ version: 1, models })
const problemsOf = (text: string) => parseManifest(text).problems ?? []

test("the manifest that comes with comfyume is right, and claims nothing as verified", () => {
	const { manifest } = { manifest: undefined, ...parseManifest(shipped) }
	expect(manifest?.models).toHaveLength(22)
	expect(manifest?.models.some(({ figures }) => figures?.verified)).toBe(false)
	expect(unknownsOf(manifest ?? { version: 1, models: [] })).toHaveLength(22)
})

test("every problem is said at once, each with its line", () => {
	const text = `version: 1
models:
  - path: ../etc/passwd
    sizeBytes: 5
  - path: vae/a.safetensors
    sha256: ABC
    figures: { from: nobody, verified: false }
    colour: red
  - path: vae/A.safetensors
`
	expect(problemsOf(text).map(({ line, path }) => `${line} ${path}`)).toEqual([
		"3 models.0.path",
		"3 models.0.figures",
		"5 models.1",
		"6 models.1.sha256",
		"9 models.2.path",
	])
})

describe("a path is refused", () => {
	test.each([
		["vae/../../secret", /climbs/],
		["vae/./x", /climbs/],
		["/vae/x", /absolute/],
		["vae\\x", /backslash/],
		["vae//x", /empty part/],
		["vae/x ", /space around/],
		["vae/", /empty part/],
		["x.safetensors", /must be <directory>\/<file>.* as in checkpoints\/x.safetensors/],
		["vae/a\nb", /invisible/],
		["vae/a\u202eb", /invisible/],
		["vae/cafe\u0301", /NFC/],
		[`vae/${"x".repeat(1100)}`, /longer/],
	])("%j", (path, message) => {
		expect(problemsOf(manifestOf({ path })).map((problem) => problem.message)).toEqual([
			expect.stringMatching(message),
		])
	})
})

test.each([
	["the same", "vae/a.safetensors", "vae/a.safetensors", /stands twice/],
	["of another case", "vae/Ä.safetensors", "vae/ä.safetensors", /case or in Unicode/],
	["of another Unicode form", "vae/ﬁne.safetensors", "vae/fine.safetensors", /case or in Unicode/],
])("two paths that are one file are refused: %s", (_, one, other, message) => {
	expect(problemsOf(manifestOf({ path: one }, { path: other }))).toEqual([
		{ line: 4, path: "models.1.path", message: expect.stringMatching(message) },
	])
})

test.each([
	["figures that nobody answers for", { sizeBytes: 5 }, /say where/],
	[
		"blocks that are too few",
		{
			sizeBytes: 16_777_217,
			sha256: digest,
			figures: { from: "x", verified: true },
			blocks: { sizeBytes: 16_777_216, sha256: [digest] },
		},
		/have 2/,
	],
	["blocks of a file of no size", { blocks: { sizeBytes: 16_777_216, sha256: [digest] } }, /needs sizeBytes/],
	["an address without TLS", { url: "http://example.test/x" }, /URL/],
	["a size beyond counting", { sizeBytes: 2 ** 60, figures: { from: "x", verified: true } }, /./],
])("%s: refused", (_, more, message) => {
	expect(problemsOf(manifestOf({ path: "vae/a.safetensors", ...more }))[0]?.message).toMatch(message)
})

test("aliases are refused, one as well as so many that they would fill the memory", () => {
	const one = "version: 1\nmodels:\n  - {path: &a vae/x}\n  - {path: vae/y, note: *a}\n"
	expect(problemsOf(one).map(({ message }) => message)).toEqual([
		expect.stringMatching(/aliases are not taken/),
	])
	const layers = Array.from(
		{ length: 30 },
		(_, index) => `a${index + 1}: &a${index + 1} [*a${index}, *a${index}]`,
	)
	expect(problemsOf(["a0: &a0 [x]", ...layers].join("\n"))).toHaveLength(1)
})

const digests = fc.string({ unit: fc.constantFrom(..."0123456789abcdef"), minLength: 64, maxLength: 64 })
// Digests that YAML could take for a number.
const numeric = fc.tuple(fc.nat(9), fc.nat(9)).map(([one, two]) => `${one}e${String(two).repeat(62)}`)

test("what is rendered is read as the same, whatever the digests look like", async () => {
	const model = fc.record({
		sha256: fc.oneof(digests, numeric),
		sizeBytes: fc.integer({ min: 1, max: 2 ** 50 }),
	})
	await assertOften(
		fc.property(fc.array(model, { maxLength: 5 }), (models) => {
			const figures = { from: "yes", verified: true }
			const entries = models.map((one, index) => ({ path: `vae/${index}`, ...one, figures }))
			const manifest = { version: 1 as const, models: entries }
			expect(parseManifest(renderManifest(manifest))).toEqual({ manifest })
			expect(renderManifest({ version: 1, models: entries.toReversed() })).toBe(renderManifest(manifest))
		}),
		300,
	)
})

test("no text makes it throw", async () => {
	const at = fc.nat(shipped.length)
	const cut = fc
		.tuple(at, at, fc.string())
		.map(([from, to, put]) => shipped.slice(0, from) + put + shipped.slice(to))
	const value = fc.json().map((json) => `version: 1\nmodels: ${json}`)
	const text = fc.oneof(fc.string({ unit: "binary" }), value, {
		arbitrary: cut.map((one) => one.slice(-600)),
		weight: 2,
	})
	await assertOften(
		fc.property(text, (input) => {
			const parsed = parseManifest(input)
			expect(parsed.problems === undefined || parsed.problems.length > 0).toBe(true)
			for (const { line, message } of parsed.problems ?? []) {
				expect(line).toBeGreaterThan(0)
				expect(message).not.toBe("")
			}
		}),
		2000,
	)
})
