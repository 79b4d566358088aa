// A full disk: the artifact that doesn't fit stops alone, nothing half-written is left, and room lets it through.
import { execFileSync, spawnSync } from "node:child_process"
import { randomBytes } from "node:crypto"
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs"
import { afterEach, beforeEach, expect, test } from "vitest"
import { createWorld, inventory, type World } from "../../support/cli.ts"
import { describeWith } from "../../support/parts.ts"
import { storedIn, wrongWith } from "../../support/snapshots.ts"

const largeBytes = 600 * 1024
let world: World
let mounted: string[] = []

// Mounting takes root, as instances do.
describeWith("instances", "a full disk", () => {
	beforeEach(async () => {
		mounted = []
		world = await createWorld()
		writeFileSync(world.path("server/home/dev/large"), randomBytes(largeBytes))
	})
	afterEach(async () => {
		for (const directory of mounted) execFileSync("umount", [directory])
		await world[Symbol.asyncDispose]()
	})

	const mountSmall = (directory: string, options = "size=300k") => {
		mkdirSync(directory, { recursive: true })
		execFileSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", directory])
		mounted.push(directory)
	}
	const grow = (directory: string) => execFileSync("mount", ["-o", "remount,size=8m", directory])
	const partials = (directory: string) =>
		readdirSync(directory, { recursive: true, encoding: "utf8" }).filter((name) =>
			/partial|work\/./.test(name),
		)

	test("of the share ends a backup with 7, names it, and stops nothing else", async () => {
		mountSmall(world.share)
		const backup = await world.run(["backup", "--json"])
		expect(backup.exitCode, backup.stdout).toBe(7)
		const { home, ...others } = backup.outcomes
		expect(home).toBe("failed")
		// The catalogue has more than this small server.
		expect(new Set(Object.values(others))).toEqual(new Set(["applied", "satisfied"]))
		expect(backup.events).toContainEqual(
			expect.objectContaining({
				event: "step",
				step: "home",
				because: expect.stringMatching(/^share has \d+ bytes free, \d+ are needed for home$/),
				hint: expect.stringMatching(/^df -h \S+share/),
			}),
		)
		expect(wrongWith(await storedIn(world))).toEqual([])
		expect(partials(world.share)).toEqual([])
		grow(world.share)
		const again = await world.run(["backup", "--json"])
		expect([again.exitCode, again.outcomes.home]).toEqual([0, "applied"])
	})

	// Incident 1, as it happened: the script checked the disk first, under `set -e`, with its stderr thrown away.
	test("ended a script before its first backup and nobody heard; status says so, and a run of ours goes on", async () => {
		mountSmall(world.share)
		writeFileSync(`${world.share}/filling`, randomBytes(285 * 1024))
		const comfyume = (...words: string[]) =>
			`"${process.execPath}" "${world.path("package/bin/comfyume.js")}" ${words.join(" ")} --env sandbox --config "${world.configuration}"`
		const script = `set -e
${comfyume("disk-check", "--block")} >/dev/null 2>&1
${comfyume("backup")}
`
		const cron = spawnSync("sh", ["-c", script], { encoding: "utf8" })
		expect([cron.status, cron.stdout, cron.stderr]).toEqual([7, "", ""])
		expect(await storedIn(world)).toEqual([])
		const status = await world.run(["backup", "status", "--quiet"])
		expect(status.exitCode).toBe(3)
		expect(status.stderr).toMatch(/failed: home on r2: no snapshot of this host/)

		const ours = await world.run(["backup", "--scheduled", "--quiet"])
		expect(ours.exitCode, ours.stderr).not.toBe(0)
		expect(ours.stderr).toMatch(/failed: home: share has \d+ bytes free/)
		const onR2 = await world.run(["backup", "status", "--only", "fail2ban", "--json"])
		expect(onR2.outcomes["fail2ban/r2"], onR2.stdout).toBe("satisfied")
	})

	test("without inodes is one without room", async () => {
		for (let index = 0; index < 30; index++) writeFileSync(world.path(`server/home/dev/${index}`), "")
		// Four go into the directories down to the share's lock, and one into the lock.
		mountSmall(world.share, "size=8m,nr_inodes=6")
		const backup = await world.run(["backup", "--only", "home", "--json"])
		expect(backup.exitCode, backup.stdout).toBe(7)
		expect(backup.stdout).toMatch(/share has \d inodes free, 4 are needed for home.*"hint":"df -i /)
		execFileSync("mount", ["-o", "remount,nr_inodes=100", world.share])
		expect((await world.run(["backup", "--only", "home"])).exitCode).toBe(0)

		await world.loseServer()
		mountSmall(world.path("server/home"), "size=8m,nr_inodes=15")
		const restore = await world.run(["restore", "--only", "home", "--json"])
		expect(restore.exitCode, restore.stdout).toBe(7)
		expect(restore.stdout).toMatch(/"because":"\/home on app-1 has \d+ inodes free, \d+ are needed/)
		execFileSync("mount", ["-o", "remount,nr_inodes=1000", world.path("server/home")])
		expect((await world.run(["restore", "--only", "home"])).exitCode).toBe(0)
	})

	test("of the server's own work directory ends a backup with 7, and leaves nothing there", async () => {
		mountSmall(world.path("server/var/lib/comfyume"))
		const backup = await world.run(["backup"])
		expect(backup.exitCode).toBe(7)
		expect(backup.stderr).toMatch(
			/\nfailed: home: \/var\/lib\/comfyume\/work on app-1 has \d+ bytes free, \d+ are needed\n {2}try: df -h \/var/,
		)
		expect(backup.stderr).toMatch(/7 applied, \d+ already right, 1 failed/)
		expect(partials(world.path("server/var/lib/comfyume"))).toEqual([])
		grow(world.path("server/var/lib/comfyume"))
		expect((await world.run(["backup"])).exitCode).toBe(0)
	})

	test("that fills up while an archive is packed ends a backup with 7, and what was packed is gone", async () => {
		// The real thing depends on who else writes at that moment; the words are tar's.
		writeFileSync(
			world.path("server/usr/local/bin/tar"),
			'#!/bin/sh\nfor word; do case $word in --file=*) head -c 9999 /dev/zero >"$(echo "$word" | cut -d= -f2)" ;; esac; done\n' +
				"echo 'tar: home.tar.zst: Cannot write: No space left on device' >&2\nexit 2\n",
			{ mode: 0o755 },
		)
		const backup = await world.run(["backup", "--only", "home"])
		expect(backup.exitCode, backup.stderr).toBe(7)
		expect(backup.stderr).toMatch(/Cannot write: No space left on device\n {2}try: df -h; df -i\n/)
		expect(partials(world.path("server/var/lib/comfyume"))).toEqual([])
	})

	test("of the server ends a restore with 7 before a file is touched, and the others come back", async () => {
		expect((await world.run(["backup"])).exitCode).toBe(0)
		await world.loseServer()
		mountSmall(world.path("server/var/lib/comfyume"))
		const restore = await world.run(["restore", "--identity-is-free", "--json"])
		expect(restore.exitCode, restore.stdout).toBe(7)
		const { home, ...others } = restore.outcomes
		expect(home).toBe("failed")
		expect(Object.values(others)).not.toContain("failed")
		expect(existsSync(world.path("server/home/dev/large"))).toBe(false)
		expect([...inventory(world.path("server/home")).keys()].filter((path) => /staging/.test(path))).toEqual(
			[],
		)
		grow(world.path("server/var/lib/comfyume"))
		expect((await world.run(["restore", "--identity-is-free"])).exitCode).toBe(0)
		expect(existsSync(world.path("server/home/dev/large"))).toBe(true)
	})

	test("where the files belong ends a restore with 7, and leaves the old ones and no staging", async () => {
		expect((await world.run(["backup", "--only", "home"])).exitCode).toBe(0)
		await world.loseServer()
		mountSmall(world.path("server/home"))
		mkdirSync(world.path("server/home/dev"))
		writeFileSync(world.path("server/home/dev/.zshrc"), "the fresh machine's own\n")
		const before = inventory(world.path("server/home"), [".comfyume"])
		const restore = await world.run(["restore", "--only", "home", "--json"])
		expect(restore.exitCode, restore.stdout).toBe(7)
		expect(inventory(world.path("server/home"), [".comfyume"])).toEqual(before)
		expect([...inventory(world.path("server/home")).keys()].filter((path) => /staging/.test(path))).toEqual(
			[],
		)
		grow(world.path("server/home"))
		expect((await world.run(["restore", "--only", "home"])).exitCode).toBe(0)
	})
})
