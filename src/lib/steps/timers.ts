// What runs by itself: a systemd timer, or a line for cron where there is no systemd.
import { dirname } from "node:path"
import { command } from "../host/command.ts"
import { needed, type Step, satisfied } from "../plan/step.ts"
import type { StepContext } from "./context.ts"

export type Timer = {
	/** As in `comfyume-certificates`: the units' name and the file's below /etc/cron.d. */
	name: string
	/** What it is for, in a few words. */
	about: string
	/** comfyume's own words, as in `["certificates", "renew", "--quiet"]`. */
	words: readonly string[]
	/** The hours of the day at which it comes. */
	hours: readonly number[]
	/** It comes some time in this many minutes from the hour on: not all machines at once. */
	spreadMinutes: number
	requires?: readonly string[]
}

// The link that README asks for: the release's own directory changes with every version.
const program = "/usr/local/bin/comfyume"
const generated = "# Written by comfyume; changes here are lost."

/** By what a comfyume without options knows its configuration and what it runs on, and how it comes there. */
const found = (environment: string, hostName: string) =>
	[
		[
			"/etc/comfyume/comfyume.yaml",
			"put the configuration there: install -D -m 644 comfyume.yaml /etc/comfyume/comfyume.yaml",
		],
		[
			"/etc/comfyume/environment",
			`on the host: echo '${environment} ${hostName}' >/etc/comfyume/environment`,
		],
	] as const

/** It is there, as it should be, and enabled. */
export function timerStep({ host, hostConfiguration, environment }: StepContext, timer: Timer): Step {
	const unit = `${timer.name}.timer`
	const hasSystemd = () => host.test(command("systemctl", "--version"))
	async function whyNot(): Promise<string | undefined> {
		const systemd = await hasSystemd()
		for (const [path, text] of filesOf(timer, systemd, hostConfiguration.name))
			if ((await host.read(path))?.toString() !== text) return `${path} is not there as it should be`
		if (!systemd) return undefined
		for (const verb of ["is-enabled", "is-active"])
			if (!(await host.test(command("systemctl", verb, "--quiet", unit)))) return `${unit}: ${verb} says no`
		return undefined
	}
	return {
		id: `timer-${timer.name}`,
		title: `${timer.about} by itself`,
		requires: timer.requires ?? [],
		async check() {
			if (!(await host.test(command("test", "-x", host.path(program)))))
				return needed(`${program} is missing`, `ln -s /opt/comfyume/*/bin/comfyume ${program}`)
			// Nobody is there to say --env and --config; a run from elsewhere leaves neither behind.
			for (const [path, hint] of found(environment.name, hostConfiguration.name))
				if (!(await host.test(command("test", "-s", host.path(path)))))
					return needed(`${path} is missing: the timer's runs would not know what they are about`, hint)
			const because = await whyNot()
			if (because !== undefined) return needed(because)
			return satisfied((await hasSystemd()) ? `${unit} is enabled` : `/etc/cron.d/${timer.name} is there`)
		},
		async apply() {
			const systemd = await hasSystemd()
			for (const [path, text] of filesOf(timer, systemd, hostConfiguration.name)) {
				await host.files.makeDirectory(dirname(path), 0o755)
				await host.write(path, text, { mode: 0o644 })
			}
			if (!systemd) return
			await host.execute(command("systemctl", "daemon-reload"))
			await host.execute(command("systemctl", "enable", "--now", unit))
		},
	}
}

function filesOf(
	{ name, about, words, hours, spreadMinutes }: Timer,
	systemd: boolean,
	hostName: string,
): [path: string, text: string][] {
	const line = [program, ...words].join(" ")
	if (!systemd) {
		// cron knows no jitter: the host's name decides the minute, so that it is the same each time.
		const minute =
			[...hostName].reduce((sum, letter) => sum + letter.charCodeAt(0), 0) % Math.min(spreadMinutes, 60)
		const log = `/var/log/${name}.log`
		return [
			[
				`/etc/cron.d/${name}`,
				`${generated}\n${minute} ${hours.join(",")} * * * root ${line} >>${log} 2>&1\n`,
			],
		]
	}
	const service = `${generated}
[Unit]
Description=comfyume: ${about}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart=${line}
`
	const timer = `${generated}
[Unit]
Description=comfyume: ${about}

[Timer]
OnCalendar=*-*-* ${hours.map((hour) => String(hour).padStart(2, "0")).join(",")}:00:00
RandomizedDelaySec=${spreadMinutes}m
Persistent=true

[Install]
WantedBy=timers.target
`
	return [
		[`/etc/systemd/system/${name}.service`, service],
		[`/etc/systemd/system/${name}.timer`, timer],
	]
}
