// Properties tried with many inputs: as many as their test says, or as COMFYUME_TEST_INPUTS does, which
// `npm run test:nightly` sets to a million.
import { setImmediate } from "node:timers/promises"
import fc from "fast-check"

const asked = process.env["COMFYUME_TEST_INPUTS"]

// A million inputs at once would keep the event loop from telling vitest that the test is alive.
const portion = 2000

/**
 * Tries a property with many inputs, other ones in each portion. A failure names the seed that it comes from; given as
 * the first one, it fails at once again.
 * @param usual how many inputs when nothing else is asked for
 * @throws what fast-check throws for the first input that fails, shrunk; {RangeError} when no number is asked for
 */
export async function assertOften<Input>(
	property: fc.IRawProperty<Input>,
	usual: number,
	firstSeed = Date.now() | 0,
): Promise<void> {
	const inputs = Number(asked ?? usual)
	// No input at all would pass.
	if (!Number.isSafeInteger(inputs) || inputs < 1) throw new RangeError(`COMFYUME_TEST_INPUTS is ${asked}`)
	for (let done = 0; done < inputs; done += portion) {
		await fc.assert(property, { numRuns: Math.min(portion, inputs - done), seed: (firstSeed + done) | 0 })
		await setImmediate()
	}
}
