import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, expect, test } from "vitest"
import { exitCodes } from "../../../src/lib/errors.ts"
import { createWorld, type Saved, secrets, type World } from "../../support/cli.ts"

const preload = fileURLToPath(new URL("../../support/kill-at.ts", import.meta.url))

// What became of a restore is read on the machine it was about, by whoever comes after a half-failed one.
let world: World
let saved: Saved

beforeAll(async () => {
	world = await createWorld()
	const backup = await world.run(["backup"])
	expect(backup.exitCode, backup.stderr).toBe(0)
	await world.loseServer()
	saved = await world.save()
})
afterAll(() => world?.[Symbol.asyncDispose]())

const directory = () => join(world.server, "var/log/comfyume")
const log = () => readFileSync(join(directory(), "restore.log"), "utf8")
const report = () => JSON.parse(readFileSync(join(directory(), "restore-last.json"), "utf8"))
const restore = (...words: string[]) => world.run(["restore", "--identity-is-free", ...words])

test("a restore leaves its lines and its report, which nobody else reads and which hold no secret", async () => {
	await saved.load()
	const ran = await restore()
	expect(ran.exitCode, ran.stderr).toBe(0)
	expect(log()).toMatch(/^\d{4}-\d\d-\d\dT[\d:.]+Z restore: sandbox, app-1/)
	expect(log()).toMatch(/Z applied: home: it is byte for byte /)
	expect(report()).toMatchObject({
		version: 1,
		command: "restore",
		environment: "sandbox",
		exitCode: 0,
		errors: [],
	})
	expect(report().steps).toContainEqual({
		step: "home",
		outcome: "applied",
		because: expect.stringMatching(/^it is byte for byte /),
	})
	for (const file of ["restore.log", "restore-last.json"]) {
		expect(statSync(join(directory(), file)).mode & 0o777).toBe(0o600)
		for (const value of Object.values(secrets))
			expect(readFileSync(join(directory(), file), "utf8")).not.toContain(value)
	}
	// The next one adds to the log, and takes the report's place.
	const again = await restore("--only", "fail2ban")
	expect(again.exitCode).toBe(0)
	expect(log().match(/Z restore: sandbox/g)).toHaveLength(2)
	expect(report().steps.map(({ step }: { step: string }) => step)).toEqual(["backups-are-fresh", "fail2ban"])
})

test("of one that failed the report says at which steps, why, and what to type", async () => {
	await saved.load()
	const ran = await world.run(["restore"])
	expect(ran.exitCode).not.toBe(0)
	expect(report().exitCode).toBe(ran.exitCode)
	const step = report().steps.find(({ step }: { step: string }) => step === "tailscale-is-free")
	expect(step).toMatchObject({ outcome: "failed", hint: expect.stringMatching(/--identity-is-free/) })
	expect(log()).toMatch(/Z FAILED: /)
})

test("a dry run keeps nothing", async () => {
	await saved.load()
	const ran = await restore("--dry-run")
	expect(ran.exitCode, ran.stderr).toBe(0)
	expect(existsSync(directory())).toBe(false)
})

test("a log that can't be written changes nothing about the restore, and is said", async () => {
	await saved.load()
	rmSync(join(world.server, "var/log"), { recursive: true, force: true })
	mkdirSync(join(world.server, "var"), { recursive: true })
	writeFileSync(join(world.server, "var/log"), "a file where a directory belongs\n")
	const ran = await restore()
	expect(ran.exitCode, ran.stderr).toBe(exitCodes.done)
	expect(ran.stderr).toMatch(/note: what became of this run could not be kept in \/var\/log\/comfyume/)
})

test("of one that is killed the report says that it has not ended, and not how the one before did", async () => {
	await saved.load()
	expect((await restore()).exitCode).toBe(0)
	expect(report().exitCode).toBe(0)
	rmSync(join(world.server, "home/dev"), { recursive: true })
	const killedAt = world.path("killed-at")
	// In the middle of its work: while the archive is unpacked.
	for (let n = 1, where = ""; !where.includes("tar"); n++) {
		writeFileSync(killedAt, "")
		await world.run(["restore", "--only", "home", "--json"], {
			preload,
			variables: { COMFYUME_TEST_KILL_AT: String(n), COMFYUME_TEST_KILL_LOG: killedAt },
		})
		where = readFileSync(killedAt, "utf8")
		expect(where, `it ended before its change ${n}`).not.toBe("")
	}
	expect(report()).toMatchObject({ exitCode: null, endedAt: "" })
})
