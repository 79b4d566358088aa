// A run on a host from both ends, on this machine and over a real sshd.
import { spawn, spawnSync } from "node:child_process"
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { PassThrough, Readable } from "node:stream"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import { OperatorError } from "../../../src/lib/errors.ts"
import type { Host } from "../../../src/lib/host/host.ts"
import { localHost } from "../../../src/lib/host/local.ts"
import { readSession, runOnHost } from "../../../src/lib/host/session.ts"
import { openSshHost } from "../../../src/lib/host/ssh.ts"
import type { Event } from "../../../src/lib/plan/events.ts"
import { processesWith, until } from "../../support/processes.ts"
import { openTestSshd, type TestSshd } from "../../support/sshd.ts"

let directory: string
let executable: string
let sshd: TestSshd
const source = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))

beforeAll(async () => {
	directory = await mkdtemp(join(tmpdir(), "comfyume-session-"))
	executable = join(directory, "comfyume")
	await writeFile(
		executable,
		`#!/bin/sh\nexec "${process.execPath}" "${source("test/support/session-host.ts")}" "$@"\n`,
	)
	await chmod(executable, 0o755)
	sshd = await openTestSshd()
})
afterAll(async () => {
	await sshd?.[Symbol.asyncDispose]()
	await rm(directory, { recursive: true, force: true })
})

const sshOptions = () => ({
	name: "app-1",
	address: sshd.address,
	port: sshd.port,
	user: sshd.user,
	knownHosts: sshd.knownHosts,
	keyFiles: [sshd.keyFile],
	connectTimeoutMs: 10_000,
	keepaliveMs: 10_000,
	sudo: false,
})

const hosts: [string, () => Promise<Host>][] = [
	["this machine", async () => localHost({ name: "app-1", environment: {} })],
	["a host behind SSH", () => openSshHost({ ...sshOptions(), signal: new AbortController().signal })],
]

