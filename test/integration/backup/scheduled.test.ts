// Backups by their schedules, and whether they are where they should be: both asked of the destinations alone.
import { execFileSync } from "node:child_process"
import { mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { createSandbox, type Ran, type Sandbox } from "../../support/sandbox.ts"

let sandbox: Sandbox
let server: string
beforeEach(async () => {
	sandbox = await createSandbox()
	server = await sandbox.fillServer()
})
afterEach(() => sandbox[Symbol.dispose]())

const only = ["home", "project"]
const run = () => sandbox.backup(server, { only, scheduled: true })
const status = (names = only) => sandbox.status(server, { only: names })
const everything = () =>
	execFileSync("find", ["share", "second", "-type", "f"], { cwd: sandbox.directory, encoding: "utf8" })
const snapshotsIn = (place: string, artifact: string) =>
	readdirSync(join(place, "sandbox", artifact))
		.filter((name) => name.endsWith(".json"))
		.sort()
const said = ({ events }: Ran) => JSON.stringify(events)
const rows = ({ events }: Ran) =>
	events.flatMap((event) =>
		event.event === "end"
			? event.summary.map(({ artifact, source, ok }) => `${artifact} ${source} ${ok}`)
			: [],
	)

test("what is due is decided by what the destinations hold, and what is not due is not touched", async () => {
	sandbox.at("2026-11-21T06:17:00Z")
	const first = await run()
	expect(first.exitCode, said(first)).toBe(0)
	const stored = everything()

	sandbox.at("2026-11-21T06:50:00Z")
	writeFileSync(join(server, "home/dev/new.txt"), "newer")
	const within = await run()
	expect(within.exitCode, said(within)).toBe(0)
	expect(within.outcome("home")).toBeUndefined()
	expect(everything()).toBe(stored)

	sandbox.at("2026-11-21T07:17:00Z")
	const next = await run()
	expect(next.exitCode, said(next)).toBe(0)
	expect(next.outcome("home")).toBe("applied")
	expect(snapshotsIn(sandbox.share, "home")).toHaveLength(2)
	expect(snapshotsIn(sandbox.second, "home")).toHaveLength(1)

	// R2's next slot: the share's snapshot goes there under its name, and isn't taken anew.
	sandbox.at("2026-11-21T14:17:00Z")
	const later = await run()
	expect(later.exitCode, said(later)).toBe(0)
	expect(snapshotsIn(sandbox.second, "home")).toEqual(snapshotsIn(sandbox.share, "home"))
})

test("what has not changed is looked at in every slot, stored in none, and known to be current", async () => {
	sandbox.at("2026-11-21T06:17:00Z")
	await run()
	sandbox.at("2026-11-21T07:17:00Z")
	const unchanged = await run()
	expect(unchanged.outcome("home"), said(unchanged)).toBe("satisfied")
	expect(unchanged.outcome("record/share"), said(unchanged)).toBe("applied")
	expect(snapshotsIn(sandbox.share, "home")).toHaveLength(1)
	const once = everything()
	sandbox.at("2026-11-21T07:40:00Z")
	const again = await run()
	expect(again.exitCode).toBe(0)
	expect(everything()).toBe(once)
	sandbox.at("2026-11-21T08:40:00Z")
	expect((await status()).exitCode).toBe(0)
})

test("after three days of downtime one run catches up", async () => {
	sandbox.at("2026-11-21T06:17:00Z")
	await run()
	writeFileSync(join(server, "home/dev/new.txt"), "newer")
	sandbox.at("2026-11-24T09:17:00Z")
	const stale = await status()
	expect(stale.exitCode, said(stale)).toBe(3)
	const caughtUp = await run()
	expect(caughtUp.exitCode, said(caughtUp)).toBe(0)
	expect(snapshotsIn(sandbox.share, "home")).toHaveLength(2)
	expect(snapshotsIn(sandbox.second, "home")).toHaveLength(2)
	expect((await status()).exitCode).toBe(0)
})

test("a dry run of it changes nothing", async () => {
	sandbox.at("2026-11-21T06:17:00Z")
	await run()
	sandbox.at("2026-11-21T07:17:00Z")
	writeFileSync(join(server, "home/dev/new.txt"), "newer")
	const before = everything()
	const ran = await sandbox.backup(server, { only, scheduled: true, dryRun: true })
	expect(ran.outcome("home"), said(ran)).toBe("planned")
	expect(ran.outcome("record/share"), said(ran)).toBe("planned")
	expect(everything()).toBe(before)
})

test("one artifact that fails is not confirmed, and the other is", async () => {
	sandbox.at("2026-11-21T06:17:00Z")
	await run()
	rmSync(join(server, "home/dev/project"), { recursive: true })
	sandbox.at("2026-11-21T08:17:00Z")
	const ran = await run()
	expect(ran.exitCode, said(ran)).toBe(3)
	sandbox.at("2026-11-21T09:17:00Z")
	const asked = await status()
	expect(rows(asked), said(asked)).toEqual([
		"project share false",
		"home share true",
		"home r2 true",
		"project r2 true",
	])
})

describe("the incidents", () => {
	test("1: cron has been dead for 30 hours, and nothing but the destinations is asked", async () => {
		sandbox.at("2026-11-21T06:17:00Z")
		await run()
		sandbox.at("2026-11-22T12:17:00Z")
		const asked = await status()
		expect(asked.exitCode, said(asked)).toBe(3)
		expect(said(asked)).toMatch(/taken 1 d 6 h ago, and it is due hourly/)
		expect(rows(asked).every((row) => row.endsWith("false"))).toBe(true)
	})

	test("2: an archive of 45 bytes under a whole one's name counts as none", async () => {
		sandbox.at("2026-11-21T06:17:00Z")
		await run()
		const [sidecar = ""] = snapshotsIn(sandbox.share, "home")
		truncateSync(join(sandbox.share, "sandbox/home", sidecar.replace(/\.json$/, "")), 45)
		const asked = await status(["home"])
		expect(asked.exitCode, said(asked)).toBe(3)
		expect(rows(asked)).toEqual(["home share false", "home r2 true"])
		expect(said(asked)).toMatch(/its archive has 45 bytes, its sidecar says \d+/)
		// The next run that is due puts it right.
		sandbox.at("2026-11-21T06:30:00Z")
		const ran = await sandbox.backup(server, { only: ["home"], scheduled: true })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(rows(await status(["home"]))).toEqual(["home r2 true", "home share true"].sort().reverse())
	})

	test("17: a share that isn't there is said as such, and R2 gets its backup all the same", async () => {
		sandbox.at("2026-11-21T06:17:00Z")
		rmSync(sandbox.share, { recursive: true })
		const ran = await run()
		expect(ran.exitCode, said(ran)).toBe(4)
		expect(snapshotsIn(sandbox.second, "home")).toHaveLength(1)
		expect(readdirSync(sandbox.directory)).not.toContain("share")
		const asked = await status()
		expect(asked.exitCode, said(asked)).toBe(4)
		expect(said(asked)).toMatch(
			/nothing can be said of the backups there: share: the directory .* does not exist/,
		)
		expect(rows(asked)).toEqual(["home r2 true", "project r2 true"])
	})
})

test("a place that is down doesn't make the other look as if nobody had looked there", async () => {
	sandbox.at("2026-11-21T06:17:00Z")
	await run()
	rmSync(sandbox.share, { recursive: true })
	sandbox.at("2026-11-21T14:17:00Z")
	const ran = await run()
	expect(ran.exitCode, said(ran)).toBe(4)
	expect(readdirSync(join(sandbox.second, "sandbox/records/backups/app-1"))).toEqual([
		"20261121T141700Z.json",
	])
	sandbox.at("2026-11-21T17:00:00Z")
	expect(rows(await status())).toEqual(["home r2 true", "project r2 true"])
})

test("what only a snapshot from the future holds is not noted under an older one", async () => {
	sandbox.at("2026-11-21T06:17:00Z")
	await sandbox.backup(server, { only: ["home"], scheduled: true })
	writeFileSync(join(server, "home/dev/new.txt"), "newer")
	sandbox.at("2026-11-21T11:17:00Z")
	await sandbox.backup(server, { only: ["home"], scheduled: true })
	sandbox.at("2026-11-21T07:17:00Z")
	const ran = await sandbox.backup(server, { only: ["home"], scheduled: true })
	expect(ran.outcome("home"), said(ran)).toBe("satisfied")
	expect(readdirSync(join(sandbox.share, "sandbox"))).not.toContain("records")
})

test("a snapshot of another host is none of this host's", async () => {
	sandbox.at("2026-11-21T06:17:00Z")
	await run()
	const directory = join(sandbox.share, "sandbox/home")
	const [sidecar = ""] = snapshotsIn(sandbox.share, "home")
	const file = join(directory, sidecar)
	writeFileSync(file, readFileSync(file, "utf8").replace('"host": "app-1"', '"host": "app-2"'))
	const asked = await status(["home"])
	expect(rows(asked), said(asked)).toEqual(["home share false", "home r2 true"])
})

test("a snapshot from a clock that ran ahead makes nothing look current", async () => {
	sandbox.at("2027-11-21T06:17:00Z")
	await run()
	sandbox.at("2026-11-21T06:17:00Z")
	const asked = await status(["home"])
	expect(asked.exitCode, said(asked)).toBe(3)
	expect(said(asked)).toMatch(/is dated in the future/)
})

test("a record that was tampered with, or is another host's, confirms nothing", async () => {
	sandbox.at("2026-11-21T06:17:00Z")
	await run()
	sandbox.at("2026-11-21T09:17:00Z")
	await run()
	expect((await status(["home"])).exitCode).toBe(0)
	const directory = join(sandbox.share, "sandbox/records/backups/app-1")
	const [record = ""] = readdirSync(directory)
	const text = readFileSync(join(directory, record), "utf8")
	for (const bad of [
		text.replace('"app-1"', '"app-2"'),
		text.slice(0, -20),
		text.replace("T09:", "T08:"),
		"",
	]) {
		writeFileSync(join(directory, record), bad)
		const asked = await status(["home"])
		expect(rows(asked), bad).toEqual(["home share false", "home r2 true"])
	}
})

test("where two places are one bucket, the record of the second is dated on, and none is written over", async () => {
	sandbox.at("2026-11-21T06:17:00Z")
	await run()
	const directory = join(sandbox.share, "sandbox/records/backups/app-1")
	mkdirSync(directory, { recursive: true })
	writeFileSync(join(directory, "20261121T071700Z.json"), "of this very second\n")
	sandbox.at("2026-11-21T07:17:00Z")
	const unchanged = await run()
	expect(unchanged.exitCode, said(unchanged)).toBe(0)
	expect(unchanged.outcome("record/share"), said(unchanged)).toBe("applied")
	expect(readFileSync(join(directory, "20261121T071700Z.json"), "utf8")).toBe("of this very second\n")
	expect(readdirSync(directory).sort()).toEqual(["20261121T071700Z.json", "20261121T071701Z.json"])
})
