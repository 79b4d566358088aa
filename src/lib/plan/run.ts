// The runner: check, apply, check again. It alone decides what a step's outcome is.
import { type ExitCode, exitCodes, messageOf, OperatorError } from "../errors.ts"
import { type Ahead, checkAhead, inTurnOnly } from "./ahead.ts"
import { type EventBody, eventsVersion, type Outcome, type Reporter } from "./events.ts"
import { inLanes } from "./lanes.ts"
import type { Finding, Following, Plan, Report, Step, SummaryRow } from "./step.ts"

export type RunOptions = {
	/** Stop after the checks and print the findings. */
	dryRun: boolean
	/** Nothing is ever applied: whatever is not satisfied is a failure. */
	checksOnly?: boolean
	/** Wall clock; gives the events their times. */
	now: () => Date
	/** Aborted by a signal or a lost connection; a step that is under way is expected to notice and throw. */
	signal: AbortSignal
	reporter: Reporter
}

export type RunResult = {
	exitCode: ExitCode
	outcomes: ReadonlyMap<string, Outcome>
}

type StepResult = { outcome: Outcome; because: string; hint?: string; exitCode?: ExitCode }

/**
 * Runs a plan from its first step to its last, lanes side by side. A satisfied step isn't applied; an applied one is checked again, and
 * anything but *satisfied* is a failure, whatever the tools said. A failed step blocks those that require it and no
 * others. Doesn't throw for a step's failure: the exit code tells. `unknown` before `apply` is applied (the second
 * check decides); in a dry run it counts as a failure, since nothing may be claimed about it.
 */
