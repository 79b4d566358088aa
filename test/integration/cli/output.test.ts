// What goes where, what the options do, and that looking changes nothing.
import { execFile } from "node:child_process"
import { readdirSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { createWorld, inventory, type Saved, type World } from "../../support/cli.ts"
import { contentsOf, storedIn } from "../../support/snapshots.ts"

const all = [
	"tailscale-identity",
	"ssh-host-keys",
	"ufw",
	"fail2ban",
	"home",
	"project",
	"scripts",
	"env-file",
]
const readingOnly = /^(List|Head|Get)/

let world: World
let made: Saved
let lost: Saved
beforeAll(async () => {
	world = await createWorld()
	made = await world.save()
	expect((await world.run(["backup"])).exitCode).toBe(0)
	await world.loseServer()
	lost = await world.save()
})
afterAll(() => world?.[Symbol.asyncDispose]())

/** Everything there is: files with their times, objects, and the operator's own directory. */
const everything = async () => ({
	files: [...inventory(world.directory, ["package"])].filter(([path]) => !path.startsWith("/saved-")),
	objects: contentsOf(await storedIn(world)),
})

describe.each([
	["backup", () => made],
	["restore", () => lost],
] as const)("%s --dry-run", (command, saved) => {
	test("says what would be done, changes nothing at all, and only reads from R2", async () => {
		await saved().load()
		const before = await everything()
		const requests = world.s3.log.length
		const flags = command === "restore" ? ["--identity-is-free"] : []
		const dry = await world.run([command, "--dry-run", "--json", ...flags])
		expect(dry.exitCode, dry.stdout).toBe(0)
		expect(all.map((name) => dry.outcomes[name])).toEqual(all.map(() => "planned"))
		expect(await everything()).toEqual(before)
		const asked = world.s3.log.slice(requests).map(({ operation }) => operation)
		expect(asked.length).toBeGreaterThan(0)
		expect(asked.filter((operation) => !readingOnly.test(operation))).toEqual([])
	})

	test("names itself as one, and the command that does it", async () => {
		await saved().load()
		const { stdout, stderr } = await world.run([command, "--dry-run", "--only", "ufw"])
		expect(stdout).toBe("artifact  verified\nufw       would be applied\n")
		expect(stderr).toMatch(/\(dry run: nothing is changed\)/)
		expect(stderr).toMatch(new RegExp(`next: comfyume ${command} --env sandbox --config \\S+ --only ufw\\n$`))
	})
})

describe("the options of a restore", () => {
	beforeEach(() => lost.load())
	const stepsOf = async (...words: string[]) => {
		const run = await world.run(["restore", "--identity-is-free", "--dry-run", "--json", ...words])
		expect(run.exitCode, run.stdout).toBe(0)
		return Object.keys(run.outcomes).filter((name) => all.includes(name))
	}

	test("--only and --skip pick artifacts", async () => {
		expect(await stepsOf("--only", "ufw,home")).toEqual(["ufw", "home"])
		expect(await stepsOf("--skip", "ufw,home")).toEqual(
			all.filter((name) => name !== "ufw" && name !== "home"),
		)
	})

	test("--from asks nobody else", async () => {
		const requests = world.s3.log.length
		expect((await world.run(["restore", "--only", "ufw", "--from", "share"])).exitCode).toBe(0)
		expect(world.s3.log.length).toBe(requests)
	})

	test("--at before the first backup finds nothing, and says of which time", async () => {
		const { exitCode, stderr } = await world.run(["restore", "--only", "ufw", "--at", "2026-01-01"])
		expect(exitCode).toBe(3)
		expect(stderr).toContain("there is no snapshot of ufw from before 2026-01-01T00:00:00.000Z")
	})

	test("--quiet says nothing when all is well, and what went wrong when not", async () => {
		expect(await world.run(["restore", "--only", "ufw", "--quiet"])).toMatchObject({
			exitCode: 0,
			stdout: "",
			stderr: "",
		})
		const failed = await world.run(["restore", "--only", "tailscale-identity", "--quiet"])
		expect(failed.exitCode).toBe(8)
		expect(failed.stderr).toContain("failed: the identity of")
	})

	test("--verbose says each check", async () => {
		const { stderr } = await world.run(["restore", "--only", "ufw", "--verbose"])
		expect(stderr).toMatch(/checking: ufw\nneeded: ufw: .*\napplying: ufw\n/)
	})

	test("talk goes to stderr, the table alone to stdout", async () => {
		const { stdout } = await world.run(["restore", "--only", "ufw"])
		expect(stdout).toMatch(/^artifact +source +snapshot.*\nufw +share +\d{8}T\d{6}Z .* byte for byte\n$/)
	})

	test("--json gives one event per line, and nothing else anywhere", async () => {
		const { events, stdout, stderr } = await world.run(["restore", "--only", "ufw", "--json"])
		expect(stderr).toBe("")
		expect(stdout.trimEnd().split("\n")).toHaveLength(events.length)
		expect([events.at(0)?.event, events.at(-1)?.event]).toEqual(["plan", "end"])
	})

	test("no color codes without a terminal, with and without NO_COLOR", async () => {
		for (const variables of [{}, { NO_COLOR: "1" }, { FORCE_COLOR: "1" }]) {
			const { stdout, stderr } = await world.run(["restore", "--only", "ufw", "--dry-run"], { variables })
			expect(`${stdout}${stderr}`).not.toContain("\u001b")
		}
	})
})

test("a reader that goes away changes nothing about the result", async () => {
	await lost.load()
	const closed = world.start(["restore", "--identity-is-free", "--json"])
	closed.child.stdout?.destroy()
	closed.child.stderr?.destroy()
	expect((await closed.ended).exitCode).toBe(0)
	const again = await world.run(["restore", "--identity-is-free", "--json"])
	expect(again.exitCode).toBe(0)
	expect(again.events.filter(({ event }) => event === "applying")).toEqual([])
})

describe("help", () => {
	const withExitCodes = /\n\nExit status:\n( +\d+ {2}.+\n)+$/
	const commands = [
		[],
		["init"],
		["backup"],
		["restore"],
		["config"],
		["config", "check"],
		["config", "show"],
		["config", "schema"],
		["host"],
		["host", "trust"],
		["host", "key"],
	]

	test.each(commands.map((words) => ({ words, spoken: words.join(" ") })))(
		"of comfyume $spoken goes to stdout and ends with the exit codes",
		async ({ words }) => {
			const { exitCode, stdout, stderr } = await world.run([...words, "--help"], { bare: true })
			expect([exitCode, stderr]).toEqual([0, ""])
			expect(stdout).toMatch(withExitCodes)
			for (const line of stdout.split("\n")) expect(line.length).toBeLessThanOrEqual(80)
		},
	)

	test("comes with `help` too, the same", async () => {
		const { stdout } = await world.run(["restore", "--help"], { bare: true })
		expect((await world.run(["help", "restore"], { bare: true })).stdout).toBe(stdout)
		expect((await world.run(["help"], { bare: true })).stdout).toMatch(withExitCodes)
	})

	test.each([[[]], [["config"]], [["host"]]])(
		"is what %j without more gets, with exit code 2",
		async (words) => {
			const { exitCode, stdout, stderr } = await world.run(words, { bare: true })
			expect([exitCode, stdout]).toEqual([2, ""])
			expect(stderr).toMatch(/^Usage: comfyume/)
			expect(stderr).toMatch(withExitCodes)
		},
	)
})

test("the launcher of the clone answers as the package does", async () => {
	const launcher = fileURLToPath(new URL("../../../bin/comfyume.js", import.meta.url))
	const answer = await new Promise((resolve) =>
		execFile(process.execPath, [launcher, "--version"], (_, stdout) => resolve(stdout)),
	)
	expect((await world.run(["--version"], { bare: true })).stdout).toBe(answer)
	expect(readdirSync(world.path("operator"))).toEqual([])
})
