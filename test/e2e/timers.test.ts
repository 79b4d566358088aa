// Timers on a real machine: a real systemd fires, a real cron does, and what becomes of their runs is seen.
import { execFileSync } from "node:child_process"
import { readdirSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import type { TimerFacts } from "../../src/lib/plan/events.ts"
import type { Instance } from "../support/instance/instance.ts"
import { type NotificationServer, startNotificationServer } from "../support/notification-server.ts"
import { describeWith } from "../support/parts.ts"
import { poll } from "../support/poll.ts"
import { openWorkshop, type Workshop } from "../support/workshop.ts"

const names = ["backup", "status", "retention", "drill"]
const anyEnd = { allowedExitCodes: "any" } as const

describeWith("instances", "timers", () => {
	let workshop: Workshop
	let server: Instance
	let told: NotificationServer

	beforeAll(async () => {
		workshop = await openWorkshop()
		told = await startNotificationServer(workshop.world.address)
		await workshop.add(
			`    notifications: { healthchecks: { url: "${told.url}" } }\n`,
			"HEALTHCHECKS_PING_KEY=made-up-ping-key\n",
		)
		server = await workshop.freshInstance("server")
		const identity = await workshop.makeServer(server)
		await workshop.pointAt(server, identity)
		// Seen from the laptop alone nothing is known of the host yet, and no timer is set that couldn't run.
		const early = await timers("install")
		expect(early.exitCode, early.stderr).toBe(3)
		expect(early.stderr).toContain("/usr/local/bin/comfyume is missing")
		expect(await files()).toEqual([])
		await workshop.installConfiguration(server, identity)
		const [release = ""] = readdirSync(join(server.root, "opt/comfyume"))
		await server.run(["ln", "-s", `/opt/comfyume/${release}/bin/comfyume`, "/usr/local/bin/comfyume"])
	})
	afterAll(async () => {
		await workshop?.[Symbol.asyncDispose]()
		await told?.[Symbol.asyncDispose]()
	})

	const timers = (...words: string[]) => workshop.comfyume("timers", ...words, "--env", "rehearsal")
	const shell = async (script: string) => (await server.run(["sh", "-c", script], anyEnd)).stdout
	/** Everything of ours that systemd, cron and logrotate would find. */
	const files = async () =>
		(
			await shell(
				"find /etc/systemd /etc/cron.d /etc/logrotate.d /var/lib/systemd/timers -name '*comfyume*' | sort",
			)
		)
			.split("\n")
			.filter((line) => line !== "")
	const shown = async () => {
		const { stdout, exitCode } = await timers("show", "--json")
		const facts = stdout
			.split("\n")
			.filter((line) => line.includes('"event":"timer"'))
			.map((line) => JSON.parse(line) as TimerFacts)
		return { exitCode, of: (name: string) => facts.find(({ timer }) => timer === name), stdout }
	}
	const breakIt = () => server.run(["mv", "/home/dev/project", "/home/dev/aside"])
	const repair = () => server.run(["mv", "/home/dev/aside", "/home/dev/project"])
	const shareCanWait = () => execFileSync("rm", ["-rf", join(workshop.share, "cache")])

	test("systemd: set, fired, seen and taken away, with nothing left", async () => {
		const dry = await timers("install", "--dry-run")
		expect(dry.exitCode, dry.stderr).toBe(0)
		expect(dry.stdout).toContain("+ OnCalendar=*-*-* *:17:00")
		expect(await files()).toEqual([])

		const installed = await timers("install")
		expect(installed.exitCode, installed.stderr).toBe(0)
		const again = await timers("install")
		expect(again.stderr).toContain("5 already right")
		expect(await files()).toHaveLength(16)
		const units = names.flatMap((name) => [`comfyume-${name}.timer`, `comfyume-${name}.service`])
		const verified = await server.run(["systemd-analyze", "verify", ...units], anyEnd)
		expect([verified.exitCode, verified.stderr]).toEqual([0, ""])

		const fresh = await shown()
		expect(fresh.exitCode, fresh.stdout).toBe(0)
		for (const name of names) {
			expect(fresh.of(name)).toMatchObject({ by: "systemd", state: "on", right: true })
			expect(Date.parse(fresh.of(name)?.nextRunAt ?? "")).toBeGreaterThan(Date.now())
			expect(fresh.of(name)?.lastRunAt).toBeUndefined()
		}

		// The backup's own timer elapses, only sooner than at the next full hour.
		const sooner =
			"[Timer]\\nOnCalendar=\\nOnCalendar=*-*-* *:*:0/2\\nRandomizedDelaySec=0\\nAccuracySec=100ms\\n"
		await shell(`mkdir -p /etc/systemd/system/comfyume-backup.timer.d
printf '${sooner}' >/etc/systemd/system/comfyume-backup.timer.d/soon.conf
systemctl daemon-reload; systemctl restart comfyume-backup.timer`)
		await poll(() => told.requests.some(({ path }) => path.endsWith("/0")), {
			what: "the end of a backup that its timer began",
			deadlineMs: 90_000,
		})
		await shell(
			"rm -r /etc/systemd/system/comfyume-backup.timer.d; systemctl daemon-reload; systemctl restart comfyume-backup.timer; systemctl stop comfyume-backup.service",
		)
		expect(told.requests[0]).toMatchObject({
			path: "/made-up-ping-key/rehearsal-app-1-backup/start",
			from: server.address,
		})
		const backup = await workshop.comfyume("backup", "status", "--env", "rehearsal", "--notify")
		expect(backup.exitCode, backup.stdout + backup.stderr).toBe(0)
		// Asked for from the laptop, told by the machine that did it.
		expect(told.requests.at(-1)).toMatchObject({
			path: "/made-up-ping-key/rehearsal-app-1-status/0",
			from: server.address,
		})
		const cut = await server.run(["systemctl", "start", "comfyume-backup.service"], anyEnd)
		expect(cut.exitCode, cut.stderr).toBe(0)
		expect((await shown()).of("backup")).toMatchObject({ result: "exit 0", right: true })
	})

	test("systemd: a failing run, one that hangs and a program that moved away are seen", async () => {
		await breakIt()
		shareCanWait()
		await server.run(["systemctl", "start", "comfyume-backup.service"], anyEnd)
		await repair()
		const failed = await shown()
		expect(failed.exitCode).toBe(3)
		expect(failed.of("backup")).toMatchObject({ result: "exit 3", right: false })
		expect(await shell("journalctl --unit comfyume-backup")).toContain("failed: project")

		// A mount that never answers looks like this: the limit ends it.
		await shell(`mkdir -p /etc/systemd/system/comfyume-status.service.d
printf '[Service]\\nTimeoutStartSec=1\\nExecStart=\\nExecStart=sleep 1000\\n' >/etc/systemd/system/comfyume-status.service.d/hang.conf
systemctl daemon-reload; systemctl start comfyume-status.service`)
		expect((await shown()).of("status")).toMatchObject({
			result: expect.stringContaining("timeout"),
			right: false,
		})
		await shell("rm -r /etc/systemd/system/comfyume-status.service.d; systemctl daemon-reload")

		// Incident 24: the script was moved, and the timer's path wasn't.
		await server.run(["mv", "/usr/local/bin/comfyume", "/usr/local/bin/moved"])
		await server.run(["systemctl", "start", "comfyume-backup.service"], anyEnd)
		const moved = await shown()
		expect(moved.exitCode).toBe(3)
		expect(moved.stdout).toContain("/usr/local/bin/comfyume is missing")
		expect(moved.of("backup")).toMatchObject({ result: "exit 203", right: false })
		await server.run(["mv", "/usr/local/bin/moved", "/usr/local/bin/comfyume"])
	})

	test("what was changed is seen and put right; what isn't ours is neither overwritten nor removed", async () => {
		const unit = "/etc/systemd/system/comfyume-status.timer"
		await shell(
			`sed -i s/Persistent=true/Persistent=false/ ${unit}; systemctl disable --now comfyume-drill.timer`,
		)
		const changed = await shown()
		expect(changed.of("status")).toMatchObject({ state: "changed", right: false })
		expect(changed.of("drill")).toMatchObject({ state: "off", right: false })
		const installed = await timers("install")
		expect(installed.exitCode, installed.stderr).toBe(0)
		expect(installed.stdout).toMatch(/- Persistent=false\n +\+ Persistent=true/)
		expect((await shown()).of("status")).toMatchObject({ state: "on" })

		await shell(`sed -i 1d ${unit}`)
		for (const verb of ["install", "remove"]) {
			const refused = await timers(verb, "--only", "status")
			expect(refused.exitCode, verb).toBe(8)
			expect(refused.stderr).toContain("was not written by comfyume")
		}
		expect(await shell(`cat ${unit}`)).toContain("[Timer]")
		await shell(`rm ${unit}`)

		const removed = await timers("remove")
		expect(removed.exitCode, removed.stderr).toBe(0)
		expect(await files()).toEqual([])
		expect(await shell("systemctl list-units --all --no-legend 'comfyume*'")).toBe("")
		const again = await timers("remove")
		expect([again.exitCode, again.stderr]).toEqual([0, expect.stringContaining("4 already right")])
	})

	test("cron, where systemd doesn't run: the line that was written runs, and all that it says is kept", async () => {
		shareCanWait()
		told.requests.length = 0
		// What tells a running systemd.
		await shell("mv /run/systemd/system /run/systemd/aside; pgrep -x cron || cron")
		// Of a test before this one that failed.
		await shell(
			"rm -f /etc/systemd/system/comfyume-* /etc/systemd/system/*/comfyume-* /var/lib/systemd/timers/*comfyume*",
		)
		try {
			const installed = await timers("install")
			expect(installed.exitCode, installed.stderr).toBe(0)
			expect(await files()).toHaveLength(8)
			expect((await shown()).of("backup")).toMatchObject({ by: "cron", state: "on", right: true })
			for (const name of names)
				await server.run(["logrotate", "--debug", `/etc/logrotate.d/comfyume-${name}`])

			// The line as it stands, only for every minute.
			const line = "/etc/cron.d/comfyume-backup"
			await shell(`cp ${line} /root/line; sed -i 's/^[0-9]* \\* \\* \\* \\*/* * * * */' ${line}`)
			const log = () => shell("cat /var/log/comfyume/backup.log")
			const logged = (what: string) =>
				poll(async () => (await log()).includes(what), {
					...{ what: `${what} in cron's log`, deadlineMs: 130_000, intervalMs: 500 },
				})
			await logged("exit 0 at ")
			expect(told.requests.map(({ path }) => path.replace(/.*app-1-/, ""))).toEqual(
				expect.arrayContaining(["backup/start", "backup/0"]),
			)
			await breakIt()
			shareCanWait()
			await logged("exit 3 at ")
			expect(await log()).toContain("failed: project")
			await repair()
			// Incident 24 again: what the shell says of it is not lost.
			await server.run(["mv", "/usr/local/bin/comfyume", "/usr/local/bin/moved"])
			await logged("exit 127 at ")
			expect(await log()).toMatch(/\/usr\/local\/bin\/comfyume.*No such file/)
			await shell(`cp /root/line ${line}`)
			const moved = await shown()
			expect(moved.of("backup")).toMatchObject({ result: "exit 127", right: false })
			await server.run(["mv", "/usr/local/bin/moved", "/usr/local/bin/comfyume"])

			// Incident 1: cron is dead for 30 hours, and the last that it says is that all was well.
			const before = await shell("date --utc --date '30 hours ago' +%FT%TZ")
			await shell(`echo 'exit 0 at ${before.trim()}' >/var/log/comfyume/backup.log`)
			const dead = await shown()
			expect(dead.exitCode).toBe(3)
			expect(dead.of("backup")?.because).toMatch(/last ended 1 d 6 h ago: does cron run\?/)

			expect((await timers("remove")).exitCode).toBe(0)
			expect(await files()).toEqual([])
		} finally {
			await shell("mv /run/systemd/aside /run/systemd/system")
		}
	})
})
