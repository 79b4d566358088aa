// How often a property is tried: as its test says, or as often as COMFYUME_TEST_RUNS does (`npm run test:nightly`).
import { setImmediate } from "node:timers/promises"
import fc from "fast-check"

const asked = process.env["COMFYUME_TEST_RUNS"]

/** How many inputs a property gets. */
export const runsOf = (usual: number): number => (asked === undefined ? usual : Number(asked))

// A million inputs at once would keep the event loop from telling vitest that the test is alive.
const portion = 2000

/**
 * Tries a property with many inputs, other ones in each portion. A failure names the seed that it comes from.
 * @param usualRuns how many inputs when nothing else is asked for
 * @throws what fast-check throws for the first input that fails, shrunk
 */
export async function assertOften<Input>(
	property: fc.IRawProperty<Input>,
	usualRuns: number,
	firstSeed = Date.now() | 0,
): Promise<void> {
	const runs = runsOf(usualRuns)
	for (let done = 0; done < runs; done += portion) {
		await fc.assert(property, { numRuns: Math.min(portion, runs - done), seed: (firstSeed + done) | 0 })
		await setImmediate()
	}
}
