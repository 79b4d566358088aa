import { describe, expect, test } from "vitest"
import { type ExitCode, OperatorError } from "../../../src/lib/errors.ts"
import { type Event, eventSchema } from "../../../src/lib/plan/events.ts"
import { runPlan } from "../../../src/lib/plan/run.ts"
import { type Finding, needed, type Plan, type Step, satisfied, unknown } from "../../../src/lib/plan/step.ts"

// A small world: a step is right when its id is in here, and apply puts it there.
type World = { right: Set<string>; log: string[] }

const newWorld = (...right: string[]): World => ({ right: new Set(right), log: [] })

function step(world: World, id: string, more: Partial<Step> = {}): Step {
	return {
		id,
		title: `step ${id}`,
		check: async () => {
			world.log.push(`check ${id}`)
			return world.right.has(id) ? satisfied(`${id} is there`) : needed(`${id} is missing`, `look at ${id}`)
		},
		apply: async () => {
			world.log.push(`apply ${id}`)
			world.right.add(id)
		},
		...more,
	}
}

const planOf = (steps: readonly Step[], more: Partial<Plan> = {}): Plan => ({
	command: "restore",
	environment: "sandbox",
	host: "box",
	place: "a test",
	steps,
	...more,
})

async function run(plan: Plan, { dryRun = false, signal = new AbortController().signal } = {}) {
	const events: Event[] = []
	let clockMs = Date.UTC(2026, 0, 1)
	const result = await runPlan(plan, {
		dryRun,
		signal,
		now: () => {
			clockMs += 10
			return new Date(clockMs)
		},
		reporter: { event: (event) => void events.push(event), close: async () => {} },
	})
	const of = <Name extends Event["event"]>(name: Name) =>
		events.filter((event): event is Extract<Event, { event: Name }> => event.event === name)
	return { ...result, events, of, outcomes: Object.fromEntries(result.outcomes), end: of("end")[0] }
}

describe("a step", () => {
	test("that is satisfied is not applied", async () => {
		const world = newWorld("a")
		const { exitCode, outcomes } = await run(planOf([step(world, "a")]))
		expect(world.log).toEqual(["check a"])
		expect(outcomes).toEqual({ a: "satisfied" })
		expect(exitCode).toBe(0)
	})

	test("that is needed is applied and checked again", async () => {
		const world = newWorld()
		const { exitCode, outcomes, of } = await run(planOf([step(world, "a")]))
		expect(world.log).toEqual(["check a", "apply a", "check a"])
		expect(outcomes).toEqual({ a: "applied" })
		expect(of("step")[0]).toMatchObject({ because: "a is there" })
		expect(exitCode).toBe(0)
	})

	test("that was applied without effect has failed, whatever apply said", async () => {
		const world = newWorld()
		const { exitCode, of } = await run(planOf([step(world, "a", { apply: async () => {} })]))
		expect(of("step")[0]).toMatchObject({
			outcome: "failed",
			because: "applied, and still not right: a is missing",
			hint: "look at a",
		})
		expect(exitCode).toBe(3)
	})

	test("about which nothing is known is applied, and the second check decides", async () => {
		const world = newWorld()
		const findings = [unknown("no answer"), satisfied("there")]
		const check = async () => findings.shift() ?? satisfied("there")
		expect((await run(planOf([step(world, "a", { check })]))).outcomes).toEqual({ a: "applied" })
		expect(world.log).toEqual(["apply a"])
	})

	test("about which nothing is known even after it was applied has failed", async () => {
		const check = async (): Promise<Finding> => unknown("no answer")
		const { exitCode, outcomes } = await run(planOf([step(newWorld(), "a", { check })]))
		expect(outcomes).toEqual({ a: "failed" })
		expect(exitCode).toBe(3)
	})

	test("whose first check throws is not applied", async () => {
		const world = newWorld()
		const check = () =>
			Promise.reject(new OperatorError("box is unreachable", { exitCode: 4, hint: "ping box" }))
		const { exitCode, of } = await run(planOf([step(world, "a", { check })]))
		expect(world.log).toEqual([])
		expect(of("step")[0]).toMatchObject({
			outcome: "failed",
			because: "box is unreachable",
			hint: "ping box",
		})
		expect(exitCode).toBe(4)
	})

	test("finds everything right in a second run, and changes nothing", async () => {
		const world = newWorld()
		const plan = planOf([step(world, "a"), step(world, "b", { requires: ["a"] })])
		await run(plan)
		world.log.length = 0
		expect((await run(plan)).outcomes).toEqual({ a: "satisfied", b: "satisfied" })
		expect(world.log).toEqual(["check a", "check b"])
	})
})

