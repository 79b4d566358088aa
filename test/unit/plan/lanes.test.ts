// Steps side by side: what waits for what, and that everything else is as it is one after another.
import { describe, expect, test } from "vitest"
import { OperatorError } from "../../../src/lib/errors.ts"
import { type Event, eventSchema } from "../../../src/lib/plan/events.ts"
import { runPlan } from "../../../src/lib/plan/run.ts"
import { needed, type Step, satisfied } from "../../../src/lib/plan/step.ts"
import { poll } from "../../support/poll.ts"

const until = (holds: () => boolean) =>
	poll(holds, { what: "a step's turn", deadlineMs: 20_000, intervalMs: 1 })

/** Steps whose `apply` ends when the test says so. */
function world() {
	const log: string[] = []
	const gates = new Map<string, PromiseWithResolvers<void>>()
	const step = (id: string, more: Partial<Step> = {}): Step => {
		const gate = Promise.withResolvers<void>()
		gates.set(id, gate)
		let right = false
		return {
			id,
			title: id,
			check: async () => (right ? satisfied("there") : needed("missing")),
			apply: async () => {
				log.push(`begin ${id}`)
				await gate.promise
				log.push(`end ${id}`)
				right = true
			},
			...more,
		}
	}
	return {
		log,
		step,
		end: (id: string) => gates.get(id)?.resolve(),
		fail: (id: string) => gates.get(id)?.reject(new OperatorError(`${id} broke`)),
		begun: (...ids: string[]) => until(() => ids.every((id) => log.includes(`begin ${id}`))),
	}
}

function start(steps: readonly Step[], { dryRun = false, signal = new AbortController().signal } = {}) {
	const events: Event[] = []
	const plan = { command: "start", environment: "sandbox", host: "box", place: "a test", steps }
	const ended = runPlan(plan, {
		...{ dryRun, signal, now: () => new Date() },
		reporter: { event: (event) => void events.push(event), close: async () => {} },
	})
	return { ended, events }
}

describe("steps of different lanes", () => {
	test("run side by side, those of one lane one after another", async () => {
		const { step, log, end, begun } = world()
		const { ended } = start([
			step("a1", { lane: "a" }),
			step("a2", { lane: "a" }),
			step("b1", { lane: "b" }),
			step("b2", { lane: "b" }),
		])
		await begun("a1", "b1")
		end("b1")
		await begun("b2")
		expect(log).toEqual(["begin a1", "begin b1", "end b1", "begin b2"])
		for (const id of ["a1", "a2", "b2"]) end(id)
		expect([...(await ended).outcomes]).toEqual(["a1", "a2", "b1", "b2"].map((id) => [id, "applied"]))
	})

	test("wait for the step without a lane before them, and the one behind waits for them all", async () => {
		const { step, log, end, begun } = world()
		const { ended } = start([
			step("first"),
			step("a", { lane: "a" }),
			step("b", { lane: "b" }),
			step("last"),
			step("c", { lane: "a" }),
		])
		await begun("first")
		end("first")
		await begun("a", "b")
		end("a")
		await until(() => log.includes("end a"))
		expect(log).not.toContain("begin last")
		end("b")
		await begun("last")
		expect(log).not.toContain("begin c")
		end("last")
		end("c")
		expect((await ended).exitCode).toBe(0)
	})

	test("wait for what they require in another lane", async () => {
		const { step, log, end, begun } = world()
		const { ended } = start([
			step("a1", { lane: "a" }),
			step("b1", { lane: "b" }),
			step("b2", { lane: "b", requires: ["a1"] }),
		])
		await begun("a1", "b1")
		end("b1")
		await until(() => log.includes("end b1"))
		expect(log).not.toContain("begin b2")
		end("a1")
		end("b2")
		expect((await ended).exitCode).toBe(0)
	})
})

describe("a step that fails in a lane", () => {
	test("blocks its own lane where that requires it, and no other", async () => {
		const { step, log, end, fail, begun } = world()
		const { ended } = start([
			step("a1", { lane: "a" }),
			step("a2", { lane: "a", requires: ["a1"] }),
			step("b1", { lane: "b" }),
			step("b2", { lane: "b", requires: ["b1"] }),
			step("last"),
		])
		await begun("a1", "b1")
		fail("a1")
		for (const id of ["b1", "b2", "last"]) end(id)
		const { exitCode, outcomes } = await ended
		expect(Object.fromEntries(outcomes)).toEqual({
			...{ a1: "failed", a2: "blocked", b1: "applied", b2: "applied", last: "applied" },
		})
		expect(log).not.toContain("begin a2")
		expect(exitCode).toBe(3)
	})
})

describe("a run with lanes", () => {
	test("that is stopped ends all steps that are under way, and begins no other", async () => {
		const controller = new AbortController()
		const { step, log, begun } = world()
		const apply = (id: string) => () => {
			log.push(`begin ${id}`)
			return new Promise<void>((_, reject) => {
				controller.signal.addEventListener("abort", () => reject(controller.signal.reason))
			})
		}
		const { ended } = start(
			[
				step("a1", { lane: "a", apply: apply("a1") }),
				step("a2", { lane: "a" }),
				step("b1", { lane: "b", apply: apply("b1") }),
				step("last"),
			],
			{ signal: controller.signal },
		)
		await begun("a1", "b1")
		controller.abort(new OperatorError("stopped by SIGTERM", { exitCode: 143 }))
		const { exitCode, outcomes } = await ended
		expect(new Set(outcomes.values())).toEqual(new Set(["aborted"]))
		expect(log).toEqual(["begin a1", "begin b1"])
		expect(exitCode).toBe(143)
	})

	test("says of every step in which lane it is, and each step's events in their order", async () => {
		const { step, end } = world()
		const ids = ["a1", "b1", "c1"]
		const { ended, events } = start([...ids.map((id) => step(id, { lane: id })), step("last")])
		for (const id of [...ids, "last"]) end(id)
		await ended
		for (const event of events) expect(eventSchema.parse(event)).toEqual(event)
		expect(events[0]).toMatchObject({
			steps: [
				{ id: "a1", lane: "a1" },
				{ id: "b1", lane: "b1" },
				{ id: "c1", lane: "c1" },
				{ id: "last", title: "last" },
			],
		})
		for (const id of ids)
			expect(events.flatMap((event) => ("step" in event && event.step === id ? [event.event] : []))).toEqual([
				"checking",
				"checked",
				"applying",
				"checking",
				"checked",
				"step",
			])
	})

	test("is told what a dry run would do, and applies nothing", async () => {
		const { step, log } = world()
		const { ended } = start(
			[step("a1", { lane: "a" }), step("a2", { lane: "a", requires: ["a1"] }), step("b1", { lane: "b" })],
			{ dryRun: true },
		)
		expect(new Set((await ended).outcomes.values())).toEqual(new Set(["planned"]))
		expect(log).toEqual([])
	})
})
