// Digests are remembered, files are scrubbed part by part, and what changes while it is looked at is not judged:
// `comfyume verify-models --models` as a shell sees it.
import { spawn } from "node:child_process"
import {
	chmodSync,
	copyFileSync,
	mkdirSync,
	mkdtempSync,
	readdirSync,
	readFileSync,
	renameSync,
	rmSync,
	statSync,
	utimesSync,
	writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterEach, beforeEach, expect, test } from "vitest"
import { makeModel, writeSparseModel } from "../../support/model-maker.ts"
import { poll } from "../../support/poll.ts"
import { run } from "../../support/run.ts"

const launcher = fileURLToPath(new URL("../../../bin/comfyume.js", import.meta.url))
const names = ["a", "b", "c", "d", "e", "f"].map((name) => `loras/${name}.safetensors`)
let directory = ""
const path = (...parts: string[]) => join(directory, ...parts)
const model = (name: string) => path("models/loras", `${name}.safetensors`)

beforeEach(async () => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-cache-"))
	mkdirSync(path("models/loras"), { recursive: true })
	for (const [index, name] of names.entries())
		writeFileSync(path("models", name), makeModel(20_000 + 1000 * index, index + 1))
	const { stdout } = await comfyume("manifest", "create", "--models", "models")
	writeFileSync(path("models.yaml"), stdout)
})
afterEach(() => rmSync(directory, { recursive: true }))

const comfyume = (...words: string[]) =>
	run(process.execPath, [launcher, ...words], {
		workingDirectory: directory,
		environment: { PATH: process.env.PATH, HOME: path("home"), XDG_CACHE_HOME: path("cache") },
		allowedExitCodes: "any",
	})

/** What was changed less than two seconds ago isn't remembered. */
const settle = () =>
	poll(() => names.every((name) => Date.now() - statSync(path("models", name)).ctimeMs > 2100), {
		what: "two seconds after the last change",
		deadlineMs: 5000,
	})

async function verify(...words: string[]) {
	const { exitCode, stdout } = await comfyume(
		...["verify-models", "--models", "models", "--manifest", "models.yaml", "--json"],
		...(words.includes("--scrub") || words.includes("--deep") ? [] : ["--level", "digest"]),
		...words,
	)
	const events = stdout
		.split("\n")
		.filter((line) => line !== "")
		.map((line) => JSON.parse(line))
	const byName = Object.fromEntries(
		events
			.filter(({ event }) => event === "model")
			.map((event) => [event.path.replace(/^loras\/(.*)\.safetensors$/, "$1"), event]),
	)
	const notes = events.filter(({ event }) => event === "note").map(({ text }) => text)
	const remembered = Object.keys(byName).filter((name) => /unchanged since/.test(byName[name].because))
	return { exitCode, byName, notes, remembered }
}

const all = ["a", "b", "c", "d", "e", "f"]
const cacheFile = () => path("cache/comfyume/digests", String(readdirSync(path("cache/comfyume/digests"))[0]))

test("what was read once is remembered, unless --deep asks for its bytes; the cache is its owner's alone", async () => {
	await settle()
	expect(await verify()).toMatchObject({ exitCode: 0, remembered: [] })
	const again = await verify()
	expect(again).toMatchObject({ exitCode: 0, remembered: all, notes: [] })
	expect(again.byName["a"]).toMatchObject({ status: "ok", tier: "digest", hashedAt: expect.any(String) })
	expect(await verify("--deep")).toMatchObject({ exitCode: 0, remembered: [] })
	expect(statSync(cacheFile()).mode & 0o777).toBe(0o600)
	expect(readdirSync(path("cache/comfyume/digests")).length).toBe(1)
})

test("any change of a file forgets it: its bytes, times, owner's rights, another file under its name", async () => {
	await settle()
	await verify()
	const { atime, mtime } = statSync(model("a"))
	// The same size and the same mtime: only ctime tells.
	const changed = readFileSync(model("a"))
	changed[changed.length - 1] = Number(changed.at(-1)) ^ 1
	writeFileSync(model("a"), changed)
	utimesSync(model("a"), atime, mtime)
	utimesSync(model("b"), atime, new Date("2026-01-01T00:00:00Z"))
	chmodSync(model("c"), 0o600)
	copyFileSync(model("d"), path("copy"))
	renameSync(path("copy"), model("d"))
	const { exitCode, byName, remembered } = await verify()
	expect(exitCode).toBe(3)
	expect(byName["a"].status).toBe("digest-mismatch")
	expect(remembered).toEqual(["e", "f"])
})

