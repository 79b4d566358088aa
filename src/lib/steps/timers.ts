// What runs by itself is set and taken away: systemd timers, or lines for cron where there is no systemd.
import { dirname } from "node:path"
import { exitCodes, OperatorError } from "../errors.ts"
import { command } from "../host/command.ts"
import { isDirectory, isExecutable } from "../host/presence.ts"
import { needed, type Step, satisfied } from "../plan/step.ts"
import { diffLines } from "../stack/diff.ts"
import type { StepContext } from "./context.ts"
import { isOurs, program, type Timer, type TimerFile, timerFiles, unitName } from "./timer-files.ts"

type Where = Pick<StepContext, "host" | "hostConfiguration">

/** What starts timers on this machine. An installed systemd that isn't running starts nothing. */
export async function timersBy({ host }: Where): Promise<"systemd" | "cron"> {
	return (await isDirectory(host.path("/run/systemd/system"))) ? "systemd" : "cron"
}

/**
 * What stands between a timer's runs and their work: nobody is there to say --env and --config, and a run from
 * elsewhere leaves neither behind.
 * @throws {OperatorError} (3) naming the first thing that is missing
 */
export async function requireRunnable({ host, environment, hostConfiguration }: StepContext): Promise<void> {
	const missing = (what: string, hint: string) => new OperatorError(what, { hint })
	if (!(await isExecutable(host.path(program))))
		throw missing(`${program} is missing`, `ln -s /opt/comfyume/*/bin/comfyume ${program}`)
	const names = `${environment.name} ${hostConfiguration.name}`
	const say = `on the host: echo '${names}' >/etc/comfyume/environment`
	const [yaml, own] = ["/etc/comfyume/comfyume.yaml", "/etc/comfyume/environment"]
	for (const [path, hint] of [
		[yaml, `put the configuration there: install -D -m 644 comfyume.yaml ${yaml}`],
		[own, say],
	] as const)
		if (((await host.read(path))?.length ?? 0) === 0)
			throw missing(`${path} is missing: the timer's runs would not know what they are about`, hint)
	const said = (await host.read(own))?.toString().trim().split(/\s+/) ?? []
	if (said[0] !== environment.name || (said[1] ?? hostConfiguration.name) !== hostConfiguration.name)
		throw missing(`${own} says ${said.join(" ")}: the timer's runs would be about that, not ${names}`, say)
}

/** The same as a step, for the timers to require. */
export const runsFindAll = (context: StepContext): Step => ({
	id: "runs",
	title: "what the timers' runs need",
	check: async (report) => {
		if (context.environment.notifications === undefined)
			report.note("nobody is told how runs end: notifications are not configured")
		await requireRunnable(context)
		return satisfied(`${program}, and /etc/comfyume says what it is about`)
	},
	apply: async () => {},
})

/** It is there, as it should be, and enabled. */
export function timerStep(context: StepContext, timer: Timer, requires: readonly string[] = []): Step {
	const { host } = context
	const unit = `${unitName(timer)}.timer`
	return {
		id: `timer-${timer.name}`,
		title: `the timer ${timer.name}`,
		requires,
		async check(report) {
			await requireRunnable(context)
			const { by, files } = await filesHere(context, timer)
			const different: string[] = []
			for (const [path, text] of files) {
				const found = (await host.read(path))?.toString()
				if (found === text) continue
				if (found !== undefined) refuseForeign([path, text], found)
				const change = found === undefined ? "new" : "changed"
				report.change({ change, name: path, diff: diffLines(found ?? "", text) })
				different.push(path)
			}
			if (different.length > 0) return needed(`not there as it should be: ${different.join(", ")}`)
			if (by === "cron") return await cronIsThere(context, timer)
			const off = await offBecause(context, unit)
			return off === undefined ? satisfied(`${unit} is enabled`) : needed(off)
		},
		async apply() {
			const { by, files } = await filesHere(context, timer)
			for (const [path, text] of files) {
				await host.files.makeDirectory(dirname(path), 0o755)
				await host.write(path, text, { mode: 0o644 })
			}
			if (by === "cron") return
			await host.execute(command("systemctl", "daemon-reload"))
			await host.execute(command("systemctl", "enable", unit))
			// A timer that runs already keeps the times of its older file.
			await host.execute(command("systemctl", "restart", unit))
		},
	}
}

/** Nothing of it is there any more: neither its files nor what systemd remembers of it. Logs stay. */
export function timerGone(context: StepContext, timer: Timer): Step {
	const { host } = context
	const unit = unitName(timer)
	const present = () => timerFilesThere(context, timer)
	return {
		id: `timer-${timer.name}`,
		title: `the timer ${timer.name} is gone`,
		async check() {
			const found = await present()
			const name = context.hostConfiguration.name
			const written = new Map([...timerFiles(timer, "systemd", name), ...timerFiles(timer, "cron", name)])
			for (const [path, text] of found) refuseForeign([path, written.get(path) ?? ""], text)
			if (found.length === 0) return satisfied("there is none")
			return needed(found.map(([path]) => path).join(", "))
		},
		async apply() {
			const by = await timersBy(context)
			const systemctl = (...words: string[]) =>
				host.execute(command("systemctl", ...words), { allowedExitCodes: [1, 5] })
			if (by === "systemd") {
				// Also a run that is under way.
				await systemctl("disable", "--now", `${unit}.timer`)
				await systemctl("stop", `${unit}.service`)
			}
			for (const [path] of await present()) await host.files.remove(path)
			// systemd's note of when it last came.
			await host.files.remove(`/var/lib/systemd/timers/stamp-${unit}.timer`)
			if (by !== "systemd") return
			await systemctl("daemon-reload")
			for (const kind of ["service", "timer"]) await systemctl("reset-failed", `${unit}.${kind}`)
		},
	}
}

/** Every file of a timer that there is, systemd's and cron's, with what stands in it. */
export async function timerFilesThere(
	{ host, hostConfiguration }: Where,
	timer: Timer,
): Promise<TimerFile[]> {
	const found: TimerFile[] = []
	for (const by of ["systemd", "cron"] as const)
		for (const [path] of timerFiles(timer, by, hostConfiguration.name)) {
			const text = (await host.read(path))?.toString()
			if (text !== undefined) found.push([path, text])
		}
	return found
}

async function filesHere(
	context: Where,
	timer: Timer,
): Promise<{ by: "systemd" | "cron"; files: TimerFile[] }> {
	const by = await timersBy(context)
	return { by, files: timerFiles(timer, by, context.hostConfiguration.name) }
}

/** Why systemd won't start it; undefined when it will. */
export async function offBecause({ host }: Where, unit: string): Promise<string | undefined> {
	for (const verb of ["is-enabled", "is-active"])
		if (!(await host.test(command("systemctl", verb, "--quiet", unit)))) return `${unit}: ${verb} says no`
	return undefined
}

async function cronIsThere({ host }: Where, timer: Timer) {
	if (!host.standIn && !(await host.test(command("sh", "-c", "command -v cron || command -v crond"))))
		throw new OperatorError("neither systemd nor cron is on this machine: nothing would start the timers", {
			hint: "apt-get install cron",
		})
	return satisfied(`/etc/cron.d/${unitName(timer)} is there`)
}

function refuseForeign([path, written]: TimerFile, found: string): void {
	if (isOurs(found)) return
	const difference = diffLines(written, found).join("; ")
	throw new OperatorError(`${path} was not written by comfyume: ${difference}`, {
		exitCode: exitCodes.refusedByGuard,
		hint: `look at it, then: mv ${path} /root/`,
	})
}
