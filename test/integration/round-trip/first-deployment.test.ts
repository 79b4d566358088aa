import { existsSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { exitCodes } from "../../../src/lib/errors.ts"
import { createSandbox, type Sandbox } from "../../support/sandbox.ts"

let sandbox: Sandbox
beforeEach(async () => {
	sandbox = await createSandbox()
})
afterEach(() => sandbox[Symbol.dispose]())

const because = (ran: Awaited<ReturnType<Sandbox["restore"]>>, step: string) =>
	ran.events.flatMap((event) => (event.event === "step" && event.step === step ? [event.because] : []))[0]

test("where nothing was ever backed up, a first deployment takes code from git and says so", async () => {
	const fresh = await sandbox.freshServer("fresh")
	const ran = await sandbox.restore(fresh, { first: true })
	expect(ran.exitCode, JSON.stringify(ran.events, null, 1)).toBe(0)
	expect(because(ran, "never-backed-up")).toBe("share and r2 have nothing of it")
	expect(existsSync(join(fresh, "home/dev/project/.git"))).toBe(true)
	expect(ran.notes).toContain("no backup notes a commit of project: it gets the tip of main")
	// Nothing of what a backup would hold is asked for.
	expect(ran.outcome("home")).toBeUndefined()

	const again = await sandbox.restore(fresh, { first: true })
	expect(again.exitCode).toBe(0)
	expect(again.events.filter(({ event }) => event === "applying")).toEqual([])
})

test("without being told so, a restore that finds no backup anywhere stops and names the option", async () => {
	const fresh = await sandbox.freshServer("fresh")
	const ran = await sandbox.restore(fresh)
	expect(ran.exitCode).toBe(exitCodes.incomplete)
	expect(because(ran, "backups-are-fresh")).toBe(
		"there is no backup of app-1: share and r2 have nothing of it",
	)
	const hint = ran.events.flatMap((event) => (event.event === "step" ? [event.hint] : []))[0]
	expect(hint).toMatch(/--first/)
	expect(existsSync(join(fresh, "home/dev/project"))).toBe(false)
})

test("a server that has backups is never deployed as if it had none", async () => {
	const server = await sandbox.fillServer()
	await sandbox.backup(server, { only: ["fail2ban"] })
	const fresh = await sandbox.freshServer("fresh")
	const ran = await sandbox.restore(fresh, { first: true })
	expect(ran.exitCode).toBe(exitCodes.refusedByGuard)
	expect(because(ran, "never-backed-up")).toMatch(/there are backups of fail2ban, the newest of 2026-11-21/)
	expect(existsSync(join(fresh, "home/dev/project"))).toBe(false)
})

test("backups of another host are no reason against it, and are said: it may be this one under its old name", async () => {
	const other = await sandbox.fillServer("other", "app-2")
	await sandbox.backup(other, { only: ["fail2ban"] })
	const fresh = await sandbox.freshServer("fresh")
	const ran = await sandbox.restore(fresh, { first: true })
	expect(because(ran, "never-backed-up")).not.toMatch(/there are backups/)
	const notes = ran.events.flatMap((event) => (event.event === "note" ? [event.text] : []))
	expect(notes.join("\n")).toMatch(/sandbox has backups of other hosts \(fail2ban\): if app-1 is one of them/)
})

test("nor is one of which nobody can tell, because a place of backups can't be asked", async () => {
	const fresh = await sandbox.freshServer("fresh")
	rmSync(sandbox.share, { recursive: true })
	writeFileSync(sandbox.share, "a file where the share's directory was\n")
	const ran = await sandbox.restore(fresh, { first: true })
	expect(ran.exitCode).not.toBe(0)
	expect(because(ran, "never-backed-up")).toMatch(/^nobody can tell whether app-1 was ever backed up: share/)
	expect(existsSync(join(fresh, "home/dev/project"))).toBe(false)
})

test("a backup of the older scripts is a backup", async () => {
	const fresh = await sandbox.freshServer("fresh")
	writeFileSync(join(sandbox.share, "home-dev-2026-11-20.tar.gz"), "whatever it holds")
	const ran = await sandbox.restore(fresh, { first: true })
	expect(ran.exitCode).toBe(exitCodes.refusedByGuard)
})

test("no place of backups may be left out of the question", async () => {
	const server = await sandbox.fillServer()
	await sandbox.backup(server, { only: ["fail2ban"] })
	const fresh = await sandbox.freshServer("fresh")
	await expect(sandbox.restore(fresh, { first: true, from: ["git"] })).rejects.toMatchObject({
		exitCode: exitCodes.usage,
		message: expect.stringMatching(/--from leaves some out/),
	})
})

test("parts by name are no artifacts: after them, what to type next is no backup of them", async () => {
	await sandbox.backup(await sandbox.fillServer())
	const fresh = await sandbox.freshServer("fresh")
	const nextOf = (ran: Awaited<ReturnType<Sandbox["restore"]>>) =>
		ran.events.flatMap((event) => (event.event === "end" ? [event.next] : []))[0]
	expect(nextOf(await sandbox.restore(fresh, { only: ["fail2ban"], skip: ["checks"] }))).toBe(
		"comfyume backup --env sandbox --only fail2ban",
	)
	const parts = await sandbox.restore(fresh, { only: ["timers"], dryRun: true })
	expect(parts.outcome("fail2ban")).toBeUndefined()
	expect(nextOf(parts)).toBe("comfyume restore --env sandbox --only timers")
})
