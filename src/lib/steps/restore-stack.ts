// The stack in a restore: its files from the roster that came back, its containers from the images that came back, and
// the timers. Images that no snapshot brought are built.
import { stackOf } from "../config/environment.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { type Following, needed, type Step, within } from "../plan/step.ts"
import { files } from "../stack/description.ts"
import type { StepContext } from "./context.ts"
import type { RestoreRun } from "./restore-options.ts"
import { openStack } from "./stack.ts"
import { planUsers } from "./stack-files.ts"
import { planStart, revisionOf } from "./stack-start.ts"
import { backupTimers, certificatesTimer } from "./timer-files.ts"
import { runsFindAll, timerStep } from "./timers.ts"

/** What this part's steps are called by: `stack/files`, `stack/redis`. */
const part = "stack"

/** As for `comfyume start`. */
const deadlineMs = 240_000

type StackRestore = {
	run: RestoreRun
	/** Nobody is in the roster yet, and that is right. */
	first: boolean
	again: string
	/** Steps of earlier parts without which nothing of this makes sense. */
	requires: readonly string[]
}

/**
 * Everything that is rendered, and the users' directories.
 * @throws {OperatorError} (3) when the roster has not come back: new passwords for everybody are never the answer
 */
export async function stackFiles(
	context: StepContext,
	{ run, first, again, requires }: StackRestore,
): Promise<Following> {
	const { environment } = context
	if (environment.stack === undefined)
		return {
			steps: [],
			notes: [
				{
					level: "info",
					text: `comfyume.yaml describes no stack of ${environment.name}: no container is started. One with all defaults is: stack: {}`,
				},
			],
		}
	const { roster, rendered, stack } = await openStack(context, run.hide)
	if (stack.role === "worker") {
		if (run.dryRun && !rendered) {
			const where = `${stack.configuration.directory}/${files.environment}`
			const text = `the workers are started when their tokens have come back to ${where}`
			return { steps: [], notes: [{ level: "info", text }] }
		}
	} else if (roster.length === 0 && !first) {
		const where = `${stackOf(environment).directory}/${files.credentials}`
		if (run.dryRun)
			return {
				steps: [],
				notes: [{ level: "info", text: `the stack is started when its roster has come back to ${where}` }],
			}
		throw new OperatorError(`nobody is in ${where}: the roster has not come back, and nothing is started`, {
			exitCode: exitCodes.incomplete,
			hint: `comfyume restore ${context.spoken} --only stack; or, where there never was one: comfyume generate-users ${context.spoken}`,
		})
	}
	const users = await planUsers(context, {
		...{ add: [], remove: [], rotate: [], makeDirectories: true },
		again,
	})
	return { steps: within(part, users.steps, requires) }
}

/** Its containers, in the order of a start. */
export async function stackStart(
	context: StepContext,
	{ run, requires }: Pick<StackRestore, "run" | "requires">,
): Promise<Following> {
	if (context.environment.stack === undefined) return { steps: [] }
	const open = await openStack(context, run.hide)
	// Only in a dry run: the files would be written by the part before.
	if (!open.rendered) return { steps: [] }
	const start = await planStart(context, open, {
		...{ only: [], deadlineMs, argv: [] },
		build: {
			packageRoot: run.packageRoot,
			revision: await revisionOf(context),
			onlyMissing: true,
		},
	})
	return { steps: within(`${part}/start`, start.steps, [`${part}/files`, ...requires]) }
}

/** Backups come by themselves, and so does the certificate where an authority issues it. */
export function timerSteps(
	context: StepContext,
	{ machine, dryRun }: { machine: boolean; dryRun: boolean },
): Step[] {
	const { source } = stackOf(context.environment).certificates
	// A GPU host has no door, and no certificate for it.
	const issued = source === "acme" && context.hostConfiguration.role === "app"
	const timers = [...backupTimers, ...(issued ? [certificatesTimer] : [])]
	// What its runs need was put there by the part before.
	const requires = machine ? ["program", "configuration", "secrets"] : []
	const steps = [
		{ ...runsFindAll(context), requires },
		...timers.map((timer) => timerStep(context, timer, ["runs"])),
	]
	return machine && dryRun ? steps.map(sinceMachine) : steps
}

/** In a dry run: what its check misses is what the part before would bring. What it refuses, it refuses then too. */
function sinceMachine(step: Step): Step {
	return {
		...step,
		check: (report) =>
			step.check(report).catch((error: unknown) => {
				if (error instanceof OperatorError && error.exitCode === exitCodes.incomplete)
					return needed(error.message)
				throw error
			}),
	}
}
