import fc from "fast-check"
import { describe, expect, test } from "vitest"
import {
	formatBytes,
	formatDuration,
	formatRate,
	formatSeconds,
	formatTable,
	printable,
	wrapText,
} from "../../../src/lib/ui/format.ts"

test.each([
	[0, "0 B"],
	[1023, "1023 B"],
	[1024, "1.0 KiB"],
	[1536, "1.5 KiB"],
	[1024 ** 2 - 1, "1.0 MiB"],
	[12 * 1024 ** 2, "12.0 MiB"],
	[1.25 * 1024 ** 3, "1.25 GiB"],
	[3 * 1024 ** 4, "3.00 TiB"],
])("%d bytes are shown as %s", (sizeBytes, shown) => {
	expect(formatBytes(sizeBytes)).toBe(shown)
	expect(formatRate(sizeBytes)).toBe(`${shown}/s`)
})

test.each([
	[0, "0 s"],
	[59.4, "59 s"],
	[59.5, "1 min"],
	[725, "12 min 5 s"],
	[3600, "1 h"],
	[3605, "1 h"],
	[11_520, "3 h 12 min"],
	[86_400 * 5 + 3600 * 3, "5 d 3 h"],
])("%d seconds are shown as %s", (seconds, shown) => {
	expect(formatSeconds(seconds)).toBe(shown)
})

test.each([
	[0, "0.0 s"],
	[840, "0.8 s"],
	[9949, "9.9 s"],
	[9950, "10 s"],
	[123_000, "2 min 3 s"],
])("%d ms of work are shown as %s", (durationMs, shown) => {
	expect(formatDuration(durationMs)).toBe(shown)
})

describe("foreign text", () => {
	test.each([
		["\u001B[31mred\u001B[0m", "red"],
		["\u001B]0;title\u0007after", "after"],
		["a\r\nb\tc", "a b c"],
		["a\u0008\u0000b", "ab"],
		["right\u202Eleft", "rightleft"],
		["  Zoë — ✔  ", "Zoë — ✔"],
	])("%j is printed as %j", (text, shown) => {
		expect(printable(text)).toBe(shown)
	})

	test("never holds a control character or a second line afterwards", () => {
		fc.assert(
			fc.property(fc.string({ unit: "binary" }), (text) => {
				expect(printable(text)).not.toMatch(/\p{Cc}/u)
			}),
		)
	})
})

describe("a table", () => {
	const columns = [
		{ key: "name", heading: "name" },
		{ key: "place", heading: "place" },
		{ key: "proof", heading: "proof" },
	] as const
	const rows = [
		{ name: "home", place: "share", proof: "sha256 and 14 members" },
		{ name: "ufw", place: "r2", proof: "sha256" },
	]

	test("has its columns aligned and nothing at the ends of its lines", () => {
		expect(formatTable(columns, rows, 80)).toEqual([
			"name  place  proof",
			"home  share  sha256 and 14 members",
			"ufw   r2     sha256",
		])
	})

	test("breaks its last column where only that is too long", () => {
		expect(formatTable(columns, rows, 30)).toEqual([
			"name  place  proof",
			"home  share  sha256 and 14",
			"             members",
			"ufw   r2     sha256",
		])
	})

	test("closes its gaps before it gives up being one", () => {
		expect(formatTable(columns, rows, 24)).toEqual([
			"name place proof",
			"home share sha256 and 14",
			"           members",
			"ufw  r2    sha256",
		])
	})

	test("becomes a list of blocks where it would be too narrow", () => {
		expect(formatTable(columns, rows, 20)).toEqual([
			"home",
			"  place  share",
			"  proof  sha256 and",
			"         14 members",
			"ufw",
			"  place  r2",
			"  proof  sha256",
		])
	})

	test("leaves out a column in which nothing stands", () => {
		expect(formatTable(columns, [{ name: "home", place: "", proof: "x" }], 80)).toEqual([
			"name  proof",
			"home  x",
		])
	})

	test("is never wider than the terminal, whatever stands in it", () => {
		const word = fc.string({ minLength: 0, maxLength: 60 }).map((text) => printable(text))
		const row = fc.record({ name: word, place: word, proof: word })
		fc.assert(
			fc.property(
				fc.array(row, { minLength: 1, maxLength: 4 }),
				fc.integer({ min: 24, max: 120 }),
				(some, width) => {
					for (const line of formatTable(columns, some, width))
						expect([...line].length).toBeLessThanOrEqual(width)
				},
			),
		)
	})
})

describe("a wrapped text", () => {
	test("is broken between words, and its later lines are indented", () => {
		expect(wrapText("one two three four", 9)).toEqual(["one two", "  three", "  four"])
	})

	test("cuts a word that is longer than a line", () => {
		expect(wrapText("abcdefghij", 6)).toEqual(["abcdef", "  ghij"])
	})

	test("loses no letter and no line is too wide", () => {
		const text = fc
			.array(fc.string({ unit: "grapheme", maxLength: 30 }), { maxLength: 12 })
			.map((words) => printable(words.join(" ")))
		fc.assert(
			fc.property(text, fc.integer({ min: 5, max: 60 }), (whole, width) => {
				const lines = wrapText(whole, width)
				expect(lines.join("").replaceAll(" ", "")).toBe(whole.replaceAll(" ", ""))
				for (const line of lines) expect([...line].length).toBeLessThanOrEqual(width)
			}),
		)
	})
})
