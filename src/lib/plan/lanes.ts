// Which steps wait for which. Steps come one after another; those of different lanes run side by side.
import type { Step } from "./step.ts"

/**
 * Runs every step once. A step without a lane waits for all that stand before it, and all that stand behind it wait for
 * it: a plan without lanes goes from its first step to its last. A step of a lane waits for the one before it in its
 * lane and for those that it requires, and for nothing of other lanes.
 * @param run must not throw for a step's failure: whoever waits goes on, and decides what the failure means
 */
export async function inLanes(steps: readonly Step[], run: (step: Step) => Promise<void>): Promise<void> {
	const ends = new Map<string, Promise<void>>()
	// Since the last step without a lane.
	let lanes = new Map<string, Promise<void>>()
	let side: Promise<void>[] = []
	let before: Promise<void> = Promise.resolve()
	for (const step of steps) {
		const waitsFor =
			step.lane === undefined
				? [before, ...side]
				: [before, lanes.get(step.lane), ...(step.requires ?? []).map((id) => ends.get(id))]
		const end = Promise.all(waitsFor).then(() => run(step))
		ends.set(step.id, end)
		if (step.lane === undefined) {
			before = end
			lanes = new Map()
			side = []
		} else {
			lanes.set(step.lane, end)
			side.push(end)
		}
	}
	await Promise.all(ends.values())
}