export async function runPlan(plan: Plan, options: RunOptions): Promise<RunResult> {
	const { dryRun, checksOnly = false, now, signal, reporter } = options
	const startedAt = now().getTime()
	const emit = (body: EventBody) => {
		try {
			reporter.event({ version: eventsVersion, at: now().toISOString(), ...body })
		} catch {
			// A broken screen never changes the work's result.
		}
	}
	const results = new Map<string, StepResult>()
	const order: string[] = []
	let warned = false
	const runOne = async (step: Step, ahead: Ahead) => {
		const stepStartedAt = now().getTime()
		// A step is checked more than once, and finds the same again; it is told once.
		const told = new Set<string>()
		const emitOnce = (body: EventBody) => {
			const text = JSON.stringify(body)
			if (!told.has(text)) emit(body)
			told.add(text)
		}
		const report: Report = {
			progress: (progress) => emit({ event: "progress", step: step.id, ...progress }),
			note: (text) => emitOnce({ event: "note", step: step.id, level: "info", text }),
			warn: (text) => {
				warned = true
				emitOnce({ event: "note", step: step.id, level: "warning", text })
			},
			model: (facts) => emit({ event: "model", step: step.id, ...facts }),
			workflow: (facts) => emit({ event: "workflow", step: step.id, ...facts }),
			modelPaths: (facts) => emit({ event: "model-paths", step: step.id, ...facts }),
			container: (facts) => emit({ event: "container", step: step.id, ...facts }),
			change: (facts) => emitOnce({ event: "change", step: step.id, ...facts }),
			log: (line) => emit({ event: "log", step: step.id, ...line }),
			timer: (facts) => emit({ event: "timer", step: step.id, ...facts }),
			fileSystem: (facts) => emit({ event: "file-system", step: step.id, ...facts }),
			drill: (facts) => emit({ event: "drill", step: step.id, ...facts }),
			document: (text) => emit({ event: "document", step: step.id, text }),
		}
		const result = signal.aborted
			? { outcome: "aborted" as const, because: "the run was stopped before this step" }
			: (blockedBy(step, results) ??
				(await runStep(step, report, {
					...{ dryRun, checksOnly, signal, emit, ahead },
					plannedBefore: plannedBefore(step, results),
				})))
		results.set(step.id, result)
		emit({
			event: "step",
			step: step.id,
			outcome: result.outcome,
			because: result.because,
			...(step.asked === undefined ? {} : { asked: step.asked }),
			...(result.hint === undefined ? {} : { hint: result.hint }),
			durationMs: now().getTime() - stepStartedAt,
		})
	}

	const { command, environment, host, place } = plan
	emit({ event: "plan", ...{ command, environment, host, place, dryRun }, steps: told(plan.steps) })
	let impossible: StepResult | undefined
	for (let part: Following | undefined = plan; part !== undefined; ) {
		rejectBadOrder(command, part.steps, results)
		if (part !== plan) emit({ event: "steps", steps: told(part.steps) })
		for (const note of part.notes ?? []) emit({ event: "note", ...note })
		order.push(...part.steps.map(({ id }) => id))
		const ahead = plan.checksAhead === true ? checkAhead(part.steps) : inTurnOnly
		await inLanes(part.steps, (step) => runOne(step, ahead))
		await ahead.forget()
		if (part.following === undefined) break
		try {
			signal.throwIfAborted()
			const touched = [...results.values()].some(({ outcome }) => outcome !== "satisfied")
			part = await part.following({ touched })
		} catch (error) {
			// All steps so far may be right: what was to come after them is not.
			if (signal.aborted) {
				impossible = { outcome: "aborted", because: messageOf(error) }
				break
			}
			impossible = failureOf(error)
			const { because: message, hint, exitCode = exitCodes.incomplete } = impossible
			emit({ event: "error", message, exitCode, ...(hint === undefined ? {} : { hint }) })
			break
		}
	}

	const all = [...results.values(), ...(impossible === undefined ? [] : [impossible])]
	const ofSteps = exitCodeOf(all, { warned, signal })
	const closing = closingOf(plan, { exitCode: ofSteps, dryRun })
	if (closing.error !== undefined) emit({ event: "error", message: closing.error, exitCode: exitCodes.bug })
	const exitCode = closing.error === undefined ? ofSteps : exitCodes.bug
	const count = (outcome: Outcome) =>
		[...results.values()].filter((result) => result.outcome === outcome).length
	emit({
		event: "end",
		exitCode,
		satisfied: count("satisfied"),
		applied: count("applied"),
		planned: count("planned"),
		failed: count("failed") + count("blocked") + count("aborted"),
		durationMs: now().getTime() - startedAt,
		summary: closing.summary,
		...(closing.next === undefined ? {} : { next: closing.next }),
	})
	return {
		exitCode,
		outcomes: new Map(
			order.flatMap((id) => {
				const result = results.get(id)
				return result === undefined ? [] : [[id, result.outcome] as const]
			}),
		),
	}
}

const told = (steps: readonly Step[]) =>
	steps.map(({ id, title, lane }) => ({ id, title, ...(lane === undefined ? {} : { lane }) }))

async function runStep(
	step: Step,
	report: Report,
	run: {
		dryRun: boolean
		checksOnly: boolean
		/** Required steps that a dry run would apply: what holds now says nothing about then. */
		plannedBefore: readonly string[]
		signal: AbortSignal
		emit: (body: EventBody) => void
		ahead: Ahead
	},
): Promise<StepResult> {
	try {
		const before = await checkStep(step, report, run.emit, run.ahead.take(step, report))
		const later = run.dryRun && step.lasting !== true ? run.plannedBefore : []
		if (before.state === "satisfied" && later.length > 0)
			return { outcome: "planned", because: `${before.because}; comes again after ${later.join(", ")}` }
		if (before.state === "satisfied") return { outcome: "satisfied", because: before.because }
		if (run.checksOnly) return { outcome: "failed", ...withoutState(before) }
		if (run.dryRun) {
			return { outcome: before.state === "needed" ? "planned" : "failed", ...withoutState(before) }
		}
		await run.ahead.forget()
		run.signal.throwIfAborted()
		run.emit({ event: "applying", step: step.id })
		await step.apply(report)
		run.signal.throwIfAborted()
		const after = await checkStep(step, report, run.emit)
		if (after.state === "satisfied") return { outcome: "applied", because: after.because }
		return {
			outcome: "failed",
			...withoutState(after),
			because: `applied, and still not right: ${after.because}`,
		}
	} catch (error) {
		if (run.signal.aborted) return { outcome: "aborted", because: messageOf(error) }
		return failureOf(error)
	}
}

