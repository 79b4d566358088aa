// The stack's commands where no Docker Engine answers, and their usage: they say so at once.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { install } from "../../support/cli.ts"
import { run } from "../../support/run.ts"

let directory = ""
let launcher = ""
const at = (...parts: string[]) => join(directory, ...parts)

// As Docker's own client says it; the client itself is not everywhere.
const client = `#!/bin/sh
echo "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?" >&2
exit 1
`

beforeAll(async () => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-no-docker-"))
	launcher = await install(at("program"))
	await run("mkdir", [
		"-p",
		at("server/usr/local/bin"),
		at("empty"),
		at("outputs"),
		at("inputs"),
		at("models"),
	])
	writeFileSync(at("server/usr/local/bin/docker"), client, { mode: 0o755 })
	writeFileSync(
		at("comfyume.yaml"),
		`version: 1
environments:
  sandbox:
    domain: workshop.example.test
    allowStandIns: true
    hosts: [{ name: app-1, role: app, connection: directory, directory: ./server }]
    git:
      project: { remote: ./project.git, branch: main, path: /project }
      scripts: { remote: ./scripts.git, branch: main, path: /scripts }
    stack:
      directory: ${at("stack")}
      users: 2
      paths: { outputs: ${at("outputs")}, inputs: ${at("inputs")}, models: ${at("models")}, shareOutputs: ${at("share-outputs")} }
`,
	)
	const generated = await comfyume("generate-users")
	expect(`${generated.exitCode} ${generated.stderr}`).toMatch(/^0 /)
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

const comfyume = (...words: string[]) =>
	run(process.execPath, [launcher, ...words, "--env", "sandbox", "--config", at("comfyume.yaml")], {
		environment: { PATH: process.env["PATH"], HOME: directory },
		allowedExitCodes: "any",
	})

describe("without an answer from Docker", () => {
	test.each([
		["start"],
		["status"],
		["stop"],
		["stop", "--now"],
		["restart", "user001"],
		["logs"],
		["start", "--dry-run"],
	])("%s %s ends with 4 and says how to start it", async (...words) => {
		const { exitCode, stderr } = await comfyume(...words)
		expect({ words, exitCode }).toEqual({ words, exitCode: 4 })
		expect(stderr).toContain("Docker gives no answer on app-1")
		expect(stderr).toMatch(/(try|next): systemctl status docker; systemctl start docker/)
	})
})

describe("usage", () => {
	test.each([
		[["start", "--only", "user003"], "user003 is no service of the stack and nobody in the roster"],
		[["start", "--only", "redsi"], "did you mean redis?"],
		[["start", "--wait", "soon"], "from 1 to 3600 seconds"],
		[["restart"], "missing required argument"],
		[["stop", "user001", "--now"], "--now stops everything"],
		[["logs", "--since", "yesterday"], "as in 90s, 10m"],
	])("%j is refused with 2", async (words, says) => {
		const { exitCode, stderr } = await comfyume(...words)
		expect(exitCode).toBe(2)
		expect(stderr).toContain(says)
	})
})
