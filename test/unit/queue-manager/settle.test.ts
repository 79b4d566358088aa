import fc from "fast-check"
import { expect, test } from "vitest"
import type { MediaFinding } from "../../../src/lib/formats/media.ts"
import type { OutputNode } from "../../../src/queue-manager/outputs/prefix.ts"
import { type SeenFile, settle } from "../../../src/queue-manager/outputs/settle.ts"

const png: MediaFinding = { kind: "png", state: "whole" }
const mp4: MediaFinding = { kind: "mp4", state: "whole" }
const growing: MediaFinding = { kind: "mp4", state: "unfinished", because: "no moov" }
const strange: MediaFinding = { kind: "unknown", state: "unknown", because: "its kind isn't known" }
const broken: MediaFinding = { kind: "png", state: "damaged", because: "a sum is wrong" }

const node = (id: string, writes: OutputNode["writes"] = "anything"): OutputNode => ({
	node: id,
	token: id,
	classType: "SaveImage",
	writes,
})
const file = (
	finding: MediaFinding | undefined,
	changedAtMs = 0,
	more: Partial<SeenFile> = {},
): SeenFile => ({
	name: `9~x_${changedAtMs}`,
	node: "9",
	finding,
	changedAtMs,
	isMissing: false,
	...more,
})
const at = (nowMs: number, files: SeenFile[], nodes = [node("9")], changedAtMs = 0) =>
	settle({ files, nodes, changedAtMs: Math.max(changedAtMs, ...files.map((one) => one.changedAtMs)) }, nowMs)

test.each([
	["a picture", png, 3_000],
	["a film", mp4, 10_000],
	["what is of no known kind", strange, 10_000],
])("%s is done when it has been quiet long enough, and not a moment before", (_, finding, quietMs) => {
	expect(at(quietMs - 1, [file(finding)])).toMatchObject({ state: "waiting" })
	expect(at(quietMs, [file(finding)])).toMatchObject({ state: "done" })
})

test("a film that is unfinished is waited for, however quiet it is", () => {
	expect(at(500_000, [file(growing)])).toEqual({ state: "waiting", because: "9~x_0: no moov" })
})

test("a later picture of a batch starts the quiet anew", () => {
	expect(at(4_000, [file(png), file(png, 2_000)])).toMatchObject({ state: "waiting" })
	expect(at(5_000, [file(png), file(png, 2_000)])).toMatchObject({ state: "done" })
})

test("a film beside a picture makes both wait as long as the film does", () => {
	expect(at(9_999, [file(png), file(mp4)])).toMatchObject({ state: "waiting" })
})

test("every expected node needs a file, and a node for films needs a film", () => {
	const two = [node("9"), node("10")]
	expect(at(60_000, [file(png)], two)).toEqual({
		state: "waiting",
		because: "node 10 (SaveImage) has no whole file yet",
	})
	expect(at(60_000, [file(png)], [node("9", "video")])).toMatchObject({ because: /no film yet/ })
	expect(at(60_000, [file(png), file(mp4)], [node("9", "video")])).toMatchObject({ state: "done" })
})

test("what was listed and isn't any more is waited for", () => {
	expect(at(60_000, [file(png, 0, { isMissing: true })])).toMatchObject({ because: /isn't listed now/ })
})

test("what stays damaged is given up by name, and doesn't hold up the rest", () => {
	expect(at(29_999, [file(png), file(broken)])).toMatchObject({ state: "waiting" })
	expect(at(30_000, [file(png), file(broken, 0, { name: "9~bad" })])).toMatchObject({
		state: "done",
		files: [{ finding: png }],
		given: [{ name: "9~bad", because: "9~bad is damaged: a sum is wrong" }],
	})
	expect(at(60_000, [file(broken)])).toMatchObject({ state: "waiting" })
})

test("never done while anything is unfinished, missing, unread or younger than three seconds", () => {
	const finding = fc.constantFrom(png, mp4, growing, strange, broken, undefined)
	const files = fc.array(fc.record({ finding, changedAtMs: fc.nat(40_000), isMissing: fc.boolean() }))
	fc.assert(
		fc.property(files, fc.nat(80_000), (given, nowMs) => {
			const seen = given.map((one, index) =>
				file(one.finding, one.changedAtMs, { ...one, name: `9~${index}` }),
			)
			const settled = at(nowMs, seen)
			if (settled.state === "waiting") return
			expect(settled.files.length).toBeGreaterThan(0)
			for (const one of seen) {
				expect(one.isMissing).toBe(false)
				expect(["whole", "unknown", "damaged"]).toContain(one.finding?.state)
				expect(nowMs - one.changedAtMs).toBeGreaterThanOrEqual(3_000)
			}
		}),
	)
})
