import { setTimeout as pause } from "node:timers/promises"
import { expect, test } from "vitest"
import { exitCodes, OperatorError } from "../../../src/lib/errors.ts"
import type { EventBody } from "../../../src/lib/plan/events.ts"
import { runPlan } from "../../../src/lib/plan/run.ts"
import { needed, type Step, satisfied } from "../../../src/lib/plan/step.ts"

/** Steps that say what they do while they do it. */
function world() {
	const log: string[] = []
	let checking = 0
	let most = 0
	let applying = false
	const step = (id: string, { right = true, takesMs = 1, throws = false, lane = "" } = {}): Step => {
		let isRight = right
		return {
			...{ id, title: id },
			...(lane === "" ? {} : { lane }),
			check: async (report) => {
				checking++
				most = Math.max(most, checking)
				log.push(`check ${id}`)
				if (applying) log.push(`${id} is asked during a change`)
				await pause(takesMs)
				report.note(`note of ${id}`)
				checking--
				if (throws) throw new OperatorError(`${id} can't be asked`)
				return isRight ? satisfied("right") : needed("not yet")
			},
			apply: async () => {
				log.push(`apply ${id}`)
				if (checking > 0) log.push(`${id} is applied during a check`)
				applying = true
				await pause(5)
				applying = false
				isRight = true
			},
		}
	}
	return { step, log, most: () => most }
}

async function run(steps: readonly Step[], checksAhead: boolean) {
	const events: EventBody[] = []
	const ran = await runPlan(
		{ command: "test", environment: "e", host: "h", place: "here", steps, checksAhead },
		{
			dryRun: false,
			now: () => new Date(0),
			signal: new AbortController().signal,
			reporter: { event: (event) => void events.push(event), close: async () => {} },
		},
	)
	const told = events.flatMap((event) =>
		event.event === "checking" || event.event === "step"
			? [`${event.event} ${event.step}`]
			: event.event === "note"
				? [event.text]
				: [],
	)
	return { exitCode: ran.exitCode, outcomes: Object.fromEntries(ran.outcomes), told }
}

const ids = Array.from({ length: 20 }, (_, index) => `s${index}`)

test("where all is right, checks run side by side, each once, and are told in their order", async () => {
	const { step, log, most } = world()
	// The later ones answer first.
	const steps = ids.map((id, index) => step(id, { takesMs: 20 - index }))
	const ran = await run(steps, true)
	expect(most()).toBe(16)
	expect(log.toSorted()).toEqual(ids.map((id) => `check ${id}`).toSorted())
	expect(ran.told).toEqual(ids.flatMap((id) => [`checking ${id}`, `note of ${id}`, `step ${id}`]))
	expect(ran.exitCode).toBe(0)
})

test("a plan that doesn't ask for it is checked one step after another", async () => {
	const { step, most } = world()
	const ran = await run(
		ids.map((id) => step(id)),
		false,
	)
	expect(most()).toBe(1)
	expect(ran.told).toEqual(ids.flatMap((id) => [`checking ${id}`, `note of ${id}`, `step ${id}`]))
})

test("nothing is changed while a check runs, and what was asked before a change is asked again", async () => {
	const { step, log } = world()
	const steps = [
		step("a"),
		step("b", { right: false, takesMs: 1 }),
		step("c", { takesMs: 30 }),
		...ids.map((id) => step(id)),
	]
	const ran = await run(steps, true)
	expect(log.filter((line) => line.includes("during"))).toEqual([])
	expect(ran.outcomes).toMatchObject({ a: "satisfied", b: "applied", c: "satisfied", s19: "satisfied" })
	const after = log.slice(log.indexOf("apply b") + 1)
	expect(after).toEqual(["check b", "check c", ...ids.map((id) => `check ${id}`)])
	// Behind the first that has something to do, no others were begun.
	expect(log.indexOf("check s17")).toBeGreaterThan(log.indexOf("apply b"))
	expect(ran.told.filter((line) => line === "note of c")).toHaveLength(1)
})

test("a check that throws is its own step's failure, when its turn comes", async () => {
	const { step } = world()
	const ran = await run([step("a", { takesMs: 20 }), step("b", { throws: true }), step("c")], true)
	expect(ran.outcomes).toEqual({ a: "satisfied", b: "failed", c: "satisfied" })
	expect(ran.exitCode).toBe(exitCodes.incomplete)
	expect(ran.told.slice(0, 3)).toEqual(["checking a", "note of a", "step a"])
})

test("lanes go on side by side, and a change in one waits for the checks of the others", async () => {
	const { step, log } = world()
	const lane = (name: string) =>
		["1", "2", "3"].map((number) =>
			step(`${name}${number}`, { lane: name, right: `${name}${number}` !== "y2", takesMs: 5 }),
		)
	const ran = await run([...lane("x"), ...lane("y"), ...lane("z")], true)
	expect(ran.exitCode).toBe(0)
	expect(ran.outcomes).toMatchObject({ y2: "applied", x3: "satisfied", z3: "satisfied" })
	const changeAt = log.indexOf("apply y2")
	expect(log.slice(0, changeAt + 1)).not.toContain("y2 is applied during a check")
})