describe("a step that failed", () => {
	const failing = (world: World, id: string) =>
		step(world, id, { apply: () => Promise.reject(new OperatorError(`${id} broke`)) })

	test("blocks those that require it, and those that require these, and no others", async () => {
		const world = newWorld()
		const { outcomes, exitCode, end, of } = await run(
			planOf([
				failing(world, "a"),
				step(world, "b", { requires: ["a"] }),
				step(world, "c", { requires: ["b"] }),
				step(world, "d"),
			]),
		)
		expect(outcomes).toEqual({ a: "failed", b: "blocked", c: "blocked", d: "applied" })
		expect(world.log).toEqual(["check a", "check d", "apply d", "check d"])
		expect(of("step")[1]).toMatchObject({ because: "waits for a, which failed" })
		expect(end).toMatchObject({ failed: 3, applied: 1, satisfied: 0, planned: 0 })
		expect(exitCode).toBe(3)
	})

	test("doesn't touch even what would have been right already behind it", async () => {
		const world = newWorld("b")
		const { outcomes } = await run(planOf([failing(world, "a"), step(world, "b", { requires: ["a"] })]))
		expect(outcomes).toEqual({ a: "failed", b: "blocked" })
	})
})

describe("a dry run", () => {
	test("checks every step and applies none", async () => {
		const world = newWorld("b")
		const { outcomes, exitCode, end, of } = await run(
			planOf([step(world, "a"), step(world, "b"), step(world, "c", { requires: ["a"] })]),
			{ dryRun: true },
		)
		expect(world.log).toEqual(["check a", "check b", "check c"])
		expect(outcomes).toEqual({ a: "planned", b: "satisfied", c: "planned" })
		expect(of("step")[0]).toMatchObject({ because: "a is missing", hint: "look at a" })
		expect(of("plan")[0]).toMatchObject({ dryRun: true })
		expect(end).toMatchObject({ planned: 2, satisfied: 1, applied: 0, failed: 0 })
		expect(exitCode).toBe(0)
	})

	test("says that what is right comes again behind what it would apply, unless that lasts", async () => {
		const world = newWorld("b", "c")
		const { outcomes } = await run(
			planOf([
				step(world, "a"),
				step(world, "b", { requires: ["a"] }),
				step(world, "c", { requires: ["a"], lasting: true }),
			]),
			{ dryRun: true },
		)
		expect(outcomes).toEqual({ a: "planned", b: "planned", c: "satisfied" })
	})

	test("claims nothing about what is unknown: it fails", async () => {
		const check = async (): Promise<Finding> => unknown("no answer")
		const { outcomes, exitCode } = await run(planOf([step(newWorld(), "a", { check })]), { dryRun: true })
		expect(outcomes).toEqual({ a: "failed" })
		expect(exitCode).toBe(3)
	})
})

describe("a run that is stopped", () => {
	test("lets the step under way end as stopped, and touches no later one", async () => {
		const world = newWorld()
		const controller = new AbortController()
		const apply = async () => {
			controller.abort(new OperatorError("stopped by SIGTERM", { exitCode: 143 }))
			controller.signal.throwIfAborted()
		}
		const { outcomes, of, exitCode } = await run(planOf([step(world, "a", { apply }), step(world, "b")]), {
			signal: controller.signal,
		})
		expect(world.log).toEqual(["check a"])
		expect(outcomes).toEqual({ a: "aborted", b: "aborted" })
		expect(of("step")[0]).toMatchObject({ because: "stopped by SIGTERM" })
		expect(exitCode).toBe(143)
	})

	test("is noticed although apply took no notice", async () => {
		const world = newWorld()
		const controller = new AbortController()
		const apply = async () => {
			world.right.add("a")
			controller.abort(new OperatorError("stopped by SIGINT", { exitCode: 130 }))
		}
		const { outcomes, exitCode } = await run(planOf([step(world, "a", { apply })]), {
			signal: controller.signal,
		})
		expect(outcomes).toEqual({ a: "aborted" })
		expect(exitCode).toBe(130)
	})

	test("applies nothing when it was stopped during the check", async () => {
		const world = newWorld()
		const controller = new AbortController()
		const check = async () => {
			controller.abort(new OperatorError("stopped by SIGHUP", { exitCode: 129 }))
			return needed("missing")
		}
		await run(planOf([step(world, "a", { check })]), { signal: controller.signal })
		expect(world.log).toEqual([])
	})

	test("without a code of its own ends with 3", async () => {
		const controller = new AbortController()
		controller.abort()
		const world = newWorld()
		const { outcomes, exitCode } = await run(planOf([step(world, "a")]), { signal: controller.signal })
		expect(world.log).toEqual([])
		expect(outcomes).toEqual({ a: "aborted" })
		expect(exitCode).toBe(3)
	})

	test("after its last step has ended is as good as any other", async () => {
		const controller = new AbortController()
		const summary = () => {
			controller.abort()
			return []
		}
		const { exitCode } = await run(planOf([step(newWorld(), "a")], { summary }), {
			signal: controller.signal,
		})
		expect(exitCode).toBe(0)
	})
})

