// How evenly users are served, as one number without their names.
import { expect, test } from "vitest"
import { createFairness, jainIndex } from "../../../src/queue-manager/fairness.ts"

test("even is 1, one for all is 1/n, and nobody at all is even", () => {
	expect(jainIndex([])).toBe(1)
	expect(jainIndex([7, 7, 7])).toBe(1)
	expect(jainIndex([9, 0, 0])).toBeCloseTo(1 / 3)
	expect(jainIndex([1, 2, 3])).toBeCloseTo(36 / 42)
})

test("what is longer ago than the window doesn't count", () => {
	const fairness = createFairness(1000)
	for (const atMs of [0, 100, 200]) fairness.served("ann", atMs)
	fairness.served("bob", 900)
	expect(fairness.index(900)).toBeCloseTo(16 / 20)
	expect(fairness.index(1150)).toBe(1)
	expect(fairness.index(5000)).toBe(1)
})