/** @param known its finding, asked for before its turn */
async function checkStep(
	step: Step,
	report: Report,
	emit: (body: EventBody) => void,
	known?: Promise<Finding>,
): Promise<Finding> {
	emit({ event: "checking", step: step.id })
	const finding = await (known ?? step.check(report))
	emit({ event: "checked", step: step.id, finding })
	return finding
}

function withoutState(finding: Finding): { because: string; hint?: string } {
	const { state: _, ...rest } = finding
	return rest
}

function failureOf(error: unknown): StepResult {
	if (!(error instanceof OperatorError)) {
		return { outcome: "failed", because: messageOf(error), exitCode: exitCodes.bug }
	}
	return {
		outcome: "failed",
		because: error.message,
		exitCode: error.exitCode,
		...(error.hint === undefined ? {} : { hint: error.hint }),
	}
}

function plannedBefore(step: Step, results: ReadonlyMap<string, StepResult>): string[] {
	return (step.requires ?? []).filter((id) => results.get(id)?.outcome === "planned")
}

function blockedBy(step: Step, results: ReadonlyMap<string, StepResult>): StepResult | undefined {
	const missing = (step.requires ?? []).filter((id) => {
		const outcome = results.get(id)?.outcome
		return outcome === "failed" || outcome === "blocked" || outcome === "aborted"
	})
	if (missing.length === 0) return undefined
	return { outcome: "blocked", because: `waits for ${missing.join(", ")}, which failed` }
}

/** A requirement that stands later in the plan, or nowhere, can't be honoured: a mistake in the plan, caught at once. */
function rejectBadOrder(
	command: string,
	steps: readonly Step[],
	before: ReadonlyMap<string, StepResult>,
): void {
	const earlier = new Set(before.keys())
	for (const step of steps) {
		if (earlier.has(step.id)) throw new Error(`plan ${command}: two steps are called ${step.id}`)
		for (const id of step.requires ?? []) {
			if (!earlier.has(id))
				throw new Error(`plan ${command}: ${step.id} requires ${id}, which does not come before it`)
		}
		earlier.add(step.id)
	}
}

// A mistake in the table must not hide how the steps ended.
function closingOf(
	plan: Plan,
	ended: { exitCode: ExitCode; dryRun: boolean },
): { summary: SummaryRow[]; next?: string; error?: string } {
	try {
		const next = plan.next?.(ended)
		return { summary: [...(plan.summary?.() ?? [])], ...(next === undefined ? {} : { next }) }
	} catch (error) {
		return { summary: [], error: messageOf(error) }
	}
}

/**
 * One code for the whole run. What stopped it says it best; a rollback that failed is the worst there is, and a bug must
 * be reported, not worked around. When all failures say the same, that code (`unreachable`, `no space`); a mixture is
 * `incomplete`.
 */
function exitCodeOf(
	results: readonly StepResult[],
	{ warned, signal }: { warned: boolean; signal: AbortSignal },
): ExitCode {
	const failed = results.filter(({ outcome }) => outcome === "failed")
	const codes = new Set(failed.map(({ exitCode }) => exitCode ?? exitCodes.incomplete))
	if (results.some(({ outcome }) => outcome === "aborted")) {
		const reason: unknown = signal.reason
		return reason instanceof OperatorError ? reason.exitCode : exitCodes.incomplete
	}
	for (const worst of [exitCodes.rollbackFailed, exitCodes.bug]) if (codes.has(worst)) return worst
	const [only] = codes
	if (codes.size > 1) return exitCodes.incomplete
	return only ?? (warned ? exitCodes.incomplete : exitCodes.done)
}
