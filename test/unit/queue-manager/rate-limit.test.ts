// So many at once, then so many a second, each for themselves.
import { expect, test } from "vitest"
import { createRateLimit } from "../../../src/queue-manager/http/rate-limit.ts"

test("a burst is let through, then one at a time as time passes, and others have a burst of their own", () => {
	const may = createRateLimit({ burst: 3, perSecond: 1 })
	const ann = (...times: number[]) => times.map((at) => may("ann", at))
	expect(ann(0, 0, 0, 0)).toEqual([true, true, true, false])
	expect(may("bob", 0)).toBe(true)
	expect(ann(999, 1000, 1001)).toEqual([false, true, false])
	expect(ann(60_000, 60_000, 60_000, 60_000)).toEqual([true, true, true, false])
})
