// Drills and the report as an operator runs them, with a real S3 server; and a drill that is killed at any point.
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { bucket, createWorld, inventory, type Saved, type World } from "../../support/cli.ts"
import { flipBit } from "../../support/sandbox.ts"
import { storedIn, wrongWith } from "../../support/snapshots.ts"

const preload = fileURLToPath(new URL("../../support/kill-at.ts", import.meta.url))

let world: World
let backedUp: Saved
beforeAll(async () => {
	world = await createWorld()
	expect((await world.run(["backup"])).exitCode).toBe(0)
	backedUp = await world.save()
})
beforeEach(() => backedUp.load())
afterAll(() => world?.[Symbol.asyncDispose]())

const drillDirectory = () => world.path("server/var/lib/comfyume/drill")
const inSandbox = () => (existsSync(drillDirectory()) ? readdirSync(drillDirectory()) : [])
const newestOnShare = (artifact: string) => {
	const directory = join(world.share, "cache/backups/sandbox", artifact)
	return join(directory, readdirSync(directory).find((name) => name.endsWith(".tar.zst")) ?? "")
}
const keyOf = (artifact: string) =>
	world.s3.objects
		.keys(bucket)
		.find((key) => key.startsWith(`sandbox/${artifact}/`) && key.endsWith(".zst")) ?? ""

describe("a drill", () => {
	test("says of everything how old it is and how fast it came, and deletes nothing", async () => {
		const from = world.s3.log.length
		const ended = await world.run(["backup", "drill"])
		expect(ended.exitCode, ended.stderr).toBe(0)
		expect(ended.stdout).toMatch(
			/^home +share +\S+ +\d+ (s|min)( \d+ s)? +\w{12} +\d+ files as sha256sum has them; back in \d+\.\d s; /m,
		)
		expect(ended.stdout).toMatch(/^project +r2 .* cloned from its remote, git fsck/m)
		const asked = world.s3.log.slice(from).map(({ operation }) => operation)
		expect(new Set(asked)).toEqual(new Set(["ListObjectsV2", "GetObject", "HeadObject", "PutObject"]))
		expect(asked.filter((operation) => operation === "PutObject")).toHaveLength(1)
	})

	test("of an object that R2 has replaced fails with its name, then stands in the history", async () => {
		await world.s3.objects.corrupt(bucket, keyOf("home"), (bytes) => Buffer.from(bytes).fill(0, 40, 41))
		const ended = await world.run(["backup", "drill"])
		expect(ended.exitCode, ended.stderr).toBe(3)
		expect(ended.stderr).toMatch(/^failed: home from r2: \S+: its digest is /m)
		expect(ended.stderr).toMatch(/^ {2}try: comfyume backup --env sandbox .*--only home --full/m)
		expect(ended.stdout).toMatch(/^home +share .*as sha256sum has them/m)
		expect(ended.stdout).toMatch(/^home +r2 .*NOT OK: /m)
		const history = await world.run(["backup", "drill", "--history"])
		expect(history.exitCode, history.stderr).toBe(0)
		const [, good, all] =
			/^drilled \(UTC\) .*\n\d{4}-\d\d-\d\d \d\d:\d\dZ +3 +(\d+) of (\d+) .* home on r2\n$/.exec(
				history.stdout,
			) ?? []
		expect(Number(good), history.stdout).toBe(Number(all) - 1)
	})

	test("of the share alone asks R2 for nothing", async () => {
		const from = world.s3.log.length
		const ended = await world.run(["backup", "drill", "--only", "home", "--from", "share", "--json"])
		expect([ended.exitCode, Object.keys(ended.outcomes)]).toEqual([
			0,
			["share-can-be-read", "home/share", "record/share"],
		])
		expect(world.s3.log.length).toBe(from)
	})

	test.each([
		["--from", "git"],
		["--from", "local"],
		["--only", "nothing"],
	])("%s %s is refused", async (...words) => {
		expect((await world.run(["backup", "drill", ...words])).exitCode).toBe(2)
	})

	test("killed at any point leaves nothing of what it unpacked past the next backup, and no half record", async () => {
		const words = ["backup", "drill", "--only", "ssh-host-keys", "--json"]
		const log = world.path("killed-at")
		let points = 0
		let leftBehind = 0
		for (let n = 1; ; n++) {
			await backedUp.load()
			writeFileSync(log, "")
			const ended = await world.run(words, {
				preload,
				variables: { COMFYUME_TEST_KILL_AT: String(n), COMFYUME_TEST_KILL_LOG: log },
			})
			if (readFileSync(log, "utf8") === "") {
				expect(ended.exitCode, ended.stdout).toBe(0)
				break
			}
			points++
			if (inSandbox().length > 0) leftBehind++
			// Not another drill: that is a month away.
			const backup = await world.run(["backup", "--only", "ufw"])
			expect(backup.exitCode, backup.stderr).toBe(0)
			expect(inSandbox()).toEqual([])
			const records = (await storedIn(world)).filter(({ key }) => key.includes("/records/drills/"))
			for (const { content } of records)
				expect(JSON.parse(content.toString("utf8"))).toMatchObject({ kind: "drill" })
			expect(wrongWith((await storedIn(world)).filter(({ key }) => !key.includes("/records/")))).toEqual([])
		}
		expect(points).toBeGreaterThan(10)
		expect(leftBehind).toBeGreaterThan(3)
	}, 300_000)
})

