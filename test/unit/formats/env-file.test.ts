import fc from "fast-check"
import { describe, expect, test } from "vitest"
import { readEnvFile } from "../../../src/lib/formats/env-file.ts"

const valuesOf = (text: string) =>
	Object.fromEntries(readEnvFile(text).entries.map(({ name, value }) => [name, value]))

describe("an env file", () => {
	test.each([
		["a plain value", "A=one", "one"],
		["an exported value", "export A=one", "one"],
		["single quotes, taken as they are", "A='a $b \"c\" \\n # d'", 'a $b "c" \\n # d'],
		["double quotes, with escapes", 'A="a \\"b\\" \\$c \\\\ \\n"', 'a "b" $c \\ \n'],
		["a $, kept as it is", "A=pa$$word$X", "pa$$word$X"],
		["a comment behind the value", "A=one # two", "one"],
		["a comment behind quotes", "A='one' # two", "one"],
		["a # inside the value", "A=one#two", "one#two"],
		["an = inside the value", "A=b=c==", "b=c=="],
		["nothing", "A=", ""],
		["spaces around the line", "  A=one  ", "one"],
		["CRLF", "A=one\r\nB=two\r\n", "one"],
		["a byte order mark", "\uFEFFA=one", "one"],
	])("gives %s", (_, text, value) => {
		expect(valuesOf(text).A).toBe(value)
		expect(readEnvFile(text).problems).toEqual([])
	})

	test.each([
		["A=p$x", /holds a \$/],
		["A=p#x", /holds a #/],
		["A=p x", /holds a space/],
		["A=p'x", /holds a quote/],
		["A=1\r\n", /CRLF/],
		["\uFEFFA=1", /byte order mark/],
		["A=1\nA=2", /A stands on line 1 already/],
	])("notes what other readers take differently: %j", (text, note) => {
		expect(
			readEnvFile(text)
				.notes.map(({ message }) => message)
				.join(),
		).toMatch(note)
	})

	test("takes the last of two values of one name", () => {
		expect(readEnvFile("A=1\nB=3\nA=2").entries).toEqual([
			{ name: "B", value: "3", line: 2 },
			{ name: "A", value: "2", line: 3 },
		])
	})

	test.each(["A", "A B=1", "1A=1", "A =1", "=1", "A='x", 'A="x', 'A="x\\"', "A='x'y", "A-B=1", "A=\0"])(
		"refuses %j and names the line",
		(text) => {
			const { entries, problems } = readEnvFile(`# comment\n${text}\nGOOD=1`)
			expect(problems).toHaveLength(1)
			expect(problems[0]?.line).toBe(2)
			expect(entries).toEqual([{ name: "GOOD", value: "1", line: 3 }])
		},
	)

	test("gives back every value that was put in single quotes, with no remark", () => {
		const value = fc.string({ unit: "grapheme" }).filter((text) => !/['\n\r\0]/.test(text))
		fc.assert(
			fc.property(value, (text) => {
				const read = readEnvFile(`NAME='${text}'\n`)
				expect(read).toEqual({ entries: [{ name: "NAME", value: text, line: 1 }], problems: [], notes: [] })
			}),
		)
	})

	test("gives back every value that was put in double quotes with its escapes", () => {
		const value = fc.string({ unit: "binary" }).filter((text) => !/[\r\0]/.test(text))
		fc.assert(
			fc.property(value, (text) => {
				const escaped = text.replace(/["\\$`]/g, "\\$&").replaceAll("\n", "\\n")
				expect(valuesOf(`NAME="${escaped}"`)).toEqual({ NAME: text })
			}),
		)
	})

	test("never throws and never shows a value, whatever it reads", () => {
		const secret = "5ecret-Valu3"
		const noise = fc.constantFrom(
			"'",
			'"',
			"$",
			"#",
			" ",
			"\\",
			"=",
			"\n",
			"\r",
			"\t",
			"export ",
			"A",
			"\uFEFF",
			secret,
		)
		fc.assert(
			fc.property(fc.array(noise, { maxLength: 20 }), (parts) => {
				const { problems, notes, entries } = readEnvFile(`A=${secret}${parts.join("")}`)
				expect(JSON.stringify([problems, notes])).not.toContain(secret)
				expect(new Set(entries.map(({ name }) => name)).size).toBe(entries.length)
			}),
		)
	})
})