describe.each(hosts)("a run on %s", (_, open) => {
	const run = async (
		argv: string[],
		more: { payload?: unknown; signal?: AbortSignal; graceMs?: number } = {},
	) => {
		await using host = await open()
		const events: Event[] = []
		let talk = ""
		const ended = await runOnHost(host, {
			executable,
			argv,
			payload: { secret: "s3cret ü" },
			onEvent: (event) => events.push(event),
			onTalk: (text) => {
				talk += text
			},
			signal: new AbortController().signal,
			...more,
		}).then(
			(exitCode) => ({ exitCode }),
			(error: unknown) => ({ error }),
		)
		return {
			...ended,
			texts: events.map((event) => (event.event === "note" ? event.text : event.event)),
			talk,
		}
	}

	it("hands the payload over, and events, talk and exit code back", async () => {
		expect(await run(["finish"])).toEqual({ exitCode: 3, texts: ['{"secret":"s3cret ü"}'], talk: "tälk\n" })
	})

	it("takes a payload of megabytes", async () => {
		const payload = "x".repeat(3_000_000)
		expect((await run(["finish"], { payload })).texts).toEqual([JSON.stringify(payload)])
	})

	it("refuses to send more than 4 MiB", async () => {
		expect((await run(["finish"], { payload: "x".repeat(5_000_000) })).valueOf()).toMatchObject({
			error: { message: expect.stringContaining("at most 4 MiB") },
		})
	})

	it.each(["garbage", "unknown"])("says so when the host speaks another language: %s", async (behaviour) => {
		expect(await run([behaviour])).toMatchObject({
			error: {
				message: expect.stringMatching(/the comfyume on app-1 speaks another language: ".*(Welcome|99)/),
			},
		})
	})

	it("lets the host clean up and say its last word when it is stopped", async () => {
		const controller = new AbortController()
		const running = run(["hang", join(directory, "stopped")], { signal: controller.signal })
		await until("it runs", async () => (await processesWith("session-host.ts --session hang")).length > 0)
		controller.abort()
		expect(await running).toMatchObject({ exitCode: 129, texts: ['{"secret":"s3cret ü"}', "cleaned up"] })
		expect(await readFile(join(directory, "stopped"), "utf8")).toBe("129")
	})

	it("ends a host that doesn't end by itself", async () => {
		const controller = new AbortController()
		const running = run(["deaf"], { signal: controller.signal, graceMs: 200 })
		await until("it runs", async () => (await processesWith("session-host.ts --session deaf")).length > 0)
		controller.abort(new OperatorError("stopped by SIGINT", { exitCode: 130 }))
		expect(await running).toMatchObject({ error: { exitCode: 130 } })
		await until(
			"it is gone",
			async () => (await processesWith("session-host.ts --session deaf")).length === 0,
			20_000,
		)
	}, 40_000)
})

it("ends on the host when the process that directs it is killed", async () => {
	const marker = join(directory, "killed")
	const client = spawn(
		process.execPath,
		[
			"--input-type=module",
			"-e",
			`
		const { openSshHost } = await import(${JSON.stringify(`file://${source("src/lib/host/ssh.ts")}`)})
		const { runOnHost } = await import(${JSON.stringify(`file://${source("src/lib/host/session.ts")}`)})
		const signal = new AbortController().signal
		const host = await openSshHost({ ...${JSON.stringify(sshOptions())}, signal })
		await runOnHost(host, { executable: ${JSON.stringify(executable)}, argv: ["hang", ${JSON.stringify(marker)}],
			payload: {}, onEvent() {}, onTalk() {}, signal })`,
		],
		{ stdio: "inherit" },
	)
	await until("it runs", async () => (await processesWith(`--session hang ${marker}`)).length > 0)
	await until(
		"it has its frame",
		async () => (await processesWith(`session-host.ts --session hang ${marker}`)).length > 0,
	)
	client.kill("SIGKILL")
	await until("it is gone", async () => (await processesWith(`--session hang ${marker}`)).length === 0)
})

describe("the frame", () => {
	const frame = (text: string, length = Buffer.byteLength(text)) => {
		const head = Buffer.alloc(4)
		head.writeUInt32BE(length)
		return Buffer.concat([head, Buffer.from(text)])
	}

	it.each([
		["nothing at all", Buffer.alloc(0), "it was cut short"],
		["half a length", Buffer.from([0, 0]), "it was cut short"],
		["half its content", frame('{"a":', 100), "it was cut short"],
		["a length beyond 4 MiB", frame("", 4 * 1024 * 1024 + 1), "at most 4 MiB"],
		["what is no JSON", frame("top secret"), "it is no JSON"],
	])("is refused when it is %s", async (_, bytes, says) => {
		const refused = readSession(Readable.from(bytes.length === 0 ? [] : [bytes]))
		await expect(refused).rejects.toMatchObject({ exitCode: 2, message: expect.stringContaining(says) })
		await expect(refused).rejects.not.toThrow("top secret")
	})

	it("is read however it is cut into pieces, and the end of stdin aborts", async () => {
		const stdin = new PassThrough()
		for (const byte of frame('{"a":"ü"}')) stdin.write(Buffer.from([byte]))
		const { payload, aborted } = await readSession(stdin)
		expect([payload, aborted.aborted]).toEqual([{ a: "ü" }, false])
		stdin.end()
		await until("it is aborted", () => aborted.aborted)
		expect(aborted.reason).toMatchObject({ exitCode: 129 })
	})

	it("goes before the command line's own work, in the real program", async () => {
		const silent = createServer((socket) => socket.on("error", () => {}))
		await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve))
		const address = silent.address()
		const port = typeof address === "object" ? address?.port : undefined
		const argv = [source("src/cli.ts"), "--session", "host", "key", `127.0.0.1:${port}`]
		const connected = new Promise((resolve) => silent.once("connection", resolve))
		const child = spawn(process.execPath, argv, { stdio: ["pipe", "ignore", "pipe"] })
		const ended = new Promise((resolve) => child.once("exit", resolve))
		child.stdin.write(frame("{}"))
		await connected
		child.stdin.end()
		expect(await ended).toBe(129)
		silent.close()
		expect(spawnSync(process.execPath, argv, { input: "bad" }).status).toBe(2)
	})
})
