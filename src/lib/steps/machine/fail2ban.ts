// fail2ban: whoever guesses at SSH is shut out. What counts is what the running server answers, not what files say.
import { command } from "../../host/command.ts"
import type { LocalHost } from "../../host/local.ts"
import { type Finding, needed, type Step, satisfied } from "../../plan/step.ts"
import type { StepContext } from "../context.ts"

const unit = "fail2ban"
const jail = "sshd"
/** Read after jail.local, which a backup may have brought. */
const ownFile = "/etc/fail2ban/jail.d/comfyume.local"
/** Seconds and tries: at least as strict. */
const strictness = { bantime: 3600, findtime: 600, maxretry: 3 } as const

/** The jail of sshd is live, also after a boot, and no milder than an hour for three tries in ten minutes. */
export function jailIsLive({ host }: StepContext): Step {
	return {
		id: "fail2ban-jail",
		title: "fail2ban watches SSH",
		check: async (): Promise<Finding> => {
			if (host.standIn) return satisfied("a directory stands in for the machine: nothing guards its SSH")
			const wrong = await whatIsWrong(host)
			return wrong === undefined
				? satisfied(`the jail ${jail} is live: ${strictness.maxretry} tries at most`)
				: needed(wrong, `fail2ban-client status ${jail}; journalctl --unit ${unit} --lines 20`)
		},
		apply: async (report) => {
			await host.execute(command("systemctl", "enable", unit))
			// It may be off because its files are wrong, or because nobody started it.
			await host.execute(command("systemctl", "restart", unit), { allowedExitCodes: [1] })
			await answers(host)
			if ((await whatIsWrong(host)) === undefined) return
			await host.files.makeDirectory("/etc/fail2ban/jail.d", 0o755)
			await host.write(ownFile, await ownJail(host), { mode: 0o644 })
			report.note(`the jail ${jail} was not as it should be: ${ownFile} makes it so`)
			await host.execute(command("fail2ban-client", "-t"))
			await host.execute(command("systemctl", "restart", unit))
			await answers(host)
		},
	}
}

/** A started server takes a moment until it answers: it is asked until then, ten seconds at most. */
async function answers(host: LocalHost): Promise<void> {
	const script =
		"for _ in $(seq 100); do fail2ban-client ping >/dev/null 2>&1 && exit 0; sleep 0.1; done; exit 1"
	await host.capture(command("sh", "-c", script), { allowedExitCodes: [1] })
}

async function whatIsWrong(host: LocalHost): Promise<string | undefined> {
	const [active, enabled, status] = await Promise.all([
		host.test(command("systemctl", "is-active", "--quiet", unit)),
		host.test(command("systemctl", "is-enabled", "--quiet", unit)),
		host.test(command("fail2ban-client", "status", jail)),
	])
	if (!active) return `${unit} is not running`
	if (!enabled) return `${unit} would not come back after a reboot`
	if (!status) return `there is no live jail ${jail}`
	const [bantime, findtime, maxretry] = await Promise.all(
		(["bantime", "findtime", "maxretry"] as const).map((name) => ask(host, name)),
	)
	if (bantime === undefined || findtime === undefined || maxretry === undefined)
		return `the jail ${jail} doesn't say how strict it is`
	// -1: for ever.
	if (bantime >= 0 && bantime < strictness.bantime) return `it bans for ${bantime} s, which is too short`
	if (findtime < strictness.findtime) return `it looks back ${findtime} s, which is too short`
	if (maxretry > strictness.maxretry) return `it allows ${maxretry} tries, which are too many`
	return undefined
}

async function ask(host: LocalHost, name: string): Promise<number | undefined> {
	const { stdout, exitCode } = await host.capture(command("fail2ban-client", "get", jail, name), {
		allowedExitCodes: [1, 255],
	})
	const value = Number(stdout.trim())
	return exitCode !== 0 || stdout.trim() === "" || Number.isNaN(value) ? undefined : value
}

async function ownJail(host: LocalHost): Promise<string> {
	// Debian 12 has no syslog any more, and the jail doesn't start without its file.
	const hasLog = await host.test(command("test", "-f", "/var/log/auth.log"))
	return `# Written by comfyume; changes here are lost.
[DEFAULT]
bantime = ${strictness.bantime}
findtime = ${strictness.findtime}
maxretry = 5

[${jail}]
enabled = true
maxretry = ${strictness.maxretry}
${hasLog ? "" : "backend = systemd\n"}`
}