describe("the exit code", () => {
	const fails = (exitCode: ExitCode) => () => Promise.reject(new OperatorError("broke", { exitCode }))
	const bug = () => Promise.reject(new TypeError("undefined is not a function"))
	const warns: Step["apply"] = async (report) => report.warn("something is odd")
	const cases: readonly [what: string, checks: readonly (() => Promise<never>)[], code: number][] = [
		["0 when nothing failed", [], 0],
		["4 when all that failed was unreachable", [fails(4), fails(4)], 4],
		["7 when all that failed lacked space", [fails(7)], 7],
		["3 when failures differ", [fails(4), fails(6)], 3],
		["1 when one of them is a bug", [fails(4), bug], 1],
		["10 when a rollback failed, whatever else did", [fails(4), fails(10)], 10],
	]
	test.each(cases)("is %s", async (_, checks, code) => {
		const world = newWorld("good")
		const steps = checks.map((check, index) => step(world, `step-${index}`, { check }))
		expect((await run(planOf([step(world, "good"), ...steps]))).exitCode).toBe(code)
	})

	test("is 3 when all went well with a warning", async () => {
		const world = newWorld()
		const apply: Step["apply"] = async (report) => {
			world.right.add("a")
			await warns(report)
		}
		const { exitCode, outcomes, of } = await run(planOf([step(world, "a", { apply })]))
		expect(outcomes).toEqual({ a: "applied" })
		expect(of("note")[0]).toMatchObject({ level: "warning", step: "a" })
		expect(exitCode).toBe(3)
	})

	test("is not changed by a note", async () => {
		const world = newWorld("a")
		const check: Step["check"] = async (report) => {
			report.note("by the way")
			return satisfied("there")
		}
		expect((await run(planOf([step(world, "a", { check })]))).exitCode).toBe(0)
	})

	test("is 0 for a plan without steps", async () => {
		expect((await run(planOf([]))).exitCode).toBe(0)
	})
})

describe("a plan in the wrong order", () => {
	test.each([
		["a requirement that comes later", ["a", "b"], { a: ["b"] }],
		["a requirement that is nowhere", ["a"], { a: ["x"] }],
		["a step that requires itself", ["a"], { a: ["a"] }],
		["two steps of one name", ["a", "a"], {}],
	] as const)("is refused before anything is touched: %s", async (_, ids, requirements) => {
		const world = newWorld()
		const requires = (id: string) =>
			new Map<string, readonly string[]>(Object.entries(requirements)).get(id) ?? []
		const steps = ids.map((id) => step(world, id, { requires: requires(id) }))
		await expect(run(planOf(steps))).rejects.toThrow(/^plan restore: /)
		expect(world.log).toEqual([])
	})
})

describe("the events", () => {
	test("follow the schema, begin with the plan, and end with the counts, the table and the next command", async () => {
		const world = newWorld("b")
		const apply: Step["apply"] = async (report) => {
			report.progress({ doneBytes: 1, totalBytes: 2, from: "share" })
			world.right.add("a")
		}
		const row = { artifact: "a", source: "share", snapshot: "x", verified: "sha256", ok: true }
		const { events } = await run(
			planOf([step(world, "a", { apply }), step(world, "b")], {
				summary: () => [row],
				next: ({ exitCode, dryRun }) => `next ${exitCode} ${dryRun}`,
			}),
		)
		expect(events.map((event) => `${event.event} ${"step" in event ? event.step : ""}`.trim())).toEqual([
			"plan",
			"checking a",
			"checked a",
			"applying a",
			"progress a",
			"checking a",
			"checked a",
			"step a",
			"checking b",
			"checked b",
			"step b",
			"end",
		])
		expect(events.at(-1)).toMatchObject({
			summary: [row],
			next: "next 0 false",
			exitCode: 0,
			applied: 1,
			satisfied: 1,
		})
		for (const event of events) expect(eventSchema.parse(JSON.parse(JSON.stringify(event)))).toEqual(event)
	})

	test("that the reporter chokes on don't change the result", async () => {
		const world = newWorld()
		const result = await runPlan(planOf([step(world, "a")]), {
			dryRun: false,
			signal: new AbortController().signal,
			now: () => new Date(0),
			reporter: {
				event: () => {
					throw new Error("write EPIPE")
				},
				close: async () => {},
			},
		})
		expect(result.exitCode).toBe(0)
		expect(world.right).toContain("a")
	})

	test("are made although the closing facts can't be", async () => {
		const { end, exitCode } = await run(
			planOf([step(newWorld(), "a")], {
				summary: () => {
					throw new Error("a bug in the table")
				},
			}),
		)
		expect(end).toMatchObject({ applied: 1, summary: [] })
		expect(exitCode).toBe(1)
	})
})
