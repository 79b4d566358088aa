// kill -9 at every point at which healing changes something: each model is the old file or the new one, and running
// again finishes.
import { spawn } from "node:child_process"
import { existsSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterEach, beforeEach, expect, test } from "vitest"
import { makeModel } from "../../support/model-maker.ts"
import { createModelWorld, entryOf, type ModelWorld, sha256 } from "../../support/model-world.ts"

const launcher = fileURLToPath(new URL("../../../bin/comfyume.js", import.meta.url))
const preload = fileURLToPath(new URL("../../support/kill-at.ts", import.meta.url))
const [missing, damaged] = ["loras/missing.safetensors", "vae/damaged.safetensors"] as const
const contents = { [missing]: makeModel(30_000, 1), [damaged]: makeModel(30_000, 2) }

let world: ModelWorld
beforeEach(async () => {
	world = await createModelWorld()
	world.declare(Object.entries(contents).map(([path, content]) => entryOf(path, content)))
	for (const [path, content] of Object.entries(contents)) await world.store(path, content)
})
afterEach(() => world[Symbol.asyncDispose]())

function breakModels(): void {
	rmSync(world.models, { recursive: true, force: true })
	world.write(damaged, contents[damaged])
	truncateSync(world.file(damaged), 20_000)
}

/** The program itself, ended at its n-th change. */
function killedAt(
	n: number,
	log: string,
): Promise<{ signal: string | null; exitCode: number | null; said: string }> {
	writeFileSync(log, "")
	const words = ["restore", "--only", "models", "--env", "sandbox", "--config", world.configuration]
	const child = spawn(
		process.execPath,
		["--import", preload, launcher, ...words, "--manifest", world.manifestFile],
		{
			cwd: world.directory,
			env: {
				PATH: process.env.PATH,
				HOME: world.directory,
				COMFYUME_TEST_KILL_AT: String(n),
				COMFYUME_TEST_KILL_LOG: log,
			},
			stdio: ["ignore", "pipe", "pipe"],
		},
	)
	let said = ""
	for (const stream of [child.stdout, child.stderr])
		stream.setEncoding("utf8").on("data", (text: string) => {
			said += text
		})
	return new Promise((resolve, reject) => {
		child.once("error", reject)
		child.once("close", (exitCode, signal) => resolve({ signal, exitCode, said }))
	})
}

test("each model is old or new, whole under its name, and a second run finishes", {
	timeout: 240_000,
}, async () => {
	const log = join(world.directory, "killed-at")
	const seen = new Set<string>()
	for (let n = 1; ; n++) {
		breakModels()
		const old = readFileSync(world.file(damaged))
		const ended = await killedAt(n, log)
		const where = readFileSync(log, "utf8")
		if (where === "") {
			expect([ended.exitCode, ended.said]).toEqual([0, expect.stringContaining("2 applied")])
			break
		}
		expect(ended.signal).toBe("SIGKILL")
		seen.add(where.replaceAll(/\S*\//g, ""))
		const context = `change ${n}, ${where}`
		if (existsSync(world.file(missing)))
			expect(world.digest(missing), context).toBe(sha256(contents[missing]))
		expect([sha256(old), sha256(contents[damaged])], context).toContain(world.digest(damaged))

		const again = await world.restore()
		expect(again.exitCode, `${context}\n${again.notes.join("\n")}`).toBe(0)
		for (const [path, content] of Object.entries(contents)) expect(world.digest(path)).toBe(sha256(content))
		const others = world.names().filter((name) => !(name in contents))
		// The damaged file is kept once, whenever the run was killed, and nothing half-written stays.
		expect(others, context).toEqual([expect.stringMatching(/^vae\/damaged\.safetensors\.bad-\d{8}T\d{6}Z$/)])
		expect(readFileSync(world.file(others[0] ?? "")).equals(old), context).toBe(true)
	}
	// Fewer would mean that the moments that matter aren't seen.
	for (const what of ["rename", "link", "open"])
		expect([...seen].some((where) => where.startsWith(what))).toBe(true)
})
