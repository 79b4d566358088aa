// The reader and writer of `known_hosts`, held against OpenSSH's own tools.
import { execFileSync } from "node:child_process"
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import {
	fingerprintOf,
	isFingerprint,
	judgeHostKey,
	keysOf,
	readKnownHosts,
	withKnownKey,
} from "../../../src/lib/host/known-hosts.ts"

let directory: string
const lines: string[] = []
const keys: Buffer[] = []

beforeAll(async () => {
	directory = await mkdtemp(join(tmpdir(), "comfyume-known-"))
	for (const name of ["first", "second"]) {
		execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", join(directory, name)])
		const line = (await readFile(join(directory, `${name}.pub`), "utf8")).trim()
		lines.push(line)
		keys.push(Buffer.from(line.split(" ")[1] ?? "", "base64"))
	}
})
afterAll(() => rm(directory, { recursive: true, force: true }))

const key = (index: number) => keys[index] ?? Buffer.alloc(0)
const host = { address: "app.example.test", port: 22 }
const has = (text: string, at = host) => keysOf(readKnownHosts(text), at).length > 0

describe("known_hosts", () => {
	it.each([
		["app.example.test", true],
		["other.example.test,app.example.test", true],
		["APP.example.test", true],
		["*.example.test", true],
		["ap?.example.test", true],
		["*.example.test,!app.example.test", false],
		["!app.example.test,*.example.test", false],
		["appXexample.test", false],
		["[app.example.test]:22", false],
		["[app.example.test]:2222", false],
		["app.example.test.evil.test", false],
	])("finds the host under the names %s: %s", (names, expected) => {
		expect(has(`${names} ${lines[0]}\n`)).toBe(expected)
	})

	it("finds a host at another port by its name in brackets only", () => {
		const at = { address: "203.0.113.7", port: 2222 }
		expect(has(`[203.0.113.7]:2222 ${lines[0]}`, at)).toBe(true)
		expect(has(`203.0.113.7 ${lines[0]}`, at)).toBe(false)
	})

	it("finds the names that ssh-keygen has hashed", async () => {
		const file = join(directory, "hashed")
		await writeFile(file, `app.example.test ${lines[0]}\n[203.0.113.7]:2222 ${lines[1]}\n`)
		execFileSync("ssh-keygen", ["-H", "-f", file], { stdio: "ignore" })
		const text = await readFile(file, "utf8")
		expect(text).not.toContain("example")
		expect(keysOf(readKnownHosts(text), host).map(({ line }) => line)).toEqual([1])
		expect(
			keysOf(readKnownHosts(text), { address: "203.0.113.7", port: 2222 }).map(({ line }) => line),
		).toEqual([2])
		expect(has(text, { address: "198.51.100.1", port: 22 })).toBe(false)
	})

	it("passes over comments, empty lines and what it can't read, and counts them", () => {
		const text = `# a comment\r\n\r\nnonsense\napp.example.test ssh-ed25519 AAAA\napp.example.test ssh-rsa ${lines[0]?.split(" ")[1]}\n@other app.example.test ${lines[0]}\n  app.example.test\t${lines[0]} a comment\n`
		expect(readKnownHosts(text).map(({ line, names }) => [line, names])).toEqual([[7, "app.example.test"]])
	})

	it("prints fingerprints as ssh-keygen does", () => {
		const said = execFileSync("ssh-keygen", ["-l", "-f", join(directory, "first.pub")], { encoding: "utf8" })
		expect(fingerprintOf(key(0))).toBe(said.split(" ")[1])
		expect(isFingerprint(fingerprintOf(key(0)))).toBe(true)
		expect(isFingerprint("SHA256:short")).toBe(false)
		expect(isFingerprint(`MD5:${"a".repeat(43)}`)).toBe(false)
	})
})

describe("the judgement of a key", () => {
	const judge = (text: string, index: number, accepted: string[] = []) =>
		judgeHostKey(key(index), host, readKnownHosts(text), accepted).state

	it("knows, doesn't know, and sees a change", () => {
		expect(judge(`app.example.test ${lines[0]}`, 0)).toBe("known")
		expect(judge(`other.example.test ${lines[0]}`, 0)).toBe("unknown")
		expect(judge(`app.example.test ${lines[0]}`, 1)).toBe("changed")
		expect(judge(`app.example.test ${lines[0]}\napp.example.test ${lines[1]}`, 1)).toBe("known")
	})

	it("takes a pinned fingerprint, even for a changed key, and never a revoked key", () => {
		expect(judge("", 0, [fingerprintOf(key(0))])).toBe("known")
		expect(judge(`app.example.test ${lines[0]}`, 1, [fingerprintOf(key(1))])).toBe("known")
		expect(judge(`@revoked * ${lines[0]}`, 0, [fingerprintOf(key(0))])).toBe("revoked")
		expect(judge(`@revoked * ${lines[0]}`, 1)).toBe("unknown")
	})

	it("doesn't take a certificate authority for a host's own key", () => {
		expect(judge(`@cert-authority *.example.test ${lines[0]}`, 0)).toBe("unknown")
	})
})

describe("a key that is added", () => {
	it("is found by ssh-keygen -F, and every other line keeps its bytes", async () => {
		const text = `# mine\r\nother.example.test ${lines[0]} note\n\n|1|broken\n`
		const added = withKnownKey(text, { address: "203.0.113.7", port: 2222 }, key(1), false)
		expect(added.startsWith(text)).toBe(true)
		const file = join(directory, "added")
		await writeFile(file, added)
		const found = execFileSync("ssh-keygen", ["-F", "[203.0.113.7]:2222", "-f", file], { encoding: "utf8" })
		expect(found).toContain(lines[1]?.split(" ")[1])
	})

	it("ends the last line when the file didn't", () => {
		expect(withKnownKey("# no newline", host, key(0), false)).toBe(
			`# no newline\napp.example.test ${lines[0]?.trim()}\n`,
		)
	})

	it("replaces the host's keys and leaves its neighbours theirs", () => {
		const text = [
			`app.example.test ${lines[0]}`,
			`app.example.test,other.example.test ${lines[0]} shared`,
			`*.example.test ${lines[0]}`,
			`@revoked app.example.test ${lines[0]}`,
			`third.example.test ${lines[0]}`,
			"",
		].join("\n")
		expect(withKnownKey(text, host, key(1), true)).toBe(
			[
				`other.example.test ${lines[0]} shared`,
				`*.example.test,!app.example.test ${lines[0]}`,
				`@revoked app.example.test ${lines[0]}`,
				`third.example.test ${lines[0]}`,
				`app.example.test ${lines[1]}`,
				"",
			].join("\n"),
		)
	})
})
