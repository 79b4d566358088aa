// What became of the timers: whether each is there, when it last came and how that run ended, and when it comes again.
import { command, withOptions } from "../host/command.ts"
import type { TimerFacts } from "../plan/events.ts"
import { needed, type Step, satisfied } from "../plan/step.ts"
import { formatSeconds } from "../ui/format.ts"
import { ageSeconds, type StepContext } from "./context.ts"
import { logFile, type Timer, timerFiles, unitName } from "./timer-files.ts"
import { offBecause, timersBy } from "./timers.ts"

/** When it last came and how that ended, as far as the machine still knows. */
type Runs = { lastRunAt?: Date; result?: string; nextRunAt?: Date; trouble?: string }

// A timer comes a few minutes late, and cron's log is written when a run has ended.
const lateSeconds = 30 * 60

/**
 * One timer, checks only. Not right is one that is missing, is not as it was written, is off, was late, or whose last
 * run ended with anything but 0 (or 5: another run had the lock).
 */
export function timerState(context: StepContext, timer: Timer): Step {
	const { host, hostConfiguration } = context
	const again = `comfyume timers install ${context.spoken}`
	return {
		id: `timer-${timer.name}`,
		title: timer.name,
		async check(report) {
			const by = await timersBy(context)
			const facts = (state: string, because: string, runs: Runs = {}): TimerFacts => ({
				timer: timer.name,
				by,
				state,
				...(runs.lastRunAt === undefined ? {} : { lastRunAt: runs.lastRunAt.toISOString() }),
				...(runs.result === undefined ? {} : { result: runs.result }),
				...(runs.nextRunAt === undefined ? {} : { nextRunAt: runs.nextRunAt.toISOString() }),
				right: because === "",
				because,
			})
			const tell = (told: TimerFacts, hint: string) => {
				report.timer(told)
				return told.right ? satisfied(told.result ?? "it has not come yet") : needed(told.because, hint)
			}
			for (const [path, text] of timerFiles(timer, by, hostConfiguration.name)) {
				const found = (await host.read(path))?.toString()
				if (found === undefined) return tell(facts("missing", `there is no ${path}`), again)
				if (found !== text) return tell(facts("changed", `${path} is not as it was written`), again)
			}
			const unit = unitName(timer)
			const off = by === "systemd" ? await offBecause(context, `${unit}.timer`) : undefined
			if (off !== undefined) return tell(facts("off", off), again)
			const runs = await (by === "systemd" ? runsOfUnit(context, unit) : runsInLog(context, timer))
			const look = by === "systemd" ? `journalctl --unit ${unit} --lines 30` : `tail -n 30 ${logFile(timer)}`
			return tell(facts("on", runs.trouble ?? "", runs), look)
		},
		apply: async () => {},
	}
}

async function runsOfUnit({ host }: StepContext, unit: string): Promise<Runs> {
	const show = async (name: string, properties: string) => {
		const asked = command("systemctl", "show", name, `--property=${properties}`)
		const { stdout } = await host.capture(withOptions(asked, { environment: { TZ: "UTC" } }))
		return new Map(
			stdout.split("\n").map((line) => {
				const [key = "", ...value] = line.split("=")
				return [key, value.join("=")] as const
			}),
		)
	}
	const timer = await show(`${unit}.timer`, "LastTriggerUSec,NextElapseUSecRealtime")
	const service = await show(
		`${unit}.service`,
		"ActiveState,Result,ExecMainCode,ExecMainStatus,ExecMainStartTimestamp",
	)
	const lastRunAt = timeOf(service.get("ExecMainStartTimestamp")) ?? timeOf(timer.get("LastTriggerUSec"))
	const nextRunAt = timeOf(timer.get("NextElapseUSecRealtime"))
	const runs: Runs = {
		...(lastRunAt === undefined ? {} : { lastRunAt }),
		...(nextRunAt === undefined ? {} : { nextRunAt }),
	}
	if (service.get("ActiveState") === "activating") return { ...runs, result: "under way" }
	if (nextRunAt === undefined) return { ...runs, trouble: "systemd has no time at which it comes next" }
	// Since the machine booted it has not run: systemd knows when it last came, and not how that ended.
	if (timeOf(service.get("ExecMainStartTimestamp")) === undefined) return runs
	const outcome = service.get("Result") ?? ""
	const status = service.get("ExecMainStatus") ?? ""
	// `timeout`, `signal`, `oom-kill`: no exit code of ours.
	const byItself = outcome === "exit-code" || outcome === "success"
	return { ...runs, ...resultOf(byItself ? `exit ${status}` : `${outcome} (${status})`) }
}

/** systemd's `Fri 2026-11-27 08:17:00 UTC`; nothing where there is none. */
function timeOf(text: string | undefined): Date | undefined {
	const [, day, time] = /^\w+ (\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d) UTC$/.exec(text ?? "") ?? []
	return day === undefined ? undefined : new Date(`${day}T${time}Z`)
}

/** The log's last line of an end; and whether cron has come at all since it should have. */
async function runsInLog(context: StepContext, timer: Timer): Promise<Runs> {
	const { host, now } = context
	const file = logFile(timer)
	const text = (await host.read(file))?.toString() ?? ""
	const [, status, at] = [...text.matchAll(/^exit (\d+) at (\S+)$/gm)].at(-1) ?? []
	const lastRunAt = at === undefined || Number.isNaN(Date.parse(at)) ? undefined : new Date(at)
	const since = lastRunAt ?? (await changedAt(context, `/etc/cron.d/${unitName(timer)}`))
	const ended = lastRunAt === undefined ? {} : { lastRunAt, ...resultOf(`exit ${status}`) }
	if (since === undefined) return ended
	const longest = longestGapSeconds(timer) + timer.limitMinutes * 60 + lateSeconds
	if (ageSeconds({ now }, since) <= longest) return ended
	const last = lastRunAt === undefined ? "has not come since it was installed" : "last ended"
	return { ...ended, trouble: `it ${last} ${formatSeconds(ageSeconds({ now }, since))} ago: does cron run?` }
}

const resultOf = (result: string): Pick<Runs, "result" | "trouble"> => {
	if (result === "exit 0") return { result }
	if (result === "exit 5") return { result: "exit 5: another run had the lock" }
	return { result, trouble: `the last run ended with ${result}` }
}

async function changedAt({ host }: StepContext, path: string): Promise<Date | undefined> {
	const asked = command("stat", "--format=%Y", host.path(path))
	const { stdout, exitCode } = await host.capture(asked, { allowedExitCodes: [1] })
	return exitCode === 0 ? new Date(Number(stdout.trim()) * 1000) : undefined
}

/** The longest time from one of its hours to the next, in seconds. */
function longestGapSeconds({ hours }: Timer): number {
	if (hours === undefined) return 3600
	const gaps = hours.map((hour, index) => (hours[index + 1] ?? (hours[0] ?? 0) + 24) - hour)
	return Math.max(...gaps) * 3600
}
