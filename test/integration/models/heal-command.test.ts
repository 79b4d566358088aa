// Models put right as an operator types it: the program itself, its words and its exit codes.
import { renameSync, rmSync, truncateSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { afterEach, beforeEach, expect, test } from "vitest"
import { eventSchema } from "../../../src/lib/plan/events.ts"
import { parseRate } from "../../../src/lib/steps/heal-options.ts"
import { makeModel } from "../../support/model-maker.ts"
import { createModelWorld, entryOf, type ModelWorld, sha256 } from "../../support/model-world.ts"
import { run } from "../../support/run.ts"

const launcher = fileURLToPath(new URL("../../../bin/comfyume.js", import.meta.url))
const [a, b] = ["loras/a.safetensors", "vae/b.safetensors"] as const
const contents = { [a]: makeModel(40_000, 1), [b]: makeModel(40_000, 2) }

let world: ModelWorld
beforeEach(async () => {
	world = await createModelWorld()
	world.declare(Object.entries(contents).map(([path, content]) => entryOf(path, content)))
	for (const [path, content] of Object.entries(contents)) {
		world.write(path, content)
		await world.store(path, content)
	}
})
afterEach(() => world[Symbol.asyncDispose]())

const comfyume = (...words: string[]) => bare(...words, "--env", "sandbox", "--config", world.configuration)

const bare = (...words: string[]) =>
	run(process.execPath, [launcher, ...words], {
		workingDirectory: world.directory,
		environment: { PATH: process.env.PATH, HOME: world.directory },
		allowedExitCodes: "any",
	})

test("verify-models --heal says in a dry run what it would fetch, fetches it, and finds all right", async () => {
	rmSync(world.file(a))
	truncateSync(world.file(b), 20_000)
	const heal = ["verify-models", "--heal", "--manifest", "models.yaml"]

	expect((await comfyume("verify-models", "--manifest", "models.yaml")).exitCode).toBe(3)
	const dry = await comfyume(...heal, "--dry-run")
	expect([dry.exitCode, dry.stderr]).toEqual([0, expect.stringContaining("r2 has it: 39.2 KiB")])
	expect(dry.stderr).toContain("2 to apply")
	expect(dry.stderr).toMatch(/next: comfyume verify-models --env sandbox .*--heal .*--manifest models.yaml\n/)
	expect(world.names()).toEqual([b])

	const healed = await comfyume(...heal)
	expect([healed.exitCode, healed.stderr]).toEqual([0, expect.stringContaining("2 applied")])
	for (const [path, content] of Object.entries(contents)) expect(world.digest(path)).toBe(sha256(content))
	expect((await comfyume("verify-models", "--manifest", "models.yaml", "--level", "digest")).exitCode).toBe(0)
})

test("backup and restore --only models are the way there and back", async () => {
	for (const path of [a, b]) await world.s3.objects.lose("model-vault", path)
	const backup = await comfyume("backup", "--only", "models", "--manifest", "models.yaml")
	expect([backup.exitCode, backup.stderr]).toEqual([0, expect.stringContaining("2 applied")])
	expect(backup.stderr).toMatch(/next: comfyume restore .* --only models --manifest models.yaml --dry-run\n/)
	rmSync(world.models, { recursive: true })
	const restore = await comfyume(
		"restore",
		"--only",
		"models",
		"--manifest",
		"models.yaml",
		"--limit",
		"1MiB",
	)
	expect([restore.exitCode, restore.stderr]).toEqual([0, expect.stringContaining("2 applied")])
	expect(restore.stderr).toMatch(/next: comfyume backup .* --only models --manifest models.yaml\n/)
	for (const [path, content] of Object.entries(contents)) expect(world.digest(path)).toBe(sha256(content))
})

test("the command to type next says again what manifest and which place were named", async () => {
	const { exitCode, stderr } = await comfyume("verify-models", "--manifest", "models.yaml", "--from", "r2")
	expect(exitCode).toBe(0)
	expect(stderr).toMatch(/next: comfyume verify-models .* --level digest --from r2 --manifest models.yaml\n/)
	truncateSync(world.file(a), 20_000)
	const backup = await comfyume("backup", "--only", "models", "--manifest", "models.yaml")
	expect(backup.exitCode).toBe(3)
	expect(backup.stderr).toMatch(/comfyume restore .* --manifest models.yaml --only models\n/)
})

test("verify-models --heal --json says of each model what it was and what it came to, in events of one schema", async () => {
	rmSync(world.file(a))
	const { exitCode, stdout } = await comfyume(
		"verify-models",
		"--heal",
		"--json",
		"--manifest",
		"models.yaml",
	)
	const events = stdout
		.trimEnd()
		.split("\n")
		.map((line) => eventSchema.parse(JSON.parse(line)))
	const said = events.flatMap((event) =>
		event.event === "model" ? [`${event.place} ${event.path} ${event.status}`] : [],
	)
	expect(exitCode).toBe(0)
	expect(said).toEqual([`share ${a} missing`, `share ${a} ok`, `share ${b} ok`])
	expect(events.at(-1)).toMatchObject({ event: "end", exitCode: 0 })
})

test("models whose share isn't there are one row and one reason, and nobody is told to make an empty directory", async () => {
	renameSync(world.share, `${world.share}-away`)
	const { exitCode, stdout, stderr } = await comfyume(
		"restore",
		"--only",
		"models",
		"--manifest",
		"models.yaml",
	)
	expect(exitCode).toBe(4)
	expect(stdout.match(/NOT OK|not looked at/gi)).not.toBeNull()
	expect(stdout).not.toContain(a)
	expect(stderr).toContain(`ls -ld ${world.share}; compare share.directory in comfyume.yaml`)
	expect(stdout + stderr).not.toContain("mkdir")
})

test("a model that nobody has, and of which only a repository is known, comes with where to look", async () => {
	world.declare([{ path: "vae/gated.safetensors", repository: "example/gated" }])
	for (const more of [["--dry-run"], []]) {
		const words = ["verify-models", "--heal", "--manifest", "models.yaml", ...more]
		const { exitCode, stderr } = await comfyume(...words)
		expect(exitCode).toBe(3)
		const where = "look in https://huggingface.co/example/gated; what belongs there is vae/gated.safetensors"
		expect(stderr).toContain(where)
	}
})

test.each([
	[["--limit", "fast"], "--heal", "write it as in --limit 20MiB"],
	[["--from-origin"], "", "add --heal"],
	[["--dry-run"], "", "add --heal"],
	[["--scrub", "1/7"], "--heal", "leave out --scrub"],
	[["--models", "models"], "--heal", "leading /"],
	[["--temp-dir", "fetched"], "--heal", "leading /"],
	[["--models-seen-at", "/models"], "", "add --model-paths"],
	[["--workflows", "w", "--models-seen-at", "/models"], "", "add --model-paths"],
])("%s of verify-models is refused with 2 where it means nothing", async (words, more, hint) => {
	const { exitCode, stderr } = await comfyume("verify-models", ...words, ...(more === "" ? [] : [more]))
	expect([exitCode, stderr]).toEqual([2, expect.stringContaining(hint)])
})

test.each([["--level", "digest"], ["--level", "exists"], ["--deep"], ["--scrub", "1/7"]])(
	"%s %s of verify-models means nothing where no model is looked at, and is refused with 2",
	async (...words) => {
		const { exitCode, stderr } = await bare("verify-models", "--workflows", ".", ...words)
		expect([exitCode, stderr]).toEqual([2, expect.stringContaining("add --models or --env")])
	},
)

test("restore refuses a --temp-dir that is relative: to which directory of the host?", async () => {
	const { exitCode, stderr } = await comfyume("restore", "--only", "models", "--temp-dir", "fetched")
	expect([exitCode, stderr]).toEqual([2, expect.stringContaining("leading /")])
})

test("a manifest that isn't right ends with 2 before anything is touched", async () => {
	rmSync(world.file(a))
	const { exitCode, stderr } = await comfyume("restore", "--only", "models", "--manifest", "comfyume.yaml")
	expect([exitCode, stderr]).toEqual([2, expect.stringContaining("comfyume manifest check")])
	expect(world.names()).toEqual([b])
})

test("rates are read as they are written, and what is none is refused", () => {
	const read = ["20MiB", "20m", "1.5 GiB/s", "2048", "10KB"].map(parseRate)
	expect(read).toEqual([20 * 1024 ** 2, 20_000_000, 1.5 * 1024 ** 3, 2048, 10_000])
	for (const text of ["", "0", "-5M", "fast", "10", "1e9", "20MiB/h", "NaN"])
		expect(() => parseRate(text)).toThrow("is not a rate")
})
