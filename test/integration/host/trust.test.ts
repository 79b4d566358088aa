// `comfyume host trust` and `host key`, as a process, against a real sshd.
import { spawnSync } from "node:child_process"
import { readFile, stat, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, expect, it } from "vitest"
import { makeKey, openTestSshd, type TestSshd } from "../../support/sshd.ts"

const cli = fileURLToPath(new URL("../../../src/cli.ts", import.meta.url))
let sshd: TestSshd

beforeAll(async () => {
	sshd = await openTestSshd({ keyTypes: ["ed25519", "rsa"] })
})
afterAll(() => sshd?.[Symbol.asyncDispose]())

const comfyume = (...argv: string[]) =>
	spawnSync(process.execPath, [cli, ...argv], { encoding: "utf8", cwd: sshd.directory })
const target = () => `127.0.0.1:${sshd.port}`
const keyOf = (type: string) => sshd.hostKeys[type] ?? { fingerprint: "", line: "" }

it("prints what the wire shows, and says that this proves nothing", () => {
	const { stdout, stderr, status } = comfyume("host", "key", target())
	expect(stdout.trim().split("\n").sort()).toEqual(
		Object.entries(sshd.hostKeys)
			.map(([type, { fingerprint }]) => `${fingerprint} ${type}`)
			.sort(),
	)
	expect(stderr).toContain("Compare it with the host's own console")
	expect(status).toBe(0)
})

it.each(["ssh-ed25519", "ssh-rsa"])(
	"accepts the key with the fingerprint given, and no other: %s",
	async (type) => {
		const file = join(sshd.directory, `trusted-${type}`)
		await writeFile(file, "# mine\n", { mode: 0o600 })
		const { fingerprint, line } = keyOf(type)
		expect(comfyume("host", "trust", target(), fingerprint, "--known-hosts", `trusted-${type}`).status).toBe(
			0,
		)
		expect(await readFile(file, "utf8")).toBe(
			`# mine\n[127.0.0.1]:${sshd.port} ${line.split(" ").slice(0, 2).join(" ")}\n`,
		)
		expect((await stat(file)).mode & 0o777).toBe(0o644)
		expect(
			comfyume("host", "trust", target(), fingerprint, "--known-hosts", `trusted-${type}`).stderr,
		).toContain("stands already")
	},
)

it("accepts nothing when the wire shows another key", async () => {
	const { status, stderr } = comfyume(
		"host",
		"trust",
		target(),
		`SHA256:${"A".repeat(43)}`,
		"--known-hosts",
		"untouched",
	)
	expect([status, stderr]).toEqual([8, expect.stringContaining(keyOf("ssh-ed25519").fingerprint)])
	await expect(stat(join(sshd.directory, "untouched"))).rejects.toThrow(/ENOENT/)
})

it("replaces another key only when it is told to", async () => {
	const other = await makeKey(join(sshd.directory, "other"), "ed25519")
	const old = `[127.0.0.1]:${sshd.port} ${(await readFile(`${other}.pub`, "utf8")).trim()}\n`
	await writeFile(join(sshd.directory, "changed"), old)
	const { fingerprint } = keyOf("ssh-ed25519")
	const refused = comfyume("host", "trust", target(), fingerprint, "--known-hosts", "changed")
	expect([refused.status, refused.stderr]).toEqual([8, expect.stringContaining("--replace")])
	expect(await readFile(join(sshd.directory, "changed"), "utf8")).toBe(old)
	expect(
		comfyume("host", "trust", target(), fingerprint, "--known-hosts", "changed", "--replace").status,
	).toBe(0)
	expect(await readFile(join(sshd.directory, "changed"), "utf8")).not.toContain(old.split(" ")[2])
})

it.each([
	[["host", "trust", "127.0.0.1", "MD5:00"], 2, "is no fingerprint"],
	[["host", "trust", "a:b:c", `SHA256:${"A".repeat(43)}`], 2, "neither a configured host"],
	[["host", "key", "127.0.0.1:1"], 4, "refuses the connection"],
])("says what is wrong with %j", (argv, exitCode, says) => {
	const { status, stderr } = comfyume(...argv)
	expect([status, stderr]).toEqual([exitCode, expect.stringContaining(says)])
})
