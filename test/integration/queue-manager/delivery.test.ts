import { execFileSync, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import {
	mkdirSync,
	mkdtempSync,
	readdirSync,
	readFileSync,
	rmSync,
	symlinkSync,
	writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { expect, test } from "vitest"
import { openFilePool } from "../../../src/queue-manager/outputs/file-pool.ts"
import { planOutputs } from "../../../src/queue-manager/outputs/prefix.ts"
import { makePng } from "../../support/comfyui-files.ts"
import { fileRecords } from "../../support/delivery-records.ts"
import { imageWorkflow } from "../../support/share-world.ts"

const script = fileURLToPath(new URL("../../support/deliver-and-die.ts", import.meta.url))

function world() {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-delivery-"))
	const workflow = imageWorkflow()
	const plan = planOutputs(workflow, { job: "job-1", attempt: 1, createdAt: new Date(0) })
	const user = join(directory, "outputs/user001")
	mkdirSync(join(directory, "share", plan.directory), { recursive: true })
	mkdirSync(join(directory, "outputs"))
	const picture = makePng("mine", { prompt: plan.prompt })
	writeFileSync(join(directory, "share", plan.directory, "9~Film_00001_.png"), picture)
	writeFileSync(join(directory, "workflow.json"), JSON.stringify(workflow))
	return {
		directory,
		user,
		picture,
		run: (moment: number) =>
			spawnSync(process.execPath, [script, directory, String(moment)], { encoding: "utf8" }),
		events: () => fileRecords(join(directory, "records.json")).events(),
		[Symbol.dispose]: () => rmSync(directory, { recursive: true, force: true }),
	}
}

function expectDeliveredOnce(
	{ user, picture, events }: ReturnType<typeof world>,
	beside: string[] = [],
): void {
	const names = readdirSync(user).sort()
	const [own = ""] = names.filter((name) => !beside.includes(name))
	expect(names).toEqual([...beside, own].sort())
	expect(own).toMatch(/^Film_\d{5}_\.png$/)
	expect(readFileSync(join(user, own)).equals(picture)).toBe(true)
	expect(events()).toMatchObject([{ job: "job-1", user: "user001", node: "9", filename: own }])
}

test("killed at any moment and run again, a file is delivered once, whole, and nothing else is left", () => {
	using whole = world()
	mkdirSync(whole.user)
	const { moments } = JSON.parse(whole.run(0).stdout) as { moments: number }
	expectDeliveredOnce(whole)
	expect(moments).toBeGreaterThan(12)
	for (let moment = 1; moment <= moments; moment++) {
		using place = world()
		// A file of the same base is there already, and comes a second time meanwhile: never replaced.
		mkdirSync(place.user)
		writeFileSync(join(place.user, "Film_00001_.png"), "the user's own")
		const killed = place.run(moment)
		expect(killed.signal, `moment ${moment}: ${killed.stderr}`).toBe("SIGKILL")
		for (const name of readdirSync(place.user).filter((one) => !one.startsWith(".")))
			expect([place.picture.length, 14], `${name} at ${moment}`).toContain(
				readFileSync(join(place.user, name)).length,
			)
		expect(place.run(0).stderr).toBe("")
		expect(place.run(0).stderr).toBe("")
		expectDeliveredOnce(place, ["Film_00001_.png"])
		expect(readFileSync(join(place.user, "Film_00001_.png"), "utf8")).toBe("the user's own")
	}
}, 120_000)

test("a reserved name that somebody else has taken meanwhile is given up, and theirs stays", () => {
	using place = world()
	// Killed when the name is reserved and the file not there yet.
	let moment = 1
	const records = () => fileRecords(join(place.directory, "records.json"))
	while (JSON.stringify(place.run(moment).signal) === '"SIGKILL"' && !isReserved()) moment++
	function isReserved(): boolean {
		const path = join(place.directory, "records.json")
		const found = spawnSync("cat", [path], { encoding: "utf8" }).stdout
		return found.includes("reserved") && !readdirSync(place.user).some((name) => !name.startsWith("."))
	}
	writeFileSync(join(place.user, "Film_00001_.png"), "theirs")
	expect(place.run(0).stderr).toBe("")
	expect(readFileSync(join(place.user, "Film_00001_.png"), "utf8")).toBe("theirs")
	expectDeliveredOnce(place, ["Film_00001_.png"])
	expect(records().events()).toHaveLength(1)
})

test("no path of the share leads outside of it, by names, links or links above", async () => {
	using place = world()
	await using pool = openFilePool({ name: "the share" })
	const root = join(place.directory, "share")
	symlinkSync("/etc", join(root, "etc"))
	symlinkSync("/etc/passwd", join(root, "passwd"))
	const to = { root: join(place.directory, "outputs"), path: "stolen" }
	for (const path of [
		"../workflow.json",
		"cq/../../workflow.json",
		"etc/passwd",
		"passwd",
		"/etc/passwd",
		"cq//x",
	]) {
		await expect(pool.files.inspect({ root, path }), path).rejects.toThrow(/link|not a path/)
		await expect(pool.files.copy({ from: { root, path }, to, mostBytes: 1e6 }), path).rejects.toThrow(
			/link|not a path/,
		)
	}
	await expect(pool.files.list({ root, path: "etc" })).rejects.toThrow(/link/)
	await expect(pool.files.makeOwn({ root, path: "etc/x" })).rejects.toThrow()
	expect(readdirSync(to.root)).toEqual([])
})

test("a user who swaps their own directory for a link to another's while files come gets nothing into it or out of it", async () => {
	using place = world()
	await using pool = openFilePool({ name: "the share" })
	const outputs = join(place.directory, "outputs")
	const [own, aside, other] = ["user001", "aside", "user002"].map((name) => join(outputs, name))
	for (const path of [own, other]) mkdirSync(path ?? "")
	writeFileSync(join(other ?? "", "private.png"), makePng("private", {}))
	writeFileSync(join(place.directory, "share/a.png"), place.picture)
	// As fast as it can: real directory, link, real directory, …
	// As fast as it can, and whatever comes in between: real directory, link, real directory, …
	const swap = `const fs = require("node:fs"); const [own, aside, other] = process.argv.slice(1)
		const steps = [() => fs.renameSync(own, aside), () => fs.symlinkSync(other, own), () => fs.unlinkSync(own),
			() => fs.renameSync(aside, own)]
		for (;;) for (const step of steps) try { step() } catch {}`
	const swapper = spawn(process.execPath, ["-e", swap, own ?? "", aside ?? "", other ?? ""], {
		stdio: "ignore",
	})
	const gone = once(swapper, "exit")
	let refused = 0
	let arrived = 0
	try {
		for (let turn = 0; turn < 100; turn++) {
			const part = { root: outputs, path: `user001/${turn}.part` }
			const from = { root: join(place.directory, "share"), path: "a.png" }
			try {
				await pool.files.makeOwn({ root: outputs, path: "user001" })
				await pool.files.copy({ from, to: part, mostBytes: 1e6 })
				await pool.files.publish({ ...part, name: `${turn}.png` })
				await pool.files.remove({ root: outputs, path: "user001/private.png" })
				arrived++
			} catch {
				refused++
			}
		}
	} finally {
		swapper.kill("SIGKILL")
		await gone
	}
	expect(refused).toBeGreaterThan(0)
	expect(refused + arrived).toBe(100)
	expect(readdirSync(other ?? "")).toEqual(["private.png"])
})

test("a file above the size cap is not copied", async () => {
	using place = world()
	await using pool = openFilePool({ name: "the share" })
	execFileSync("truncate", ["-s", "5M", join(place.directory, "share/large")])
	const from = { root: join(place.directory, "share"), path: "large" }
	const to = { root: join(place.directory, "outputs"), path: "large" }
	await expect(pool.files.copy({ from, to, mostBytes: 4 * 2 ** 20 })).rejects.toThrow(
		/5242880 bytes, 4194304 are/,
	)
	expect(readdirSync(to.root)).toEqual([])
})

test("what removes a job's directory removes links in it, and not what they point to", async () => {
	using place = world()
	await using pool = openFilePool({ name: "the share" })
	const root = join(place.directory, "share")
	mkdirSync(join(root, "tree/inner"), { recursive: true })
	symlinkSync(place.directory, join(root, "tree/inner/out"))
	await pool.files.removeTree({ root, path: "tree" })
	expect(readdirSync(root)).toEqual(["cq"])
	expect(readdirSync(place.directory)).toContain("workflow.json")
})
