import { expect, test } from "vitest"
import { closest } from "../../../src/lib/formats/closest.ts"

const environments = ["production", "staging", "testing"]

test.each([
	["prodution", "production"],
	["porduction", "production"],
	["Staging", "staging"],
	["tseting", "testing"],
])("%s is near to %s", (written, meant) => {
	expect(closest(written, environments)).toBe(meant)
})

test.each(["", "x", "sandbox", "development"])("%j is near to none of them", (written) => {
	expect(closest(written, environments)).toBeUndefined()
})
