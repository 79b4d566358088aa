// The stack's files and logs on a host elsewhere: the host's side as a client over SSH starts it, and what a client refuses.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { localHost } from "../../../src/lib/host/local.ts"
import { runOnHost } from "../../../src/lib/host/session.ts"
import type { Event } from "../../../src/lib/plan/events.ts"
import { install, inventory } from "../../support/cli.ts"
import { poll } from "../../support/poll.ts"
import { processesWith } from "../../support/processes.ts"
import { run } from "../../support/run.ts"

let program = ""
let executable = ""
let directory = ""
const at = (...parts: string[]) => join(directory, ...parts)

const configuration = (host: string) => `version: 1
environments:
  sandbox:
    domain: workshop.example.test
    allowStandIns: true
    hosts: [{ name: app-1, role: app, ${host} }]
    git:
      project: { remote: ./project.git, branch: main, path: /project }
      scripts: { remote: ./scripts.git, branch: main, path: /scripts }
    stack:
      directory: ${at("stack")}
      users: 2
      paths: { outputs: ${at("outputs")}, inputs: ${at("inputs")}, models: ${at("models")}, shareOutputs: ${at("share-outputs")} }
`

beforeAll(async () => {
	program = mkdtempSync(join(tmpdir(), "comfyume-elsewhere-program-"))
	const launcher = await install(program)
	executable = join(program, "comfyume")
	writeFileSync(executable, `#!/bin/sh\nexec "${process.execPath}" "${launcher}" "$@"\n`, { mode: 0o755 })
})
afterAll(() => rmSync(program, { recursive: true, force: true }))
beforeEach(() => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-elsewhere-"))
	for (const name of ["outputs", "inputs", "models", "server/usr/local/bin"])
		mkdirSync(at(name), { recursive: true })
	return () => rmSync(directory, { recursive: true, force: true })
})

/** What a client does over SSH, without the SSH. */
async function onHost(argv: readonly string[], files: Record<string, string> = {}, signal?: AbortSignal) {
	const events: Event[] = []
	const payload = {
		...{ version: 1, configurationPath: at("comfyume.yaml"), environment: "sandbox", host: "app-1" },
		configuration: configuration("connection: directory, directory: ./server"),
		...{
			place: "root@203.0.113.10 over SSH",
			spoken: "--env sandbox",
			secrets: JSON.stringify({ version: 1, secrets: {} }),
			files,
		},
	}
	await using host = localHost({ name: "app-1", environment: { PATH: process.env["PATH"] } })
	const exitCode = await runOnHost(host, {
		...{ executable, argv, payload },
		onEvent: (event) => void events.push(event),
		onTalk: () => {},
		signal: signal ?? new AbortController().signal,
	})
	return { exitCode, events, said: JSON.stringify(events) }
}

const passwords = () =>
	[...readFileSync(at("stack/credentials.env"), "utf8").matchAll(/=(\w+):(.+)$/gm)].map(
		([, , password]) => password ?? "",
	)

describe("on a host elsewhere", () => {
	test("generate-users writes there, tells what, and no password comes back", async () => {
		const dry = await onHost(["generate-users", "--dry-run"])
		expect(dry.exitCode).toBe(0)
		expect(existsSync(at("stack"))).toBe(false)
		const { exitCode, events, said } = await onHost(["generate-users"])
		expect(exitCode).toBe(0)
		expect(events).toContainEqual(
			expect.objectContaining({ event: "change", change: "new", name: "compose.yaml" }),
		)
		expect(events[0]).toMatchObject({ event: "plan", place: "root@203.0.113.10 over SSH" })
		expect(passwords()).toHaveLength(3)
		for (const password of passwords()) expect(said).not.toContain(password)
		const before = inventory(at("stack"))
		expect((await onHost(["generate-users"])).exitCode).toBe(0)
		expect(inventory(at("stack"))).toEqual(before)
	})

	test("an older credentials file goes along with the run", async () => {
		const older = "USER_CREDENTIALS_USER001=user001:made-up-older-password\n"
		const argv = ["generate-users", "--credentials", "old.env"]
		const { exitCode, said } = await onHost(argv, { credentials: older })
		expect(exitCode).toBe(0)
		expect(passwords()).toContain("made-up-older-password")
		expect(said).not.toContain("made-up-older-password")
	})

	test("env render keeps what stands there", async () => {
		expect((await onHost(["generate-users"])).exitCode).toBe(0)
		const before = readFileSync(at("stack/.env"), "utf8")
		expect((await onHost(["env", "render"])).exitCode).toBe(0)
		expect(readFileSync(at("stack/.env"), "utf8")).toBe(before)
		const { exitCode, events } = await onHost(["env", "render", "--rotate", "TOKEN_KEY"])
		expect(exitCode).toBe(0)
		expect(events).toContainEqual(
			expect.objectContaining({ event: "change", change: "new secret", name: "TOKEN_KEY" }),
		)
		expect(readFileSync(at("stack/.env"), "utf8")).not.toBe(before)
	})

	test("logs come line by line without secrets, and nobody goes on reading when the client has gone", async () => {
		expect((await onHost(["generate-users"])).exitCode).toBe(0)
		const [password = ""] = passwords()
		// Docker's client as far as logs need it.
		const container = { Id: "c0ffee", Name: "/comfy-user001", Image: "x", RestartCount: 0 }
		const state = {
			Status: "running",
			ExitCode: 0,
			OOMKilled: false,
			Error: "",
			StartedAt: "",
			FinishedAt: "",
		}
		const labels = { Labels: { "com.docker.compose.project": "comfyume" } }
		writeFileSync(
			at("server/usr/local/bin/docker"),
			`#!/bin/sh
case $1 in
	ps) echo c0ffee ;;
	inspect) echo '${JSON.stringify([{ ...container, State: state, Config: labels }])}' ;;
	logs) echo "2026-11-20T06:30:00.000000001Z signs in with ${password}"; exec sleep 1234.5 ;;
esac
`,
			{ mode: 0o755 },
		)
		const controller = new AbortController()
		const ended = onHost(["logs", "--follow", "user001"], {}, controller.signal)
		await poll(async () => (await processesWith("sleep 1234.5")).length > 0, {
			...{ what: "somebody who reads", deadlineMs: 30_000 },
		})
		controller.abort(new Error("Ctrl-C"))
		const { exitCode, events } = await ended
		expect(exitCode).toBe(129)
		expect(events).toContainEqual(
			expect.objectContaining({
				...{ event: "log", container: "comfy-user001", text: "signs in with [secret]" },
				saidAt: "2026-11-20T06:30:00.000000001Z",
			}),
		)
		expect(await processesWith("sleep 1234.5")).toEqual([])
	})
})

describe("a client", () => {
	test("refuses --csv for a host elsewhere before it connects to anything", async () => {
		writeFileSync(at("comfyume.yaml"), configuration("address: 203.0.113.10, user: root"))
		const words = [
			"generate-users",
			"--csv",
			"sheet.csv",
			"--env",
			"sandbox",
			"--config",
			at("comfyume.yaml"),
		]
		const { exitCode, stderr } = await run(executable, words, {
			...{ allowedExitCodes: "any", environment: { PATH: process.env["PATH"], HOME: directory } },
		})
		expect(exitCode).toBe(2)
		expect(stderr).toContain("--csv holds passwords, which don't travel back from a host")
		expect(stderr).toContain("next: run it on the host")
	})
})
