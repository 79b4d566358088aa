import { expect, test } from "vitest"
import { exitCodes, OperatorError } from "../../../src/lib/errors.ts"
import type { EventBody } from "../../../src/lib/plan/events.ts"
import { runPlan } from "../../../src/lib/plan/run.ts"
import {
	type Following,
	inTurn,
	needed,
	type Plan,
	type Step,
	satisfied,
	within,
} from "../../../src/lib/plan/step.ts"

const done = (id: string, requires: readonly string[] = []): Step => {
	let applied = false
	return {
		...{ id, title: id, requires },
		check: async () => (applied ? satisfied("done") : needed("not yet")),
		apply: async () => {
			applied = true
		},
	}
}
const broken = (id: string): Step => ({
	...{ id, title: id },
	check: async () => needed("broken"),
	apply: async () => {},
})

async function run(steps: readonly Step[], following: Plan["following"], signal?: AbortSignal) {
	const events: EventBody[] = []
	const plan: Plan = { command: "test", environment: "e", host: "h", place: "here", steps }
	const result = await runPlan(following === undefined ? plan : { ...plan, following }, {
		dryRun: false,
		now: () => new Date(0),
		signal: signal ?? new AbortController().signal,
		reporter: { event: (event) => void events.push(event), close: async () => {} },
	})
	return { ...result, events, outcomes: Object.fromEntries(result.outcomes) }
}

test("a later part is worked out when the part before has run, and its steps may require that one's", async () => {
	let world = "before"
	const first: Step = {
		...done("first"),
		apply: async () => {
			world = "after"
		},
	}
	let seen: string | undefined
	const part = async (): Promise<Following> => {
		seen = world
		return {
			steps: [done("second", ["first"])],
			following: async () => ({ steps: [done("third", ["second"])] }),
		}
	}
	const checked: Step = { ...first, check: async () => (world === "after" ? satisfied("") : needed("")) }
	const ran = await run([checked], part)
	expect(seen).toBe("after")
	expect(ran.outcomes).toEqual({ first: "applied", second: "applied", third: "applied" })
	expect(ran.exitCode).toBe(0)
	expect(ran.events.filter(({ event }) => event === "steps")).toHaveLength(2)
})

test("what failed before blocks those of a later part that require it, and no others", async () => {
	const ran = await run([broken("first")], async () => ({ steps: [done("needs", ["first"]), done("other")] }))
	expect(ran.outcomes).toEqual({ first: "failed", needs: "blocked", other: "applied" })
	expect(ran.exitCode).toBe(exitCodes.incomplete)
})

test("a part that can't be worked out ends the run with its reason and its code", async () => {
	const ran = await run([done("first")], async () => {
		throw new OperatorError("the roster can't be read", { exitCode: exitCodes.usage, hint: "look at it" })
	})
	expect(ran.outcomes).toEqual({ first: "applied" })
	expect(ran.exitCode).toBe(exitCodes.usage)
	expect(ran.events.find(({ event }) => event === "error")).toMatchObject({
		message: "the roster can't be read",
		hint: "look at it",
		exitCode: exitCodes.usage,
	})
})

test("after a signal no later part is worked out", async () => {
	const controller = new AbortController()
	const stops: Step = {
		...done("first"),
		apply: async () => controller.abort(new OperatorError("stopped", { exitCode: exitCodes.interrupted })),
	}
	const ran = await run(
		[stops],
		async () => {
			throw new Error("never asked")
		},
		controller.signal,
	)
	expect(ran.exitCode).toBe(exitCodes.interrupted)
})

test.each([
	["after the last step of a part", "before"],
	["while the next part is worked out", "within"],
])("a run that is stopped %s has not done what was to come, whatever was right so far", async (_, when) => {
	const controller = new AbortController()
	const stop = () => controller.abort(new OperatorError("stopped", { exitCode: exitCodes.interrupted }))
	const right: Step = {
		...done("first"),
		check: async () => {
			if (when === "before") stop()
			return satisfied("as it should be")
		},
	}
	const ran = await run(
		[right],
		async () => {
			stop()
			// As a program that was killed in the middle, which is no error of an operator's.
			throw new Error("ended by SIGTERM")
		},
		controller.signal,
	)
	expect(ran.outcomes).toEqual({ first: "satisfied" })
	expect(ran.exitCode).toBe(exitCodes.interrupted)
	expect(ran.events.at(-1)).toMatchObject({ event: "end", exitCode: exitCodes.interrupted })
})

test("two parts can't have a step of one name", async () => {
	await expect(run([done("one")], async () => ({ steps: [done("one")] }))).rejects.toThrow(/two steps/)
})

test("steps within another plan keep what they require of each other, and get what all require", () => {
	const [one, two] = within(
		"stack",
		[done("files"), { ...done("redis", ["files", "user"]), lane: "door" }],
		["home"],
	)
	expect(one).toMatchObject({ id: "stack/files", requires: ["home"] })
	expect(two).toMatchObject({
		id: "stack/redis",
		lane: "stack/door",
		requires: ["home", "stack/files", "user"],
	})
})

test("parts in turn: one without steps is passed over, and what it notes is said with the next", async () => {
	const order: string[] = []
	const part = (name: string, steps: readonly Step[], text?: string) => async (): Promise<Following> => {
		order.push(name)
		return { steps, ...(text === undefined ? {} : { notes: [{ level: "info", text }] }) }
	}
	const whole = await inTurn([
		part("none", [], "nothing to do"),
		part("first", [done("first")]),
		part("none either", [], "nor here"),
		part("last", [done("last", ["first"])]),
	])
	// Nothing behind the first part with steps has been asked for yet.
	expect(order).toEqual(["none", "first"])
	expect(whole.notes).toEqual([{ level: "info", text: "nothing to do" }])
	const ran = await run(whole.steps, whole.following)
	expect(ran.outcomes).toEqual({ first: "applied", last: "applied" })
	expect(order).toEqual(["none", "first", "none either", "last"])
	expect(ran.events.flatMap((event) => (event.event === "note" ? [event.text] : []))).toEqual(["nor here"])
})
