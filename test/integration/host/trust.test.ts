// `comfyume host trust` and `host key`, as a process, against a real sshd.
import { spawnSync } from "node:child_process"
import { mkdir, readFile, stat, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
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

describe("a configured host", () => {
	const configurationFile = () => join(sshd.directory, "elsewhere/comfyume.yaml")
	const environment = (name: string, hosts: string) => `  ${name}:
    domain: ${name}.example.test
    allowStandIns: true
    hosts: [${hosts}]
    git:
      project: { remote: "https://git.example.test/p.git", branch: main, path: /home/dev/project }
      scripts: { remote: "https://git.example.test/s.git", branch: main, path: /home/dev/scripts }
`
	const app = (name: string, port: number) =>
		`{ name: ${name}, role: app, address: 127.0.0.1, port: ${port} }`
	const directory = "{ name: gpu-1, role: worker, connection: directory, directory: ./gpu }"

	beforeAll(async () => {
		await mkdir(join(sshd.directory, "elsewhere"))
		await writeFile(
			configurationFile(),
			`version: 1\nenvironments:\n${environment("testing", `${app("app-1", sshd.port)}, ${directory}`)}${environment("staging", app("app-2", 1))}`,
		)
	})

	it("is asked at its address and port, and its key is put beside the configuration", async () => {
		const options = ["--env", "testing", "--config", configurationFile()]
		expect(comfyume("host", "key", "app-1", ...options).stdout).toContain(keyOf("ssh-rsa").fingerprint)
		const { fingerprint, line } = keyOf("ssh-ed25519")
		const { status, stderr } = comfyume("host", "trust", "app-1", fingerprint, ...options)
		expect([status, stderr]).toEqual([0, expect.stringContaining("elsewhere/known_hosts")])
		expect(await readFile(join(sshd.directory, "elsewhere/known_hosts"), "utf8")).toBe(
			`[127.0.0.1]:${sshd.port} ${line.split(" ").slice(0, 2).join(" ")}\n`,
		)
	})

	it.each([
		["app-2", [], 4, "app-2 (127.0.0.1 port 1) refuses the connection", ""],
		["app-1", ["--env", "staging"], 2, "staging has no host app-1", "choose from: app-2"],
		["app-1", ["--env", "tesing"], 2, "names the environment tesing", "did you mean --env testing?"],
	])("%s with %j is what the configuration says", (name, options, exitCode, says, next) => {
		const { status, stderr } = comfyume("host", "key", name, "--config", configurationFile(), ...options)
		expect([status, stderr]).toEqual([exitCode, expect.stringContaining(says)])
		expect(stderr).toContain(next)
	})

	it("that is a directory has no key", () => {
		const { status, stderr } = comfyume("host", "key", "gpu-1", "--config", configurationFile())
		expect([status, stderr]).toEqual([2, expect.stringContaining("stands in for a machine")])
	})

	it("is not guessed: a configuration that isn't there is said", () => {
		const { status, stderr } = comfyume("host", "key", "app-1", "--config", "nowhere.yaml")
		expect([status, stderr]).toEqual([2, expect.stringMatching(/no configuration at \S+nowhere.yaml/)])
	})
})
