// What a timer is made of: a systemd service and its timer, or a line for cron and its log where there is no systemd.

export type Timer = {
	/** What the operator calls it: `backup`. */
	name: string
	/** What it is for, in a few words. */
	about: string
	/** comfyume's own words, as in `["certificates", "renew", "--quiet"]`. */
	words: readonly string[]
	/** The hours of the day at which it comes, in the machine's own time; without them every hour. */
	hours?: readonly number[]
	/** The minute from which on it comes. */
	minute: number
	/** It comes some time in this many minutes, always the same on one machine: not all machines at once. */
	spreadMinutes: number
	/** A run that takes longer is ended: what hangs must not keep the next ones from coming. */
	limitMinutes: number
}

/** The certificate's own timer, set by `certificates issue`. */
export const certificatesTimer: Timer = {
	name: "certificates",
	about: "the certificate is renewed in time",
	words: ["certificates", "renew", "--quiet"],
	hours: [3, 15],
	minute: 0,
	spreadMinutes: 60,
	limitMinutes: 60,
}

/** Those of `timers install`. What is due, and when a drill is, their runs find out by themselves. */
export const backupTimers: readonly Timer[] = [
	{
		name: "backup",
		about: "what is due is backed up",
		words: ["backup", "--scheduled", "--notify", "--quiet"],
		minute: 17,
		spreadMinutes: 10,
		// The first upload of 200 GB of models takes six hours at 10 MB/s.
		limitMinutes: 12 * 60,
	},
	{
		name: "status",
		about: "backups that are missing are said, whatever the backup job says",
		words: ["backup", "status", "--notify", "--quiet"],
		hours: [1, 7, 13, 19],
		// An hourly backup counts as stale half an hour after the hour that it missed.
		minute: 40,
		spreadMinutes: 10,
		limitMinutes: 20,
	},
	{
		name: "retention",
		about: "the share keeps what its classes say",
		words: ["backup", "retention", "--notify", "--quiet"],
		hours: [5],
		minute: 40,
		spreadMinutes: 15,
		// It reads the newest snapshot of everything, images too.
		limitMinutes: 4 * 60,
	},
	{
		name: "drill",
		about: "backups are restored into a sandbox, when that is due",
		words: ["backup", "drill", "--scheduled", "--notify", "--quiet"],
		hours: [4],
		minute: 40,
		spreadMinutes: 15,
		limitMinutes: 6 * 60,
	},
]

/** The link that README asks for: the release's own directory changes with every version. */
export const program = "/usr/local/bin/comfyume"

/** What systemd's units and cron's file are called. */
export const unitName = ({ name }: Pick<Timer, "name">): string => `comfyume-${name}`

/** Where cron's runs write to: what they say, and how each ended. */
export const logFile = ({ name }: Pick<Timer, "name">): string => `/var/log/comfyume/${name}.log`

const generated = "# Written by comfyume; changes here are lost."

/** Whether a file is one of ours, of whichever version: only those are overwritten and removed. */
export const isOurs = (text: string): boolean => text.startsWith(generated)

export type TimerFile = readonly [path: string, text: string]

/** The files that make a timer. Pure. */
export function timerFiles(timer: Timer, by: "systemd" | "cron", hostName: string): TimerFile[] {
	return by === "systemd" ? units(timer) : cronFiles(timer, hostName)
}

function units(timer: Timer): TimerFile[] {
	const { about, words, hours, minute, spreadMinutes, limitMinutes } = timer
	const two = (number: number) => String(number).padStart(2, "0")
	const service = `${generated}
[Unit]
Description=comfyume: ${about}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart=${[program, ...words].join(" ")}
# 5: another run has the lock. This one comes again.
SuccessExitStatus=5
TimeoutStartSec=${limitMinutes}min
Nice=10
IOSchedulingClass=idle
`
	const when = `${generated}
[Unit]
Description=comfyume: ${about}

[Timer]
OnCalendar=*-*-* ${hours === undefined ? "*" : hours.map(two).join(",")}:${two(minute)}:00
RandomizedDelaySec=${spreadMinutes}min
FixedRandomDelay=true
Persistent=true

[Install]
WantedBy=timers.target
`
	return [
		[`/etc/systemd/system/${unitName(timer)}.service`, service],
		[`/etc/systemd/system/${unitName(timer)}.timer`, when],
	]
}

function cronFiles(timer: Timer, hostName: string): TimerFile[] {
	const { words, hours, minute, spreadMinutes, limitMinutes } = timer
	// cron knows no jitter: the host's name decides the minute, so that it is the same each time.
	const sum = [...hostName].reduce((total, letter) => total + letter.charCodeAt(0), 0)
	const at = (minute + (sum % spreadMinutes)) % 60
	const run = `timeout --kill-after=2m ${limitMinutes}m nice -n 10 ionice -c 3 ${[program, ...words].join(" ")}`
	// A run that went well says nothing: how each ended is noted, or nobody could tell them from runs that never began.
	const line = `mkdir -p /var/log/comfyume; { ${run}; echo "exit $? at $(date -u +\\%FT\\%TZ)"; } >>${logFile(timer)} 2>&1`
	return [
		[
			`/etc/cron.d/${unitName(timer)}`,
			`${generated}
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
${at} ${hours === undefined ? "*" : hours.join(",")} * * * root ${line}
`,
		],
		[
			`/etc/logrotate.d/${unitName(timer)}`,
			`${generated}
${logFile(timer)} {
	weekly
	rotate 12
	compress
	delaycompress
	missingok
	notifempty
}
`,
		],
	]
}
