import fc from "fast-check"
import { expect, test } from "vitest"
import { readEnvFile } from "../../../src/lib/formats/env-file.ts"
import { withEntries } from "../../../src/lib/steps/machine/secrets-file.ts"

test("entries take their own lines' places, new ones stand at the end, all else stays as it is", () => {
	const text = "# remark\nA=1\n\n  export B='old'\nC=3\nB=twice"
	expect(
		withEntries(text, [
			{ name: "B", value: "two words" },
			{ name: "D", value: "4" },
		]),
	).toBe("# remark\nA=1\n\nB='two words'\nC=3\nD=4\n")
	expect(withEntries("", [{ name: "A", value: "1" }])).toBe("A=1\n")
})

test("whatever a value holds, it is read back as it was, and the others with it", () => {
	const name = fc.constantFrom("A", "B", "GH_TOKEN", "R2_SECRET_ACCESS_KEY")
	const value = fc
		.string({ unit: "grapheme", minLength: 1, maxLength: 40 })
		.filter((text) => !/['\p{Cc}\p{Cs}]/u.test(text))
	fc.assert(
		fc.property(fc.dictionary(name, value), fc.dictionary(name, value), (before, entries) => {
			const list = (values: Record<string, string>) =>
				Object.entries(values).map(([name, value]) => ({ name, value }))
			const text = withEntries(withEntries("", list(before)), list(entries))
			const { entries: read, problems } = readEnvFile(text)
			expect(problems).toEqual([])
			expect(Object.fromEntries(read.map(({ name, value }) => [name, value]))).toEqual({
				...before,
				...entries,
			})
		}),
	)
})
