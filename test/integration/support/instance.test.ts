// The test world's own promises: an instance is a real machine, a fresh one, and leaves nothing behind.
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import { cacheDirectory } from "../../support/instance/base.ts"
import type { Instance } from "../../support/instance/instance.ts"
import { createWorld, sweepLeftovers, type World } from "../../support/instance/world.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import { run } from "../../support/run.ts"

describeWith("instances", "a world of fresh instances", () => {
	let scratch: string
	let world: World
	let authorizedKey: string
	const ssh = (instance: Instance, ...args: string[]) =>
		run("ssh", [
			...[
				"-i",
				join(scratch, "key"),
				"-o",
				"BatchMode=yes",
				"-o",
				"ConnectTimeout=5",
				"-o",
				"LogLevel=ERROR",
			],
			...["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"],
			...[`root@${instance.address}`, ...args],
		])

	beforeAll(async () => {
		scratch = await mkdtemp(join(tmpdir(), "comfyume-instances-"))
		await run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", join(scratch, "key")])
		authorizedKey = await readFile(join(scratch, "key.pub"), "utf8")
		world = await createWorld()
	})

	afterAll(async () => {
		await world[Symbol.asyncDispose]()
		await rm(scratch, { recursive: true })
	})

	test("boots a real systemd and lets root in by key within seconds", async () => {
		await using instance = await world.createInstance({ name: "a", hostname: "app-1", authorizedKey })
		await instance.waitForSsh()
		const { stdout } = await ssh(instance, "hostname; id -un; ps -o comm= -p 1")
		expect(stdout).toBe("app-1\nroot\nsystemd\n")
		const settled = await instance.run(["systemctl", "is-system-running", "--wait"], {
			allowedExitCodes: [1],
		})
		const failed = await instance.run(["systemctl", "--failed", "--no-legend"])
		expect({ state: settled.stdout.trim(), failed: failed.stdout }).toEqual({ state: "running", failed: "" })
	})

	test("no two are alike: host keys and machine ids differ, and the wire shows what the disk holds", async () => {
		await using first = await world.createInstance({ name: "a", hostname: "app-1", authorizedKey })
		await using second = await world.createInstance({ name: "b", hostname: "app-1", authorizedKey })
		await Promise.all([first.waitForSsh(), second.waitForSsh()])
		const [firstKeys, secondKeys] = [await first.hostKeyFingerprints(), await second.hostKeyFingerprints()]
		expect([...firstKeys.keys()].sort()).toEqual(["ecdsa-sha2-nistp256", "ssh-ed25519", "ssh-rsa"])
		for (const [type, fingerprint] of firstKeys) expect(secondKeys.get(type)).not.toBe(fingerprint)
		expect(await first.hostKeyFingerprintsOnWire()).toEqual(firstKeys)
		const machineId = async (instance: Instance) => (await instance.run(["cat", "/etc/machine-id"])).stdout
		expect(await machineId(first)).toMatch(/^[0-9a-f]{32}\n$/)
		expect(await machineId(first)).not.toBe(await machineId(second))
	})

	test("neighbours reach each other and servers of the test, and nothing beyond", async () => {
		const server = createServer((_, response) => response.end("from the outside"))
		await new Promise<void>((listening) => server.listen(0, world.address, listening))
		const { port } = server.address() as AddressInfo
		await using first = await world.createInstance({ name: "a", hostname: "app-1", authorizedKey })
		await using second = await world.createInstance({ name: "b", hostname: "app-2", authorizedKey })
		await Promise.all([first.waitForSsh(), second.waitForSsh()])
		const answer = await first.run([
			"curl",
			"--silent",
			"--max-time",
			"5",
			`http://outside.example.test:${port}`,
		])
		expect(answer.stdout).toBe("from the outside")
		const neighbour = await first.run(["ssh-keyscan", "-T", "5", "-t", "ed25519", second.address])
		expect(neighbour.stdout).toContain("ssh-ed25519")
		const beyond = await first.run(["curl", "--silent", "--max-time", "5", "http://203.0.113.1"], {
			allowedExitCodes: "any",
		})
		expect(beyond.exitCode).toBe(7)
		server.closeAllConnections()
		await new Promise((closed) => server.close(closed))
	})

	test("comes back from a reboot with its files, its keys and its address, and without its firewall rules", async () => {
		await using instance = await world.createInstance({ name: "a", hostname: "app-1", authorizedKey })
		await instance.waitForSsh()
		const keys = await instance.hostKeyFingerprintsOnWire()
		await ssh(instance, "echo kept > /var/lib/kept; iptables -A INPUT -p tcp --dport 9 -j DROP")
		await instance.reboot()
		await instance.waitForSsh()
		expect((await ssh(instance, "cat /var/lib/kept")).stdout).toBe("kept\n")
		expect(await instance.hostKeyFingerprintsOnWire()).toEqual(keys)
		expect((await ssh(instance, "iptables -S INPUT")).stdout).toBe("-P INPUT ACCEPT\n")
		expect(await readFile(join(instance.root, "var/lib/kept"), "utf8")).toBe("kept\n")
	})

	test("ufw and fail2ban work inside, and ufw shuts a port for real", async () => {
		await using instance = await world.createInstance({ name: "a", hostname: "app-1", authorizedKey })
		await instance.waitForSsh()
		await instance.run(["ufw", "limit", "22/tcp"])
		await instance.run(["ufw", "--force", "enable"])
		expect((await instance.run(["ufw", "status"])).stdout).toMatch(/Status: active[\s\S]*22\/tcp +LIMIT/)
		await instance.run(["systemd-run", "--unit=closed", "sh", "-c", "exec python3 -m http.server 8099"])
		await poll(async () => (await instance.run(["ss", "-ltn"])).stdout.includes(":8099"), {
			what: "the server behind the firewall",
			deadlineMs: 10_000,
		})
		const shut = await run("curl", ["--silent", "--max-time", "1", `http://${instance.address}:8099`], {
			allowedExitCodes: "any",
		})
		expect(shut.exitCode).toBe(28)
		const jail = () => instance.run(["fail2ban-client", "status", "sshd"], { allowedExitCodes: "any" })
		await poll(async () => (await jail()).exitCode === 0, {
			what: "fail2ban's sshd jail",
			deadlineMs: 15_000,
		})
	})

	test("a bound directory is a mount point inside and shows the same files", async () => {
		await using instance = await world.createInstance({
			name: "a",
			hostname: "app-1",
			authorizedKey,
			binds: [{ from: scratch, to: "/mnt/sfs" }],
		})
		await instance.waitForSsh()
		await instance.run(["mountpoint", "--quiet", "/mnt/sfs"])
		await writeFile(join(scratch, "from-outside"), "one")
		expect((await instance.run(["cat", "/mnt/sfs/from-outside"])).stdout).toBe("one")
		await instance.run(["sh", "-c", "printf two > /mnt/sfs/from-inside"])
		expect(await readFile(join(scratch, "from-inside"), "utf8")).toBe("two")
	})
})

