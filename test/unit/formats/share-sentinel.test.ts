import { expect, test } from "vitest"
import { readSentinel, renderSentinel } from "../../../src/lib/formats/share-sentinel.ts"

test("names environments, separated by anything white, with words for people behind #", () => {
	expect(readSentinel("testing staging   # CLONE, not production\r\n\n")).toEqual(["testing", "staging"])
	expect(readSentinel("# production\n")).toEqual([])
	expect(readSentinel(renderSentinel("production"))).toEqual(["production"])
})
