// The share as it really is: an NFS server outside, a machine whose kernel has an NFS client, and the steps that mount it.
// Slow, because the machine's processor is emulated: see test/support/virtual-machine.
import { copyFile, mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { build } from "esbuild"
import { afterAll, beforeAll, expect, test } from "vitest"
import { createWorld, type World } from "../support/instance/world.ts"
import type { MachineRun } from "../support/machine-steps.ts"
import { makeNfsServer, type NfsServer } from "../support/nfs-server.ts"
import { describeWith } from "../support/parts.ts"
import { run } from "../support/run.ts"
import type { VirtualMachine } from "../support/virtual-machine/virtual-machine.ts"

const any = { allowedExitCodes: "any" } as const
const steps = fileURLToPath(new URL("../support/machine-steps.ts", import.meta.url))

type StepEvent = { event: string; step: string; outcome: string; because: string }

describeWith("virtualMachines", "a share over NFS", () => {
	let directory: string
	let volume: string
	let world: World
	let nfs: NfsServer
	let machine: VirtualMachine
	let configuration: string

	beforeAll(async () => {
		directory = await mkdtemp(join(tmpdir(), "comfyume-nfs-share-"))
		volume = join(directory, "volume")
		await mkdir(volume)
		const keyFile = join(directory, "key")
		await run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", keyFile])
		await build({
			...{ entryPoints: [steps], bundle: true, platform: "node", format: "esm", logLevel: "error" },
			...{ outfile: join(directory, "steps.mjs"), external: ["cpu-features", "*.node"] },
			banner: {
				js: 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url)',
			},
		})
		world = await createWorld()
		nfs = await makeNfsServer(world.address, volume)
		configuration = `version: 1
environments:
  testing:
    domain: testing.example.test
    hosts: [{ name: app-1, role: app, address: 203.0.113.10, tailnet: none }]
    share: { mount: "sudo mount -t nfs -o nconnect=16 ${nfs.source} /mnt/sfs" }
    git:
      project: { remote: "https://git.example.test/p.git", branch: main, path: /home/dev/project }
      scripts: { remote: "https://git.example.test/p.git", branch: main, path: /home/dev/scripts }
`
		machine = await world.createVirtualMachine({
			name: "fresh",
			hostname: "app-1",
			keyFile,
			prepare: async (root) => {
				await copyFile(process.execPath, join(root, "usr/local/bin/node"))
				await copyFile(join(directory, "steps.mjs"), join(root, "opt/steps.mjs"))
			},
		})
		await machine.waitForSsh()
	}, 900_000)
	afterAll(async () => {
		await world?.[Symbol.asyncDispose]()
		await nfs?.[Symbol.asyncDispose]()
		await rm(directory, { recursive: true, force: true })
	})

	const shell = async (script: string) => (await machine.run(["sh", "-ec", script])).stdout
	/** The real steps, on the machine. */
	const runSteps = async (mode: MachineRun["mode"], ...names: string[]) => {
		const given: MachineRun = { configuration, mode, steps: names }
		const { stdout, stderr } = await machine.run(["node", "/opt/steps.mjs"], {
			...any,
			stdin: JSON.stringify(given),
			timeoutMs: 600_000,
		})
		expect(stderr).toBe("")
		const events = stdout
			.trim()
			.split("\n")
			.map((line) => JSON.parse(line) as StepEvent)
		return Object.fromEntries(
			events.filter(({ event }) => event === "step").map((event) => [event.step, event] as const),
		)
	}

	test("whose server is down is said to be so, and nothing is mounted", async () => {
		const found = await runSteps("apply", "share-reachable", "share")
		expect(found["share-reachable"]).toMatchObject({ outcome: "failed" })
		expect(found["share-reachable"]?.because).toMatch(/refuses the connection \(port 2049\)/)
		expect((await machine.run(["findmnt", "/mnt/sfs"], any)).exitCode).toBe(1)
	})

	test("is mounted as nfs4 with 16 connections, now and by fstab", async () => {
		await nfs.start()
		const found = await runSteps("apply", "share-reachable", "share", "share-sentinel", "share-directories")
		expect(Object.values(found).map(({ outcome }) => outcome)).toEqual([
			"satisfied",
			"applied",
			"applied",
			"applied",
		])
		expect(await shell("findmnt --noheadings --raw --output FSTYPE,SOURCE --mountpoint /mnt/sfs")).toBe(
			`nfs4 ${nfs.source}\n`,
		)
		expect(await shell("grep ' /mnt/sfs ' /proc/self/mountinfo")).toMatch(/ - nfs4 .*\bnconnect=16\b/)
		const connections = await shell(`ss --no-header --tcp --numeric dst ${world.address}:2049 | wc -l`)
		expect(Number(connections)).toBeGreaterThan(1)
		expect(await shell("grep /mnt/sfs /etc/fstab")).toMatch(
			new RegExp(`^${nfs.source} /mnt/sfs nfs4? nconnect=16,nofail,_netdev 0 0$`, "m"),
		)
		const again = await runSteps("apply", "share-reachable", "share", "share-sentinel", "share-directories")
		expect(new Set(Object.values(again).map(({ outcome }) => outcome))).toEqual(new Set(["satisfied"]))
	})

	test("shows inside what is written outside, and outside what is written inside", async () => {
		await writeFile(join(volume, "models/from-outside"), "outside\n")
		expect(await shell("cat /mnt/sfs/models/from-outside")).toBe("outside\n")
		await shell(
			"printf inside >/mnt/sfs/models/partial && mv /mnt/sfs/models/partial /mnt/sfs/models/from-inside",
		)
		expect(await readFile(join(volume, "models/from-inside"), "utf8")).toBe("inside")
		expect((await stat(join(volume, "outputs"))).mode & 0o7777).toBe(0o1777)
	})

	test("is mounted again after a reboot", async () => {
		await machine.reboot()
		await shell("systemctl is-system-running --wait || true")
		expect((await runSteps("verify", "share"))["share"]).toMatchObject({ outcome: "satisfied" })
		expect(await shell("cat /mnt/sfs/models/from-outside")).toBe("outside\n")
	}, 900_000)

	test("whose server is down doesn't keep the machine from booting, and comes back with it", async () => {
		// First, for even umount asks the server, and waits for one that is gone.
		await shell("umount /mnt/sfs")
		await nfs.stop()
		await machine.reboot()
		expect((await machine.run(["findmnt", "--noheadings", "--types", "nfs4"], any)).stdout).toBe("")
		const down = await runSteps("verify", "share-reachable", "share")
		expect(down["share-reachable"]).toMatchObject({ outcome: "failed" })
		await nfs.start()
		const back = await runSteps("apply", "share-reachable", "share", "share-sentinel")
		expect(Object.values(back).map(({ outcome }) => outcome)).not.toContain("failed")
		expect(await shell("cat /mnt/sfs/models/from-outside")).toBe("outside\n")
	}, 900_000)
})
