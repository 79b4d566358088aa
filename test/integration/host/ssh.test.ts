// What only SSH can do wrong: keys on both sides, connections that fail or break, and what is left running there.
import { execFileSync, spawn } from "node:child_process"
import { readFile, writeFile } from "node:fs/promises"
import { createServer, type Server } from "node:net"
import { join } from "node:path"
import { PassThrough } from "node:stream"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import { command } from "../../../src/lib/host/command.ts"
import { openSshHost, type SshHostOptions } from "../../../src/lib/host/ssh.ts"
import { commandLine, sudoRefusal } from "../../../src/lib/host/ssh-command.ts"
import { readHostKeys } from "../../../src/lib/host/ssh-connection.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { processesWith, until } from "../../support/processes.ts"
import { fingerprint, freePort, makeKey, openTestSshd, type TestSshd } from "../../support/sshd.ts"

let sshd: TestSshd
let servers: Server[] = []

beforeAll(async () => {
	sshd = await openTestSshd({ keyTypes: ["ed25519", "ecdsa", "rsa"] })
})
afterAll(async () => {
	for (const server of servers) server.close()
	servers = []
	await sshd?.[Symbol.asyncDispose]()
})

const options = (changes: Partial<SshHostOptions> = {}): SshHostOptions => ({
	name: "gpu-1",
	address: sshd.address,
	port: sshd.port,
	user: sshd.user,
	knownHosts: sshd.knownHosts,
	keyFiles: [sshd.keyFile],
	connectTimeoutMs: 10_000,
	keepaliveMs: 10_000,
	sudo: false,
	signal: new AbortController().signal,
	...changes,
})

const opens = async (changes: Partial<SshHostOptions> = {}): Promise<boolean> => {
	await using host = await openSshHost(options(changes))
	return await host.test(command("true"))
}

const file = async (name: string, content: string): Promise<string> => {
	const path = join(sshd.directory, name)
	await writeFile(path, content)
	return path
}

const here = () => `[127.0.0.1]:${sshd.port}`
const keyOf = (type: string) => sshd.hostKeys[type] ?? { fingerprint: "", line: "" }