describe("a report", () => {
	test("goes to stdout as Markdown and changes nothing; 0 when nothing is missing", async () => {
		const before = inventory(world.directory, ["package"])
		const ended = await world.run(["backup", "report"])
		expect(ended.exitCode, ended.stderr).toBe(0)
		expect(ended.stdout).toMatch(
			/^# Backups of app-1, sandbox\n\n.*\n\n## What is missing\n\n- no good drill in the last five weeks/,
		)
		expect(ended.stdout).toMatch(
			/^\| home \| share \| \d{4}-\d\d-\d\d \d\d:\d\d \| (\d+ min )?\d+ (s|min) \| .* \| hourly \| 1 \| 1 \/ 1 \/ 1 \|/m,
		)
		expect(inventory(world.directory, ["package"])).toEqual(before)
	})

	test("with bytes as the share and the bucket have them", async () => {
		const ended = await world.run(["backup", "report", "--quiet"])
		const stored = await storedIn(world)
		for (const place of ["share", "r2"] as const) {
			const ours = stored.filter((one) => one.place === place)
			const bytes = ours.reduce((sum, { content }) => sum + content.length, 0)
			expect(ended.stdout).toMatch(
				new RegExp(`^\\| ${place} \\| \\S+ \\| ${ours.length} \\| ${bytes} \\(.*\\| ${bytes} \\(`, "m"),
			)
		}
	})

	test("of missing backups is written all the same, and ends with 3", async () => {
		for (const key of world.s3.objects.keys(bucket))
			if (key.startsWith("sandbox/home/")) await world.s3.objects.lose(bucket, key)
		const file = join(world.path("operator"), "report.md")
		const ended = await world.run(["backup", "report", "--output", "report.md"])
		expect([ended.exitCode, ended.stdout], ended.stderr).toEqual([3, ""])
		expect(readFileSync(file, "utf8")).toMatch(
			/## What is missing\n\n- \*\*home on r2\*\*: no snapshot of this host; it is due daily/,
		)
	})

	test("that can't be written is an error, and what stood there stays", async () => {
		const ended = await world.run(["backup", "report", "--output", "nowhere/report.md"])
		expect(ended.exitCode, ended.stderr).not.toBe(0)
		expect(ended.stderr).toMatch(/nowhere\/report\.md/)
	})

	test("comes as one event with --json", async () => {
		const ended = await world.run(["backup", "report", "--json"])
		const documents = ended.events.flatMap((event) => (event.event === "document" ? [event.text] : []))
		expect(documents).toEqual([expect.stringMatching(/^# Backups of app-1, sandbox\n/)])
	})

	test("names what was begun and not finished", async () => {
		flipBit(newestOnShare("home"))
		await world.s3.objects.lose(bucket, `${keyOf("ufw")}.json`)
		const ended = await world.run(["backup", "report"])
		expect(ended.exitCode).toBe(3)
		expect(ended.stdout).toMatch(/- r2: sandbox\/ufw\/\S+\.tar\.zst has no sidecar, since/)
	})
})