test("a file that was changed just before it was read, by whatever clock, is not remembered", async () => {
	await settle()
	// As by a share whose clock is ahead.
	utimesSync(model("a"), new Date(), new Date(Date.now() + 3_600_000))
	await verify()
	expect((await verify()).remembered).toEqual(all.slice(1))
})

test("a known digest doesn't hide that the manifest wants another one", async () => {
	await settle()
	await verify()
	const text = readFileSync(path("models.yaml"), "utf8")
	writeFileSync(path("models.yaml"), text.replace(/sha256: [0-9a-f]{64}/, `sha256: ${"a".repeat(64)}`))
	const { exitCode, byName } = await verify()
	expect({ exitCode, status: byName["a"].status }).toEqual({ exitCode: 3, status: "digest-mismatch" })
})

test("a cache that is damaged or that others can write is passed over and said", async () => {
	await settle()
	await verify()
	const right = readFileSync(cacheFile(), "utf8")
	// One digit of one digest.
	const flipped = right.replace(/("sha256":")(.)/, (_, key, digit) => `${key}${digit === "0" ? "1" : "0"}`)
	for (const text of [flipped, right.slice(0, 100), "", "[]", '{"version":2}']) {
		writeFileSync(cacheFile(), text)
		const { exitCode, remembered, notes } = await verify()
		expect({ exitCode, remembered }).toEqual({ exitCode: 0, remembered: [] })
		expect(notes).toEqual([expect.stringMatching(/is passed over: it is damaged/)])
		// It was put right on the way.
		expect((await verify()).remembered).toEqual(all)
	}
	chmodSync(cacheFile(), 0o666)
	expect(await verify()).toMatchObject({
		remembered: [],
		notes: [expect.stringMatching(/passed over: others can write it/)],
	})
})

test("a cache that can't be kept is said, and nothing else fails", async () => {
	await settle()
	writeFileSync(path("cache"), "a file where the directory should be")
	const { exitCode, notes } = await verify()
	expect(exitCode).toBe(0)
	expect(notes).toEqual([expect.stringMatching(/digests can't be kept|is passed over/)])
})

test("a scrub reads its part alone; all parts read every file once; coverage says what was never read", async () => {
	await settle()
	const seen: string[] = []
	for (const part of [1, 2, 3]) {
		const { exitCode, byName, remembered, notes } = await verify("--scrub", `${part}/3`)
		expect(exitCode).toBe(0)
		const read = all.filter((name) => byName[name].tier === "digest" && !remembered.includes(name))
		expect(remembered).toEqual(seen.toSorted())
		seen.push(...read)
		expect(notes).toEqual([expect.stringMatching(new RegExp(`^coverage: .*; ${6 - seen.length} of 6 never`))])
	}
	expect(seen.toSorted()).toEqual(all)
	// A part is read although it is remembered.
	const { remembered } = await verify("--scrub", "1/3")
	expect(remembered.length).toBeLessThan(6)
})

test("a scrub finds a flipped byte in its part, and still sees what is missing from others", async () => {
	const flipped = makeModel(20_000, 1)
	flipped[flipped.length - 9] = Number(flipped.at(-9)) ^ 1
	writeFileSync(model("a"), flipped)
	rmSync(model("f"))
	const first = await verify("--scrub", "1/3")
	expect(first.exitCode).toBe(3)
	expect(first.byName["a"].status).toBe("digest-mismatch")
	expect(first.byName["f"].status).toBe("missing")
	expect((await verify("--scrub", "3/3")).byName["a"].status).toBe("ok")
})

test("what was hashed before Ctrl-C is remembered, and the run ends at once with 130", async () => {
	await settle()
	writeSparseModel(path("models/vae/huge.safetensors"), 60_000_000_000)
	const child = spawn(
		process.execPath,
		[launcher, "verify-models", "--models", "models", "--deep", "--json"],
		{
			cwd: directory,
			env: { PATH: process.env.PATH, HOME: path("home"), XDG_CACHE_HOME: path("cache") },
			stdio: ["ignore", "pipe", "pipe"],
		},
	)
	const ended = new Promise<number | null>((resolve) => child.once("close", resolve))
	let stdout = ""
	child.stdout.setEncoding("utf8").on("data", (text: string) => {
		stdout += text
	})
	child.stderr.resume()
	await poll(() => stdout.includes("loras/f.safetensors"), { what: "the small files", deadlineMs: 20_000 })
	child.kill("SIGINT")
	expect(await ended).toBe(130)
	rmSync(path("models/vae"), { recursive: true })
	expect((await verify()).remembered).toEqual(all)
})
