import { spawnSync } from "node:child_process"
import { chmodSync, chownSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterEach, beforeEach, describe, expect, test } from "vitest"

const comfyume = fileURLToPath(new URL("../../../bin/comfyume.js", import.meta.url))
const text = `version: 1
environments:
  sandbox:
    domain: sandbox.example.test
    allowStandIns: true
    hosts: [{ name: app-1, role: app, connection: directory, directory: ./server }]
    git:
      project: { remote: /nowhere, branch: main, path: /home/dev/project }
      scripts: { remote: /nowhere, branch: main, path: /home/dev/scripts }
`
const isRoot = process.getuid?.() === 0

let directory: string
let file: string
beforeEach(() => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-found-"))
	file = join(directory, "comfyume.yaml")
	writeFileSync(file, text, { mode: 0o644 })
})
afterEach(() => rmSync(directory, { recursive: true }))

const run = (...words: string[]) =>
	spawnSync(process.execPath, [comfyume, "backup", "--dry-run", "--env", "sandbox", ...words], {
		cwd: directory,
		encoding: "utf8",
	})

// Only root has more to lose than the owner of the file. Everywhere else a file is taken as it is found.
describe(`a configuration that was found by itself (${isRoot ? "as root" : "not as root"})`, () => {
	test.each([
		["belongs to another user", () => isRoot && chownSync(file, 65_534, 65_534)],
		["can be written by all", () => chmodSync(file, 0o666)],
	] as const)("and %s isn't followed by root", (_, arrange) => {
		arrange()
		const { status, stderr } = run()
		expect(status === 8 && /others than root can write it/.test(stderr), stderr).toBe(isRoot)
	})

	test("is taken when nobody else can write it", () => {
		expect(run().stderr).not.toMatch(/others than root/)
	})

	test("is taken when it is named, whoever can write it", () => {
		chmodSync(file, 0o666)
		expect(run("--config", file).stderr).not.toMatch(/others than root/)
	})
})
