// kill -9 at every point at which a run changes something: what is left is whole, and running again finishes.
import { readFileSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { createWorld, type Ended, inventory, type Saved, type World } from "../../support/cli.ts"
import { poll } from "../../support/poll.ts"
import { tailscaleAddressOf } from "../../support/server-files.ts"
import { contentsOf, storedIn, wrongWith } from "../../support/snapshots.ts"

const preload = fileURLToPath(new URL("../../support/kill-at.ts", import.meta.url))
/** Fewer than these would mean that the changes aren't seen. */
const leastChanges = 4
/** What a run may leave on a server besides what it is about: its own notes, and what it replaced. */
const own = [
	".git",
	".comfyume",
	"comfyume",
	"run",
	"tailscaled.log1.txt",
	"tailscaled.state",
	"units-disabled",
]

let world: World
beforeAll(async () => {
	world = await createWorld()
	made = await world.save()
	expect((await world.run(["backup"])).exitCode).toBe(0)
	await world.loseServer()
	lost = await world.save()
})
afterAll(() => world?.[Symbol.asyncDispose]())

/**
 * What comfyume keeps on the server for itself: names, whatever they hold. The partial file of a note that was being
 * written is a hundred bytes that nobody reads, and digests are remembered only of files that are a while old.
 */
const notesOf = () =>
	[...inventory(world.path("server/var/lib/comfyume")).keys()].filter(
		(path) => !/^\/lineage\/.*\.partial$|^\/digests\b/.test(path) && path !== "/work",
	)

/** The world as it was made, again and again. */
let made: Saved
/** Backed up, and a fresh machine in the server's place. */
let lost: Saved

/** Runs once with an end at the n-th change. Undefined for `where` when the run was over before. */
async function killedAt(n: number, words: readonly string[]): Promise<{ where?: string; ended: Ended }> {
	const log = world.path("killed-at")
	writeFileSync(log, "")
	const ended = await world.run([...words, "--json"], {
		preload,
		variables: { COMFYUME_TEST_KILL_AT: String(n), COMFYUME_TEST_KILL_LOG: log },
	})
	const where = readFileSync(log, "utf8")
	if (where === "") return { ended }
	expect(ended.signal).toBe("SIGKILL")
	return { where: `change ${n}, ${where}`, ended }
}

describe("backup killed at any change", () => {
	test.each(["fail2ban", "project"])("of %s", async (artifact) => {
		const words = ["backup", "--only", artifact]
		await made.load()
		const unfaulted = await world.run(words)
		expect(unfaulted.exitCode, unfaulted.stderr).toBe(0)
		const expected = contentsOf(await storedIn(world))
		const notes = notesOf()

		for (let n = 1; ; n++) {
			await made.load()
			const before = inventory(world.server, own)
			const { where, ended } = await killedAt(n, words)
			if (where === undefined) {
				expect(ended.exitCode, ended.stdout).toBe(0)
				expect(n).toBeGreaterThan(leastChanges)
				break
			}
			expect(wrongWith(await storedIn(world)), where).toEqual([])
			const again = await world.run(words)
			expect(again.exitCode, `${where}\n${again.stderr}`).toBe(0)
			const stored = await storedIn(world)
			expect(wrongWith(stored), where).toEqual([])
			expect(contentsOf(stored), where).toEqual(expected)
			expect(inventory(world.server, own), where).toEqual(before)
			expect(notesOf(), where).toEqual(notes)
		}
	})
})

describe("backup killed while R2 takes", () => {
	const orders = [
		["the archive, which is never stored", 0, "black-hole"],
		["the archive, which is stored", 0, "lose-answer"],
		["the sidecar, which is never stored", 1, "black-hole"],
		["the sidecar, which is stored", 1, "lose-answer"],
	] as const
	test.each(orders)("%s", async (_, after, action) => {
		const words = ["backup", "--only", "fail2ban"]
		await made.load()
		const { child, ended } = world.start(words)
		const fault = world.s3.fault({ match: { operation: "PutObject", after, times: 1 }, do: action })
		await poll(() => fault.hits > 0, { what: "R2 takes it", deadlineMs: 10_000 })
		child.kill("SIGKILL")
		expect((await ended).signal).toBe("SIGKILL")
		expect(wrongWith(await storedIn(world))).toEqual([])
		const again = await world.run(words)
		fault.remove()
		expect(again.exitCode, again.stderr).toBe(0)
		const stored = await storedIn(world)
		expect(wrongWith(stored)).toEqual([])
		expect(contentsOf(stored)).toHaveLength(2)
		expect(notesOf()).toEqual(["/lineage", "/lineage/fail2ban"])
	})
})

// Some forty runs of the program each, one after the other.
describe("restore killed at any change", { timeout: 300_000 }, () => {
	test.each(["tailscale-identity", "ssh-host-keys", "home", "project"])("of %s", async (artifact) => {
		const words = ["restore", "--identity-is-free", "--only", artifact]
		await lost.load()
		const old = inventory(world.server, own)
		const unfaulted = await world.run(words)
		expect(unfaulted.exitCode, unfaulted.stderr).toBe(0)
		const wanted = inventory(world.server, own)
		const notes = notesOf()
		expect(wanted).not.toEqual(old)

		for (let n = 1; ; n++) {
			await lost.load()
			const { where, ended } = await killedAt(n, words)
			if (where === undefined) {
				expect(ended.exitCode, ended.stdout).toBe(0)
				expect(n).toBeGreaterThan(leastChanges)
				break
			}
			for (const [path, what] of inventory(world.server, own))
				if (what.startsWith("file") && !path.includes(".partial/"))
					expect([old.get(path), wanted.get(path)], `${where}: ${path}`).toContain(what)
			const again = await world.run(words)
			expect(again.exitCode, `${where}\n${again.stderr}`).toBe(0)
			expect(inventory(world.server, own), where).toEqual(wanted)
			if (artifact === "tailscale-identity") expect(tailscaleAddressOf(world.server)).toBe(world.address)
			expect(notesOf(), where).toEqual(notes)
			expect(wrongWith(await storedIn(world)), where).toEqual([])
		}
	})
})
