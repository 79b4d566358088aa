// A drill, the report and `doctor` over SSH, on a real machine: real owners and modes, the real sshd, a user's own git.
import { readdirSync, readFileSync, statSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import type { Instance } from "../support/instance/instance.ts"
import { describeWith } from "../support/parts.ts"
import { damageAll, inventoryOf, openWorkshop, type Workshop } from "../support/workshop.ts"

describeWith("instances", "backups are drilled and reported on over SSH", () => {
	let workshop: Workshop
	let server: Instance
	const comfyume = (...words: string[]) => workshop.comfyume(...words, "--env", "rehearsal")

	beforeAll(async () => {
		workshop = await openWorkshop()
		server = await workshop.freshInstance("server")
		await workshop.pointAt(server, await workshop.makeServer(server))
		const ran = await comfyume("backup", "--json")
		expect(ran.exitCode, ran.stdout + ran.stderr).toBe(0)
	})
	afterAll(() => workshop?.[Symbol.asyncDispose]())

	test("everything comes back as it is on the machine, which is not touched", async () => {
		const before = inventoryOf(server)
		const ran = await comfyume("backup", "drill")
		expect(ran.exitCode, ran.stdout + ran.stderr).toBe(0)
		// The table wraps where its column ends.
		const words = ran.stdout.replaceAll(/\s+/g, " ")
		expect(words).toContain("sshd takes the keys; one is configured")
		expect(words).toContain("cloned from its remote, git fsck; back in")
		expect(inventoryOf(server)).toBe(before)
		const sandbox = join(server.root, "var/lib/comfyume/drill")
		expect(readdirSync(sandbox)).toEqual([])
		expect(statSync(sandbox).mode & 0o777).toBe(0o700)
	})

	test("damage on the share is told with its name and the same exit code", async () => {
		const directory = join(workshop.share, "cache/backups/rehearsal/home")
		const archives = readdirSync(directory)
			.filter((name) => name.endsWith(".zst.age"))
			.map((name) => join(directory, name))
		expect(archives).toHaveLength(1)
		await damageAll(archives)
		const ran = await comfyume("backup", "drill", "--only", "home")
		await damageAll(archives)
		expect(ran.exitCode, ran.stdout + ran.stderr).toBe(3)
		expect(ran.stderr).toMatch(/^failed: home from share: /m)
		expect(ran.stdout).toMatch(/^home +r2 .* 7 files as\s+sha256sum has them/m)
	})

	test("the report comes back to the laptop, on its screen and into its file", async () => {
		const shown = await comfyume("backup", "report")
		expect(shown.exitCode, shown.stderr).toBe(0)
		expect(shown.stdout).toMatch(/^# Backups of app-1, rehearsal\n\n.*\n\n## What is missing\n/)
		expect(shown.stdout).toMatch(/^\| \d{4}-\d\d-\d\d \d\d:\d\d \| 3 \| 1 of 2 \|/m)
		const written = await comfyume("backup", "report", "--output", "report.md")
		expect([written.exitCode, written.stdout], written.stderr).toEqual([0, ""])
		expect(readFileSync(join(workshop.laptop, "report.md"), "utf8")).toMatch(
			/^# Backups of app-1, rehearsal\n/,
		)
	})

	test("`doctor` looks from the machine, and says what nobody has locked", async () => {
		const ran = await comfyume("doctor", "--json")
		expect(ran.exitCode, ran.stdout + ran.stderr).toBe(3)
		expect(ran.stdout).toMatch(/"step":"share\/mounted","outcome":"satisfied"/)
		expect(ran.stdout).toMatch(/"step":"cache\/lock","outcome":"failed"/)
		const operations = workshop.s3.log.map(({ operation }) => operation)
		expect(operations.filter((operation) => /Delete/.test(operation))).toEqual([])
	})
})
