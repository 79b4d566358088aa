// What became of a run, kept on the host it was about: its lines in a log that grows, and its end as a report. A restore
// that failed at seven in the morning is read there by whoever comes next.
import { appendFile, mkdir, rename, writeFile } from "node:fs/promises"
import { dirname } from "node:path"
import { messageOf } from "../errors.ts"
import type { Event, Reporter } from "../plan/events.ts"
import { plainReporter } from "../plan/reporters/plain.ts"
import type { StepContext } from "./context.ts"

/** Where logs and reports lie on the host. */
export const logDirectory = "/var/log/comfyume"

export type RunLog = {
	/** Takes the run's events, secrets already taken out. */
	reporter: Reporter
	/** Waits until all is written. Gives why it couldn't be, which changes nothing about the run. */
	end(): Promise<string | undefined>
}

type Report = {
	version: 1
	command: string
	environment: string
	host: string
	comfyume: string
	beganAt: string
	endedAt: string
	/** null: it has not ended, or was killed. */
	exitCode: number | null
	steps: { step: string; outcome: string; because: string; hint?: string }[]
	errors: { message: string; hint?: string }[]
}

/** Opens `/var/log/comfyume/<command>.log`, and `<command>-last.json` for the report. Files are root's alone. */
export function openRunLog(
	{ host, environment, comfyume, now }: Pick<StepContext, "host" | "environment" | "comfyume" | "now">,
	command: string,
): RunLog {
	const logFile = host.path(`${logDirectory}/${command}.log`)
	const reportFile = host.path(`${logDirectory}/${command}-last.json`)
	const report: Report = {
		...{ version: 1, command, environment: environment.name, host: host.name, comfyume },
		...{ beganAt: now().toISOString(), endedAt: "", exitCode: null, steps: [], errors: [] },
	}
	const keep = async () => {
		const text = `${JSON.stringify(report, undefined, "\t")}\n`
		await writeFile(`${reportFile}.partial`, text, { mode: 0o600 })
		await rename(`${reportFile}.partial`, reportFile)
	}
	let failure: unknown
	// Line after line, so that a killed run's log says how far it came.
	let written: Promise<void> = mkdir(dirname(logFile), { recursive: true, mode: 0o750 })
		// At once: a killed run must not leave the one before's report as its own.
		.then(keep)
		.catch((error: unknown) => {
			failure = error
		})
	const append = (text: string) => {
		written = written.then(async () => {
			if (failure !== undefined) return
			await appendFile(logFile, text, { mode: 0o600 }).catch((error: unknown) => {
				failure = error
			})
		})
	}
	const dated = (text: string) => append(`${now().toISOString()} ${text}`)
	const lines = plainReporter({ out: append, talk: dated, interactive: false, columns: 120, color: false })
	const gather = (event: Event) => {
		const hint = "hint" in event && event.hint !== undefined ? { hint: event.hint } : {}
		if (event.event === "step") {
			const { step, outcome, because } = event
			report.steps.push({ step, outcome, because, ...hint })
		} else if (event.event === "error") report.errors.push({ message: event.message, ...hint })
		else if (event.event === "end") report.exitCode = event.exitCode
	}

	return {
		reporter: {
			event(event) {
				lines.event(event)
				gather(event)
			},
			close: async () => {},
		},
		async end() {
			await lines.close()
			await written
			report.endedAt = now().toISOString()
			try {
				if (failure !== undefined) throw failure
				await keep()
				return undefined
			} catch (error) {
				return `what became of this run could not be kept in ${logDirectory}: ${messageOf(error)}`
			}
		},
	}
}