describeWith("instances", "a world that ends", () => {
	const options = { name: "a", hostname: "app-1", authorizedKey: "ssh-ed25519 AAAA" }

	test("leaves no mount, network, control group, process or directory", async () => {
		const world = await createWorld()
		const instance = await world.createInstance(options)
		await instance.waitForSsh()
		const standing = await traces(world.address)
		for (const [kind, found] of Object.entries(standing)) expect(found, kind).not.toEqual([])
		await world[Symbol.asyncDispose]()
		expect(await traces(world.address)).toEqual(nothing)
	})

	test("can be destroyed in the middle of a reboot, more than once", async () => {
		await using world = await createWorld()
		for (const after of [0, 40, 80, 120, 160]) {
			const instance = await world.createInstance(options)
			await instance.waitForSsh()
			await instance.run(["systemctl", "reboot"], { allowedExitCodes: "any" })
			const startedAt = performance.now()
			await poll(() => performance.now() - startedAt > after, {
				what: "the moment",
				deadlineMs: 1_000,
				intervalMs: 5,
			})
			await Promise.all([instance.destroy(), instance.destroy()])
			const { mounts, processes } = await traces(world.address)
			const left = [...mounts, ...processes].filter((line) =>
				line.includes(instance.root.split("/").at(-2) ?? ""),
			)
			expect(left).toEqual([])
		}
	})

	test("is cleared away when its process was killed, and not while that lives", async () => {
		// Made first, so that it can't be given the abandoned world's number.
		await using living = await createWorld()
		const script = new URL("../../support/instance/abandon.ts", import.meta.url).pathname
		const abandoned = (await run(process.execPath, [script], { allowedExitCodes: "any" })).stdout.trim()
		expect(abandoned).toMatch(/^198\.18\.\d+\.1$/)
		// What `createWorld` begins with.
		await sweepLeftovers()
		expect(await traces(abandoned)).toEqual(nothing)
		expect((await traces(living.address)).links).not.toEqual([])
	})
})

const nothing = { mounts: [], namespaces: [], links: [], groups: [], processes: [], directories: [] }

// All that a world consists of, by the names that only it uses: other test processes have worlds of their own.
async function traces(worldAddress: string) {
	const number = worldAddress.split(".")[2]
	const named = new RegExp(`\\bcfy${number}(i\\d+)?\\b`)
	const lines = async (program: string, ...args: string[]) =>
		(await run(program, args)).stdout.split("\n").filter((line) => named.test(line))
	return {
		mounts: (await readFile("/proc/self/mounts", "utf8")).split("\n").filter((line) => named.test(line)),
		namespaces: (await readdir("/run/netns").catch((): string[] => [])).filter((name) => named.test(name)),
		links: await lines("ip", "-oneline", "link", "show"),
		groups: await lines("find", "/sys/fs/cgroup", "-maxdepth", "2", "-name", "cfy*"),
		processes: await lines("ps", "-eo", "args="),
		directories: (await readdir(join(cacheDirectory(), "worlds"))).filter((name) => name === number),
	}
}
