// Two real processes, each a host with a directory of its own, one share, one bucket. The one that has the share's lock
// dies, or stands still until its lock is another's, at every point at which it changes something.
import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { readdir, readFile, readlink } from "node:fs/promises"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, expect, test } from "vitest"
import { createWorld, type Running, type Saved, type World } from "../../support/cli.ts"
import { poll } from "../../support/poll.ts"
import { runs } from "../../support/runs.ts"
import { storedIn, wrongWith } from "../../support/snapshots.ts"

const preload = fileURLToPath(new URL("../../support/kill-at.ts", import.meta.url))
const app = ["backup", "--only", "fail2ban", "--host", "app-1"]
const gpu = ["backup", "--only", "fail2ban", "--host", "gpu-1"]

let world: World
let empty: Saved
beforeAll(async () => {
	world = await createWorld()
	const directory = world.path("gpu")
	cpSync(world.server, directory, { recursive: true, preserveTimestamps: true, verbatimSymlinks: true })
	world.configure((text) =>
		text.replace(
			"    share:",
			"      - { name: gpu-1, role: worker, connection: directory, directory: ./gpu }\n    share:",
		),
	)
	empty = await world.save()
})
afterAll(() => world?.[Symbol.asyncDispose]())

const begin = async () => {
	await empty.load()
	rmSync(world.path("gpu/var/lib/comfyume"), { recursive: true, force: true })
	writeFileSync(world.path("killed-at"), "")
}
const startAt = (n: number, signal: string): Running =>
	world.start([...app, "--json"], {
		preload,
		variables: {
			COMFYUME_TEST_KILL_AT: String(n),
			COMFYUME_TEST_KILL_LOG: world.path("killed-at"),
			COMFYUME_TEST_KILL_SIGNAL: signal,
		},
	})
const where = () => readFileSync(world.path("killed-at"), "utf8")
const hostsIn = async (place: string) =>
	(await storedIn(world))
		.filter((one) => one.place === place && one.key.endsWith(".json"))
		.map(({ content }) => (JSON.parse(content.toString()) as { host: string }).host)
		.sort()
const lockText = () =>
	readFile(join(world.share, "cache/backups/sandbox/.comfyume.lock"), "utf8").catch(() => "")

/** The shell that holds the share's lock for a process, found by what it has open. */
async function lockHolder(of: number): Promise<number | undefined> {
	for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
		const [stat, line] = await Promise.all(
			["stat", "cmdline"].map((file) => readFile(`/proc/${pid}/${file}`, "utf8").catch(() => "")),
		)
		// cat has taken the shell's place.
		const parent = Number(stat?.slice(stat.lastIndexOf(")")).split(" ")[2])
		if (parent !== of || line !== "cat\0") continue
		const file = await readlink(`/proc/${pid}/fd/9`).catch(() => "")
		if (file.endsWith("/.comfyume.lock")) return Number(pid)
	}
	return undefined
}

test("kill -9 of the one at any change: the other, waiting or not, finishes, and so does the next run", async () => {
	// In `npm test` at every third; with COMFYUME_TEST_RUNS at each.
	for (let n = 1; ; n += runs(1) > 1 ? 1 : 3) {
		await begin()
		const dying = startAt(n, "SIGKILL")
		const other = world.start([...gpu, "--json"])
		const [ended, went] = await Promise.all([dying.ended, other.ended])
		const at = `change ${n}, ${where()}`
		expect(went.exitCode, `${at}\n${went.stdout}`).toBe(0)
		expect(wrongWith(await storedIn(world)), at).toEqual([])
		expect(await hostsIn("share"), at).toContain("gpu-1")
		expect(await hostsIn("r2"), at).toContain("gpu-1")
		if (where() === "") {
			expect(ended.exitCode, ended.stdout).toBe(0)
			expect(n).toBeGreaterThan(10)
			break
		}
		const again = await world.run([...app, "--json"])
		expect(again.exitCode, `${at}\n${again.stdout}`).toBe(0)
		expect(wrongWith(await storedIn(world)), at).toEqual([])
		for (const place of ["share", "r2"])
			expect([...new Set(await hostsIn(place))], at).toEqual(["app-1", "gpu-1"])
	}
}, 300_000)

test("the one stands still until its lock is the other's: it stops with 5 and nothing of it counts, or was whole", async () => {
	const codes: (number | null)[] = []
	let held = 0
	for (let n = 1; ; n++) {
		await begin()
		const still = startAt(n, "SIGSTOP")
		const over = await Promise.race([
			still.ended.then(() => true),
			poll(() => where() !== "", { what: "it stands still, or is over", deadlineMs: 30_000 }).then(
				() => false,
			),
		])
		if (over) break
		const at = `change ${n}, ${where()}`
		const holder = await lockHolder(still.child.pid ?? 0)
		if (holder !== undefined) {
			held++
			// As the server of a share gives up the lock of a host that it doesn't hear from.
			process.kill(holder, "SIGKILL")
			const other = await world.run([...gpu, "--json"])
			expect(other.exitCode, `${at}\n${other.stdout}`).toBe(0)
			expect(await hostsIn("share"), at).toContain("gpu-1")
		}
		still.child.kill("SIGCONT")
		const ended = await still.ended
		if (holder === undefined) {
			expect(ended.exitCode, `${at}\n${ended.stdout}`).toBe(0)
			continue
		}
		codes.push(ended.exitCode)
		expect([0, 5], `${at}\n${ended.stdout}`).toContain(ended.exitCode)
		expect(wrongWith(await storedIn(world)), at).toEqual([])
		// What the run says is what stands there.
		expect((await hostsIn("share")).includes("app-1"), at).toBe(ended.exitCode === 0)
		expect(await lockText(), `${at}: a loser gives back nothing`).toMatch(/^\d+ free, /)
	}
	expect(held).toBeGreaterThan(4)
	expect(codes.filter((code) => code === 5).length, String(codes)).toBeGreaterThan(3)
}, 300_000)