describe("the host's key", () => {
	it.each(["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])(
		"is asked for by the type on record: %s",
		async (type) => {
			const knownHosts = await file(`known-${type}`, `${here()} ${keyOf(type).line}\n`)
			expect(await opens({ knownHosts })).toBe(true)
		},
	)

	it("is refused when it is unknown, with its fingerprint and the command that trusts it", async () => {
		const { fingerprint } = keyOf("ssh-ed25519")
		await expect(opens({ knownHosts: join(sshd.directory, "missing") })).rejects.toMatchObject({
			exitCode: 8,
			message: `the key of gpu-1 is not known: it shows ${fingerprint}`,
			hint: expect.stringContaining(`comfyume host trust gpu-1 ${fingerprint}`),
		})
	})

	it("is refused when it has changed, naming both fingerprints and the line of the old one", async () => {
		const other = await makeKey(join(sshd.directory, "other-host"), "ed25519")
		const line = (await readFile(`${other}.pub`, "utf8")).trim()
		const knownHosts = await file("known-changed", `# a comment\n${here()} ${line}\n`)
		const refused = opens({ knownHosts })
		await expect(refused).rejects.toMatchObject({ exitCode: 8, hint: expect.stringContaining("--replace") })
		await expect(refused).rejects.toThrow(keyOf("ssh-ed25519").fingerprint)
		await expect(refused).rejects.toThrow(
			`${await fingerprint(`${other}.pub`)} (ssh-ed25519, ${knownHosts} line 2)`,
		)
		await expect(refused).rejects.toThrow(/HAS CHANGED/)
	})

	it("is refused when it is revoked, although it is pinned", async () => {
		const { line, fingerprint } = keyOf("ssh-ed25519")
		const knownHosts = await file("known-revoked", `${here()} ${line}\n@revoked ${here()} ${line}\n`)
		await expect(opens({ knownHosts, hostKeys: [fingerprint] })).rejects.toThrow(/REVOKED key.* line 2/)
	})

	it.each(["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])(
		"is taken when it is pinned, or given for this run: %s",
		async (type) => {
			const { fingerprint } = keyOf(type)
			const knownHosts = join(sshd.directory, "missing")
			expect(await opens({ knownHosts, hostKeys: [fingerprint] })).toBe(true)
			expect(await opens({ knownHosts, extraFingerprint: fingerprint })).toBe(true)
		},
	)

	it("is refused when another is pinned", async () => {
		const pinned = `SHA256:${"A".repeat(43)}`
		await expect(opens({ knownHosts: join(sshd.directory, "missing"), hostKeys: [pinned] })).rejects.toThrow(
			`expected was ${pinned}`,
		)
	})

	it("can be read in all its types without logging in", async () => {
		const keys = await readHostKeys(options())
		expect(keys.map((key) => key.toString("base64")).sort()).toEqual(
			Object.values(sshd.hostKeys)
				.map(({ line }) => line.split(" ")[1])
				.sort(),
		)
	})
})

describe("our keys", () => {
	it("are refused with exit code 6 and the command that would help", async () => {
		const stranger = await makeKey(join(sshd.directory, "stranger"), "ed25519")
		await expect(opens({ keyFiles: [stranger] })).rejects.toMatchObject({
			exitCode: 6,
			message: `gpu-1 (127.0.0.1 port ${sshd.port}) refused our keys for ${sshd.user}`,
			hint: `ssh-add ${stranger}`,
		})
	})

	it("open with a passphrase, and say so without one", async () => {
		const locked = await makeKey(join(sshd.directory, "locked"), "ed25519", "correct horse")
		const authorized = join(sshd.directory, "authorized_keys")
		await writeFile(
			authorized,
			(await readFile(authorized, "utf8")) + (await readFile(`${locked}.pub`, "utf8")),
		)
		expect(await opens({ keyFiles: [locked], passphrase: new Secret("correct horse") })).toBe(true)
		const closed = opens({ keyFiles: [locked] })
		await expect(closed).rejects.toMatchObject({ exitCode: 6, hint: `ssh-add ${locked}` })
		await expect(closed).rejects.toThrow(`${locked} is encrypted, and no passphrase was given`)
		await expect(opens({ keyFiles: [locked], passphrase: new Secret("wrong") })).rejects.toThrow(
			`${locked} is encrypted, and the passphrase doesn't open it`,
		)
	})

	it("come from the agent, and from a file when the agent is gone", async () => {
		const agentSocket = join(sshd.directory, "agent")
		const agent = spawn("ssh-agent", ["-D", "-a", agentSocket], { stdio: "ignore" })
		try {
			await until("the agent answers", () => {
				try {
					execFileSync("ssh-add", ["-q", sshd.keyFile], {
						env: { ...process.env, SSH_AUTH_SOCK: agentSocket },
						stdio: "ignore",
					})
					return true
				} catch {
					return false
				}
			})
			expect(await opens({ keyFiles: [], agentSocket })).toBe(true)
		} finally {
			agent.kill()
		}
		expect(await opens({ agentSocket: join(sshd.directory, "no-agent") })).toBe(true)
	})
})

describe("a host that can't be reached", () => {
	const silent = async (greeting: string): Promise<number> => {
		const server = createServer((socket) => socket.on("error", () => {}).write(greeting))
		servers.push(server)
		await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
		const address = server.address()
		if (address === null || typeof address === "string") throw new Error("no port")
		return address.port
	}

	it("refuses the connection", async () => {
		await expect(opens({ port: await freePort() })).rejects.toMatchObject({
			exitCode: 4,
			message: expect.stringMatching(
				/gpu-1 \(127\.0\.0\.1 port \d+\) refuses the connection: no sshd listens there/,
			),
		})
	})

	it("has no such name", async () => {
		await expect(opens({ address: "no-such-host.invalid" })).rejects.toMatchObject({
			exitCode: 4,
			message: expect.stringMatching(/no-such-host\.invalid port \d+\) has no address/),
		})
	})

	it("says nothing in time", async () => {
		await expect(opens({ port: await silent(""), connectTimeoutMs: 300 })).rejects.toMatchObject({
			exitCode: 4,
			message: expect.stringMatching(/gave no answer within 300 ms/),
		})
	})

	it("speaks something else", async () => {
		await expect(
			opens({ port: await silent("HTTP/1.1 400 Bad Request\r\n\r\n".repeat(100)), connectTimeoutMs: 2000 }),
		).rejects.toMatchObject({
			exitCode: 4,
		})
	})

	it("isn't waited for once the run is stopped", async () => {
		const controller = new AbortController()
		const opening = opens({ port: await silent(""), signal: controller.signal })
		opening.catch(() => {})
		controller.abort(new Error("stopped by the test"))
		await expect(opening).rejects.toThrow(/stopped by the test/)
	})
})

describe("a connection that breaks", () => {
	it("fails everything under way as unreachable, and everything after it", async () => {
		await using mortal = await openTestSshd()
		const host = await openSshHost(
			options({ port: mortal.port, knownHosts: mortal.knownHosts, keyFiles: [mortal.keyFile] }),
		)
		const underWay = [
			host.capture(command("sleep", "1000.7")),
			host.capture(command("cat"), { stdin: new PassThrough() }),
			host
				.put(mortal.keyFile, `${mortal.directory}/copy`, { mode: 0o600 })
				.then(() => host.capture(command("sleep", "1000.7"))),
		]
		for (const work of underWay) work.catch(() => {})
		await until("the programs run", async () => (await processesWith("sleep 1000.7")).length >= 2)
		await mortal.kill()
		for (const work of underWay)
			await expect(work).rejects.toMatchObject({
				exitCode: 4,
				message: expect.stringMatching(/connection to gpu-1 was lost/),
			})
		await expect(host.read("/etc/hostname")).rejects.toMatchObject({ exitCode: 4 })
		await host[Symbol.asyncDispose]()
		await until("the programs are gone", async () => (await processesWith("sleep 1000.7")).length === 0)
	})

	it("leaves nothing running when the client is killed", async () => {
		const marker = "1000.8"
		const client = spawn(
			process.execPath,
			[
				"--input-type=module",
				"-e",
				`
			const { openSshHost } = await import(${JSON.stringify(new URL("../../../src/lib/host/ssh.ts", import.meta.url).href)})
			const host = await openSshHost({ ...${JSON.stringify(options())}, signal: new AbortController().signal })
			await Promise.all([
				host.execute({ program: "sh", args: ["-c", "sleep $0; sleep $0", "${marker}"] }),
				host.execute({ program: "sleep", args: ["${marker}"] }, { stdin: Buffer.alloc(9000000) }),
			])`,
			],
			{ stdio: "inherit" },
		)
		await until("the programs run", async () => (await processesWith(`sleep ${marker}`)).length >= 2)
		client.kill("SIGKILL")
		await until("the programs are gone", async () => (await processesWith(marker)).length === 0)
	})

	it("kills what doesn't hear the hang-up", async () => {
		const marker = "1000.9"
		const controller = new AbortController()
		await using host = await openSshHost(options({ signal: controller.signal }))
		const deaf = host.execute(command("sh", "-c", "trap '' HUP TERM; sleep $0; sleep $0", marker))
		deaf.catch(() => {})
		await until("it runs", async () => (await processesWith(`sleep ${marker}`)).length >= 1)
		controller.abort()
		await expect(deaf).rejects.toThrow(/stopped/)
		await until("it is gone", async () => (await processesWith(marker)).length === 0, 20_000)
	}, 40_000)
})

describe("root by sudo", () => {
	// sudo is not on every machine; what it says when it refuses is known.
	it("names the user and the line for sudoers when sudo refuses", () => {
		expect(sudoRefusal("gpu-1", "dev", "sudo: a password is required\n")).toMatchObject({
			exitCode: 6,
			message: "gpu-1 lets dev do nothing as root: sudo: a password is required",
			hint: expect.stringContaining("dev ALL=(ALL) NOPASSWD: ALL"),
		})
	})

	it("never waits for a password, and puts everything below it", () => {
		expect(commandLine(command("id"), 0, true)).toMatch(
			/^exec sudo -n -- env LC_ALL=.* perl -e .* -- 0 '' id$/s,
		)
	})
})
