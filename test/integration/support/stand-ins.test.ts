// The stand-ins keep what the real programs promise, as far as comfyume relies on it.
import { cp, mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { createWorld } from "../../support/instance/world.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import { run } from "../../support/run.ts"
import { installStandIns, installTailscale, showPeer } from "../../support/stand-ins.ts"

const tailscaleAddress = /^100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.\d+\.\d+\n$/

describe("a directory that plays a server", () => {
	let server: string
	beforeEach(async () => {
		server = await mkdtemp(join(tmpdir(), "comfyume-stand-in-"))
		await installStandIns(server)
	})
	afterEach(() => rm(server, { recursive: true }))

	const inside = (program: string, args: readonly string[], extra: NodeJS.ProcessEnv = {}) =>
		run(join(server, "usr/local/bin", program), args, {
			environment: { PATH: process.env.PATH, COMFYUME_ROOT: server, ...extra },
			allowedExitCodes: "any",
		})
	const address = async () => (await inside("tailscale", ["ip", "-4"])).stdout
	const stateFile = () => join(server, "var/lib/tailscale/tailscaled.state")

	test("tailscale without its daemon fails with the real one's words", async () => {
		expect(await inside("tailscale", ["ip", "-4"])).toEqual({
			exitCode: 1,
			stdout: "",
			stderr:
				"failed to connect to local tailscaled; it doesn't appear to be running (sudo systemctl start tailscaled ?)\n",
		})
	})

	test("tailscaled keeps its address with its state, also elsewhere, and mints another without it", async () => {
		await inside("systemctl", ["start", "tailscaled"])
		const first = await address()
		expect(first).toMatch(tailscaleAddress)
		const keysBefore = await readFile(stateFile(), "utf8")
		await inside("systemctl", ["restart", "tailscaled"])
		expect(await address()).toBe(first)
		await cp(join(server, "var/lib/tailscale"), join(server, "saved"), { recursive: true })

		await inside("systemctl", ["stop", "tailscaled"])
		await rm(join(server, "var/lib/tailscale"), { recursive: true })
		await inside("systemctl", ["start", "tailscaled"])
		expect(await address()).toMatch(tailscaleAddress)
		expect(await address()).not.toBe(first)

		await inside("systemctl", ["stop", "tailscaled"])
		await rm(join(server, "var/lib/tailscale"), { recursive: true })
		await cp(join(server, "saved"), join(server, "var/lib/tailscale"), { recursive: true })
		await inside("systemctl", ["start", "tailscaled"])
		expect(await address()).toBe(first)
		expect(JSON.parse(await readFile(stateFile(), "utf8"))).toMatchObject({
			_machinekey: (JSON.parse(keysBefore) as { _machinekey: string })._machinekey,
		})
	})

	test("tailscaled rewrites its state file when it starts", async () => {
		await inside("systemctl", ["start", "tailscaled"])
		const before = await stat(stateFile())
		await inside("systemctl", ["restart", "tailscaled"])
		expect((await stat(stateFile())).ino).not.toBe(before.ino)
	})

	test("an identity put in place under a running daemon doesn't count, and `up` overwrites it", async () => {
		await inside("systemctl", ["start", "tailscaled"])
		const first = await address()
		const saved = await readFile(stateFile(), "utf8")
		await inside("systemctl", ["stop", "tailscaled"])
		await rm(stateFile())
		await inside("systemctl", ["start", "tailscaled"])
		await writeFile(stateFile(), saved)
		expect(await address()).not.toBe(first)
		await inside("tailscale", ["up", "--ssh=false"])
		await inside("systemctl", ["restart", "tailscaled"])
		expect(await address()).not.toBe(first)
	})

	test("tailscale status tells the backend's state and the machines of the tailnet", async () => {
		const tailnet = join(server, "tailnet")
		await showPeer(tailnet, { hostname: "twin", address: "100.64.0.9", online: true })
		await showPeer(tailnet, { hostname: "other", address: "100.64.0.10", online: false })
		await inside("systemctl", ["start", "tailscaled"])
		const status = async () =>
			JSON.parse((await inside("tailscale", ["status", "--json"], { COMFYUME_TAILNET: tailnet })).stdout)
		expect(await status()).toMatchObject({ BackendState: "Stopped", Self: { Online: false } })
		await inside("tailscale", ["up", "--ssh=false"])
		const up = await status()
		expect(up).toMatchObject({
			BackendState: "Running",
			Self: { Online: true, TailscaleIPs: [(await address()).trim()] },
		})
		expect(Object.values(up.Peer)).toEqual([
			expect.objectContaining({ HostName: "other", TailscaleIPs: ["100.64.0.10"], Online: false }),
			expect.objectContaining({ HostName: "twin", TailscaleIPs: ["100.64.0.9"], Online: true }),
		])
	})

	test("a node that was logged out shows a login and waits; a key in a file makes it another", async () => {
		await inside("systemctl", ["start", "tailscaled"])
		await inside("tailscale", ["up", "--ssh=false"])
		const first = await address()
		await inside("tailscale", ["logout"])
		expect(await inside("tailscale", ["up", "--timeout=1s"])).toMatchObject({
			exitCode: 1,
			stderr: expect.stringContaining("https://login.example.test/"),
		})
		expect(await inside("tailscale", ["up", "--auth-key=tskey-made-up"])).toMatchObject({ exitCode: 1 })
		const key = join(server, "auth-key")
		await writeFile(key, "tskey-made-up\n", { mode: 0o600 })
		expect(await inside("tailscale", ["up", `--auth-key=file:${key}`])).toMatchObject({ exitCode: 0 })
		expect(await address()).toMatch(tailscaleAddress)
		expect(await address()).not.toBe(first)
	})

	test("sshd -t wants host keys that are whole and fit their public halves", async () => {
		expect(await inside("sshd", ["-t"])).toMatchObject({ exitCode: 1 })
		await mkdir(join(server, "etc/ssh"), { recursive: true })
		await run("ssh-keygen", ["-A", "-f", server])
		expect(await inside("sshd", ["-t"])).toMatchObject({ exitCode: 0, stderr: "" })
		for (const type of ["rsa", "ecdsa", "ed25519"]) {
			const key = join(server, `etc/ssh/ssh_host_${type}_key`)
			await writeFile(key, (await readFile(key)).subarray(0, 120))
		}
		expect(await inside("sshd", ["-t"])).toMatchObject({ exitCode: 1 })
	})

	test("systemctl knows its units, and that there is none named sshd", async () => {
		await run("ssh-keygen", ["-A", "-f", await made(join(server, "etc/ssh"), server)])
		expect(await inside("systemctl", ["is-active", "ssh"])).toMatchObject({
			exitCode: 3,
			stdout: "inactive\n",
		})
		expect(await inside("systemctl", ["restart", "ssh"])).toMatchObject({ exitCode: 0 })
		expect(await inside("systemctl", ["is-active", "ssh"])).toMatchObject({ exitCode: 0, stdout: "active\n" })
		expect(await inside("systemctl", ["restart", "sshd"])).toMatchObject({
			exitCode: 5,
			stderr: "Failed to restart sshd.service: Unit sshd.service not found.\n",
		})
	})

	test("ufw and fail2ban-client tell what their configuration says", async () => {
		expect((await inside("ufw", ["status"])).stdout).toBe("Status: inactive\n")
		await inside("ufw", ["--force", "enable"])
		await writeFile(
			join(server, "etc/ufw/user.rules"),
			"### tuple ### limit tcp 22 0.0.0.0/0 any 0.0.0.0/0 in\n### tuple ### allow udp 41641 0.0.0.0/0 any 0.0.0.0/0 in\n",
		)
		expect((await inside("ufw", ["status"])).stdout).toMatch(
			/Status: active[\s\S]*22\/tcp +LIMIT +Anywhere\n41641\/udp +ALLOW/,
		)
		expect(await inside("fail2ban-client", ["status"])).toMatchObject({ exitCode: 255 })
		await made(join(server, "etc/fail2ban/jail.d"), server)
		await writeFile(
			join(server, "etc/fail2ban/jail.d/a.conf"),
			"[DEFAULT]\nbantime = 3600\n[sshd]\nenabled = true\n",
		)
		await inside("systemctl", ["start", "fail2ban"])
		expect((await inside("fail2ban-client", ["status"])).stdout).toContain("Jail list:\tsshd\n")
		expect(await inside("fail2ban-client", ["status", "nginx"])).toMatchObject({ exitCode: 255 })
	})

	test.each(["tailscale", "tailscaled", "systemctl", "ufw", "fail2ban-client"])(
		"%s --version says that it is a stand-in",
		async (program) => {
			expect((await inside(program, ["--version"])).stdout).toContain("stand-in")
		},
	)
})

describeWith("instances", "Tailscale's stand-in in an instance", () => {
	test("starts at boot under systemd with an address of its own, and keeps it over a reboot", async () => {
		await using world = await createWorld()
		await using instance = await world.createInstance({
			name: "a",
			hostname: "app-1",
			authorizedKey: "ssh-ed25519 AAAA",
			prepare: installTailscale,
		})
		await instance.waitForSsh()
		const address = () =>
			poll(
				async () => {
					const ip = await instance.run(["tailscale", "ip", "-4"], { allowedExitCodes: "any" })
					return ip.exitCode === 0 ? ip.stdout : undefined
				},
				{ what: "Tailscale's address", deadlineMs: 10_000 },
			)
		const first = await address()
		expect(first).toMatch(tailscaleAddress)
		expect((await instance.run(["stat", "-c", "%a %U", "/var/lib/tailscale"])).stdout).toBe("700 root\n")
		await instance.reboot()
		expect(await address()).toBe(first)
		await instance.run(["systemctl", "stop", "tailscaled"])
		const stopped = await instance.run(["tailscale", "ip", "-4"], { allowedExitCodes: [1] })
		expect(stopped.stderr).toContain("failed to connect to local tailscaled")
		await instance.run(["rm", "-r", "/var/lib/tailscale"])
		await instance.run(["systemctl", "start", "tailscaled"])
		expect(await address()).not.toBe(first)
	})
})

async function made(directory: string, then: string): Promise<string> {
	await mkdir(directory, { recursive: true })
	return then
}
