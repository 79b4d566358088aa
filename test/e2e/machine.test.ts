// What a restore makes of a fresh machine before anything comes back to it: on real instances, with real mounts, a real
// block device, and a real apt. What is looked at is the machine, not what the steps say of it.
import { randomBytes } from "node:crypto"
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { type AptRepository, startAptRepository } from "../support/apt-repository.ts"
import type { Instance } from "../support/instance/instance.ts"
import { createWorld, type World } from "../support/instance/world.ts"
import type { MachineRun } from "../support/machine-steps.ts"
import { describeWith } from "../support/parts.ts"
import { poll } from "../support/poll.ts"
import { type Ran, run } from "../support/run.ts"

const repository = fileURLToPath(new URL("../../", import.meta.url))
const any = { allowedExitCodes: "any" } as const
const key = (letter: string) => `ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI${letter.repeat(43)}`
const [mine, theirs, other] = ["a", "b", "c"].map((letter) => `${key(letter)} ${letter}@example.test`) as [
	string,
	string,
	string,
]

type Outcome = { outcome: string; because: string; hint?: string }
type MachineResult = { exitCode: number; notes: string[]; steps: Record<string, Outcome>; all: string }

describeWith("instances", "a fresh machine", () => {
	let world: World
	let directory: string
	let machine: Instance
	let loop: string
	let apt: AptRepository

	beforeAll(async () => {
		world = await createWorld()
		directory = await mkdtemp(join(tmpdir(), "comfyume-machine-"))
		await mkdir(join(directory, "share"))
		const image = join(directory, "scratch.img")
		await run("truncate", ["--size=64M", image])
		loop = (await run("losetup", ["--find", "--show", image])).stdout.trim()
		apt = await startAptRepository(world.address, [
			...["apache2-utils", "jq", "redis-tools", "unzip", "wget", "made-up-extra"].map((name) => ({ name })),
			{ name: "made-up-slow", postinst: "while [ ! -e /run/go-on ]; do sleep 0.05; done" },
			{ name: "made-up-settings", version: "2.0", configurationFiles: { "etc/made-up.conf": "new\n" } },
		])
		machine = await world.createInstance({
			name: "fresh",
			hostname: "fresh",
			authorizedKey: theirs,
			binds: [
				{ from: join(directory, "share"), to: "/outside/share" },
				{ from: repository, to: repository },
				{ from: dirname(process.execPath), to: "/outside/node" },
				{ from: loop, to: loop },
			],
			prepare: async (root) => {
				await writeFile(join(root, "etc/apt/sources.list"), apt.sources)
				await writeFile(join(root, "etc/fstab"), oldFstab)
			},
		})
		await machine.waitForSsh()
	})
	afterAll(async () => {
		await world?.[Symbol.asyncDispose]()
		await apt?.[Symbol.asyncDispose]()
		if (loop !== undefined) await run("losetup", ["--detach", loop])
		await rm(directory, { recursive: true, force: true })
	})

	const shell = async (script: string) => (await machine.run(["sh", "-c", script], any)).stdout
	const configuration = (more: string, name = "testing") => `version: 1
environments:
  ${name}:
    domain: testing.example.test
    allowStandIns: true
    allowPlainHttp: true
    hosts: [{ name: app-1, role: app, address: 203.0.113.10${more.includes("tailscale:") ? ", tailnet: join" : ""} }]
    git:
      project: { remote: "https://git.example.test/p.git", branch: main, path: /home/dev/project }
      scripts: { remote: "https://git.example.test/p.git", branch: main, path: /home/dev/scripts }
${more}`
	const start = (given: Partial<MachineRun> & Pick<MachineRun, "steps">): Promise<Ran> =>
		machine.run(["/outside/node/node", join(repository, "test/support/machine-steps.ts")], {
			...any,
			stdin: JSON.stringify({ configuration: configuration(""), mode: "apply", ...given }),
			timeoutMs: 120_000,
		})
	const steps = async (given: Partial<MachineRun> & Pick<MachineRun, "steps">): Promise<MachineResult> => {
		const { exitCode, stdout, stderr } = await start(given)
		expect(stderr).toBe("")
		const events = stdout
			.trim()
			.split("\n")
			.map((line) => JSON.parse(line) as { event: string; step: string; text: string } & Outcome)
		return {
			exitCode,
			all: stdout,
			notes: events.filter(({ event }) => event === "note").map(({ text }) => text),
			steps: Object.fromEntries(
				events.filter(({ event }) => event === "step").map((event) => [event.step, event] as const),
			),
		}
	}

	describe("who gets in", () => {
		const withOperators = configuration(`    operators: ["${mine}", "${other}"]\n`)
		const only = { configuration: withOperators, steps: ["access"] }
		const authorized = () => shell("cat /root/.ssh/authorized_keys")

		test("adds the operators' keys behind those that are there, and says it first", async () => {
			// No end of the line, and options before one of the keys.
			await shell(
				`printf '%s\\n%s' '${theirs}' 'from="203.0.113.0/24",no-pty ${key("c")}' >/root/.ssh/authorized_keys`,
			)
			const before = await authorized()
			const dry = await steps({ ...only, mode: "dry-run" })
			expect(dry.steps["access"]).toMatchObject({
				outcome: "planned",
				because: "1 of 2 keys missing: a@example.test",
			})
			expect(await authorized()).toBe(before)

			const applied = await steps(only)
			expect(applied.exitCode, applied.all).toBe(0)
			expect(await authorized()).toBe(`${before}\n${mine}\n`)
			expect(await shell("stat -c '%a %U' /root/.ssh /root/.ssh/authorized_keys")).toBe(
				"700 root\n600 root\n",
			)
			const again = await steps(only)
			expect(again.steps["access"]).toMatchObject({ outcome: "satisfied" })
		})

		test("mends modes with which sshd would pass over the file", async () => {
			for (const wrong of [
				"chmod 777 /root/.ssh",
				"chmod 666 /root/.ssh/authorized_keys",
				"chown nobody /root/.ssh/authorized_keys",
			]) {
				await shell(wrong)
				expect((await steps(only)).steps["access"], wrong).toMatchObject({ outcome: "applied" })
				expect(await shell("stat -c '%a %U' /root/.ssh /root/.ssh/authorized_keys")).toBe(
					"700 root\n600 root\n",
				)
			}
		})

		test("reaches the platform's user once it is there, and writes through no link of its own making", async () => {
			const user = { configuration: withOperators, steps: ["user-access"] }
			expect((await steps(user)).steps["user-access"]).toMatchObject({
				outcome: "satisfied",
				because: "there is no such user yet",
			})
			await shell("useradd --create-home --shell /bin/bash dev")
			expect((await steps(user)).steps["user-access"]).toMatchObject({ outcome: "applied" })
			expect(await shell("cat /home/dev/.ssh/authorized_keys")).toBe(`${mine}\n${other}\n`)
			expect(await shell("stat -c '%a %U:%G' /home/dev/.ssh /home/dev/.ssh/authorized_keys")).toBe(
				"700 dev:dev\n600 dev:dev\n",
			)

			await shell("mv /home/dev/.ssh /home/dev/aside; mkdir /srv/trap; chown dev /srv/trap")
			for (const trap of [
				"ln -s /srv/trap /home/dev/.ssh",
				"mkdir /home/dev/.ssh; ln -s /srv/trap/file /home/dev/.ssh/authorized_keys",
				"mkdir /home/dev/.ssh; mkfifo /home/dev/.ssh/authorized_keys",
			]) {
				await shell(`rm -rf /home/dev/.ssh; ${trap}`)
				const refused = await steps(user)
				expect(refused.steps["user-access"]?.outcome, trap).toBe("failed")
				expect(await shell("ls -A /srv/trap")).toBe("")
			}
			await shell("rm -rf /home/dev/.ssh; mv /home/dev/aside /home/dev/.ssh")
		})

		test("without operators says that only the keys that are there get in", async () => {
			const found = await steps({ steps: ["access"] })
			expect(found.steps["access"]).toMatchObject({
				outcome: "satisfied",
				because: "no operators are configured: only the keys that are there already get in",
			})
		})
	})

	describe("packages", () => {
		const withExtra = (...names: string[]) => ({
			configuration: configuration(`    packages: { extra: [${names.join(", ")}] }\n`),
			steps: ["packages"],
		})
		const missing = ["apache2-utils", "jq", "made-up-extra", "redis-tools", "unzip", "wget"]
		const statusOf = (name: string) =>
			shell(`dpkg-query --show --showformat='\${db:Status-Status} \${Version}' ${name}`)
		const holdLock = (lock: string) =>
			machine.run([
				...["systemd-run", "--quiet", "--unit=holder", "--property=Type=exec", "python3", "-c"],
				`import fcntl, time; f = open("${lock}", "w"); fcntl.lockf(f, fcntl.LOCK_EX); open("/run/held", "w"); time.sleep(600)`,
			])
		const isHeld = () =>
			poll(async () => (await shell("ls /run/held")) !== "", { what: "the lock", deadlineMs: 10_000 })

		test("a network that is down is said, with what is missing", async () => {
			apt.down = true
			const failed = await steps(withExtra("made-up-extra"))
			apt.down = false
			expect(failed.exitCode).toBe(4)
			expect(failed.steps["packages"]?.because).toContain(missing.join(", "))
			expect(failed.steps["packages"]?.because).toMatch(/503|Failed to fetch/)
		})

		test("somebody who holds a lock too long is named", async () => {
			await holdLock("/var/lib/dpkg/lock-frontend")
			await isHeld()
			const failed = await steps({ ...withExtra("made-up-extra"), lockWaitMs: 1_000 })
			expect(failed.exitCode).toBe(5)
			expect(failed.steps["packages"]?.because).toMatch(/process \d+\) holds .*lock.* since more than 1 s/)
			await shell("systemctl stop holder; rm /run/held")
		})

		test("waits for who holds a lock, brings the machine up to date without a question, and installs", async () => {
			// An older one, whose settings were changed here: dpkg would ask what to do with the new ones.
			await writeFile(join(machine.root, "root/old.sh"), installOldSettings)
			await shell("sh /root/old.sh")
			expect(await statusOf("made-up-settings")).toBe("installed 1.0")
			await holdLock("/var/lib/apt/lists/lock")
			await isHeld()
			const running = steps(withExtra("made-up-extra"))
			await poll(async () => (await shell("ps -e -o args= | grep -c '[a]pt-get.*update'")).trim() !== "0", {
				what: "the wait for the lock",
				deadlineMs: 30_000,
				intervalMs: 5,
			})
			await shell("systemctl stop holder; rm /run/held")
			const applied = await running
			expect(applied.exitCode, applied.all).toBe(0)
			expect(applied.notes.join()).toMatch(/holds \/var\/lib\/apt\/lists\/lock; waiting for it/)
			expect(applied.steps["packages"]?.because).toBe(
				`installed ${missing.map((name) => `${name} 1.0`).join(", ")}`,
			)
			for (const name of missing) expect(await statusOf(name)).toBe("installed 1.0")
			expect(await statusOf("made-up-settings")).toBe("installed 2.0")
			expect(await shell("cat /etc/made-up.conf")).toBe("changed here\n")

			apt.requests.length = 0
			const again = await steps(withExtra("made-up-extra"))
			expect(again.steps["packages"]).toMatchObject({ outcome: "satisfied" })
			expect(apt.requests).toEqual([])
		})

		test("a machine whose stack runs gets what is missing, and no upgrade", async () => {
			await shell("dpkg --force-confold --install /tmp/old.deb; dpkg --remove made-up-extra")
			expect(await statusOf("made-up-settings")).toBe("installed 1.0")
			const docker = join(machine.root, "usr/local/bin/docker")
			await writeFile(
				docker,
				'#!/bin/sh\n[ "$*" = "ps --quiet --filter name=^comfy-" ] && echo 0123456789ab\n',
				{
					mode: 0o755,
				},
			)
			const applied = await steps(withExtra("made-up-extra"))
			await rm(docker)
			expect(applied.exitCode, applied.all).toBe(0)
			expect(applied.notes.join()).toMatch(/nothing is upgraded/)
			expect(await statusOf("made-up-extra")).toBe("installed 1.0")
			expect(await statusOf("made-up-settings")).toBe("installed 1.0")
		})

		test("finishes what a killed dpkg left half configured", async () => {
			await shell("systemd-run --quiet --unit=slow apt-get --yes install made-up-slow")
			await poll(async () => (await statusOf("made-up-slow")).startsWith("half-configured"), {
				what: "dpkg in the middle",
				deadlineMs: 30_000,
			})
			await shell("systemctl kill --signal=KILL slow; touch /run/go-on")
			await poll(async () => (await shell("systemctl is-active slow")) !== "active\n", {
				what: "its end",
				deadlineMs: 10_000,
			})
			const verified = await steps({ ...withExtra("made-up-slow"), mode: "verify" })
			expect(verified.exitCode).toBe(3)
			expect(verified.steps["packages"]?.because).toBe("missing: made-up-slow (half-configured)")
			const applied = await steps(withExtra("made-up-slow"))
			expect(applied.exitCode, applied.all).toBe(0)
			expect(await statusOf("made-up-slow")).toBe("installed 1.0")
		})

		test("Tailscale comes from its vendor's repository, by the key that is configured", async () => {
			const vendor = (keySha256: string) => ({
				configuration: configuration(
					`    packages: { tailscale: { repository: "${apt.tailscale}", keySha256: "${keySha256}" } }\n`,
				),
				steps: ["packages"],
			})
			const refused = await steps(vendor("0".repeat(64)))
			expect(refused.exitCode).toBe(8)
			expect(refused.steps["packages"]?.because).toContain(apt.keySha256)
			expect(await shell("ls /etc/apt/keyrings /etc/apt/sources.list.d")).not.toContain("tailscale")

			const applied = await steps(vendor(apt.keySha256))
			expect(applied.exitCode, applied.all).toBe(0)
			expect(applied.steps["packages"]?.because).toBe("installed tailscale 1.90.0")
			expect(await statusOf("tailscale")).toBe("installed 1.90.0")
			expect(await shell("cat /etc/apt/sources.list.d/comfyume-tailscale.list")).toBe(
				`deb [signed-by=/etc/apt/keyrings/comfyume-tailscale.gpg] ${apt.tailscale}/debian bookworm main\n`,
			)
		})
	})

	describe("Docker", () => {
		test("is never installed, and is started where it is off", async () => {
			const none = await steps({ steps: ["docker"] })
			expect(none.exitCode).toBe(4)
			expect(none.steps["docker"]).toMatchObject({
				because: expect.stringContaining("docker is not installed"),
			})
			await writeFile(join(machine.root, "usr/local/bin/docker"), dockerStandIn, { mode: 0o755 })
			await writeFile(join(machine.root, "etc/systemd/system/docker.service"), dockerUnit)
			await shell("systemctl daemon-reload")
			expect((await steps({ steps: ["docker"], mode: "dry-run" })).steps["docker"]).toMatchObject({
				outcome: "planned",
				because: "docker.service is off",
			})
			expect((await steps({ steps: ["docker"] })).steps["docker"]).toMatchObject({ outcome: "applied" })
			expect(await shell("systemctl is-enabled docker; systemctl is-active docker")).toBe("enabled\nactive\n")
			await shell("systemctl disable docker")
			expect((await steps({ steps: ["docker"] })).steps["docker"]).toMatchObject({ outcome: "applied" })
			expect((await steps({ steps: ["docker"] })).steps["docker"]).toMatchObject({
				outcome: "satisfied",
				because: "Engine 26.1.5, compose 2.32.4",
			})
		})
	})

	describe("Ubuntu Pro", () => {
		const token = "made-up-pro-token-C1234567890"
		const attach = { steps: ["ubuntu-pro-attached"], token }

		test("is attached with the token in a file that is gone afterwards", async () => {
			expect((await steps(attach)).steps["ubuntu-pro-attached"]?.because).toMatch(/no `pro`/)
			await writeFile(join(machine.root, "usr/local/bin/pro"), proStandIn, { mode: 0o755 })
			const without = await steps({ steps: ["ubuntu-pro-attached"] })
			expect(without.steps["ubuntu-pro-attached"]).toMatchObject({ outcome: "satisfied" })

			await shell("touch /run/pro-refuses")
			const refused = await steps(attach)
			expect(refused.exitCode).toBe(3)
			expect(refused.all).not.toContain(token)
			expect(refused.steps["ubuntu-pro-attached"]?.because).toContain("Invalid token [secret]")
			expect(await shell("ls /run/*ubuntu-pro* 2>/dev/null")).toBe("")
			await shell("rm /run/pro-refuses")

			const applied = await steps(attach)
			expect(applied.exitCode, applied.all).toBe(0)
			expect(applied.all).not.toContain(token)
			expect(await shell("cat /run/pro-saw")).toBe(
				`attach --attach-config /run/comfyume-ubuntu-pro.yaml\n600\ntoken: "${token}"\n`,
			)
			expect(await shell("ls /run/*ubuntu-pro* 2>/dev/null")).toBe("")
			// Killed after it was attached.
			await shell("echo left >/run/comfyume-ubuntu-pro.yaml")
			expect((await steps(attach)).steps["ubuntu-pro-attached"]).toMatchObject({ outcome: "applied" })
			expect(await shell("ls /run/*ubuntu-pro* 2>/dev/null")).toBe("")
		})
	})

	describe("the share", () => {
		const mount = "sudo mount --bind /outside/share /mnt/sfs"
		const shareOf = (name: string) =>
			configuration(`    share: { mount: ${mount}, filesystem: bind }\n`, name)
		const all = {
			configuration: shareOf("testing"),
			steps: ["share-reachable", "share", "share-sentinel", "share-directories"],
		}
		const outside = () => run("find", [join(directory, "share"), "-mindepth", "1", "-printf", "%P %m\n"])
		const findmnt = () => shell("findmnt --noheadings --output TARGET --mountpoint /mnt/sfs")

		test("what lies on the root disk in its place is named, and not hidden", async () => {
			await shell("mkdir -p /mnt/sfs; echo lost >/mnt/sfs/model.safetensors")
			const refused = await steps(all)
			expect(refused.exitCode).toBe(8)
			expect(refused.steps["share"]).toMatchObject({
				because: expect.stringContaining("model.safetensors lies there on the root disk"),
				hint: expect.stringContaining("mv /mnt/sfs /mnt/sfs.on-the-root-disk"),
			})
			// What comes after was not done below the mount point.
			expect(await shell("ls /mnt/sfs")).toBe("model.safetensors\n")
			await shell("mv /mnt/sfs /mnt/sfs.on-the-root-disk")
		})

		test("a dry run plans all of it and touches nothing", async () => {
			const before = await shell("cat /etc/fstab; ls /mnt")
			const dry = await steps({ ...all, mode: "dry-run" })
			expect(dry.exitCode, dry.all).toBe(0)
			expect(Object.values(dry.steps).map(({ outcome }) => outcome)).toEqual([
				"satisfied",
				"planned",
				"planned",
				"planned",
			])
			expect(await shell("cat /etc/fstab; ls /mnt")).toBe(before)
		})

		test("is mounted by fstab, where an older line is replaced and every other stays", async () => {
			const applied = await steps(all)
			expect(applied.exitCode, applied.all).toBe(0)
			expect(await findmnt()).toBe("/mnt/sfs\n")
			expect(await shell("cat /etc/fstab")).toBe(
				oldFstab.replace(/^nfs\.old.*$/m, "/outside/share /mnt/sfs none bind,nofail,_netdev 0 0"),
			)
			expect(await shell("cat /etc/fstab.bak-*")).toBe(oldFstab)
			expect(applied.steps["share"]?.because).toContain("stand-in: a bind mount, not NFS")
			expect((await outside()).stdout.trim().split("\n").sort()).toEqual([
				"ENVIRONMENT 644",
				"cache 755",
				"cache/backups 755",
				"models 755",
				"models/shared 755",
				"outputs 1777",
			])
			const again = await steps(all)
			expect(Object.values(again.steps).map(({ outcome }) => outcome)).toEqual([
				"satisfied",
				"satisfied",
				"satisfied",
				"satisfied",
			])
			expect(await shell("ls /etc/fstab.bak-* | wc -l")).toBe("1\n")
		})

		test("comes back with a reboot, and after a run that died between fstab and mount", async () => {
			await machine.reboot()
			await machine.waitForSsh()
			await poll(async () => (await findmnt()) !== "", { what: "the mount at boot", deadlineMs: 20_000 })
			await shell("umount /mnt/sfs")
			expect((await steps({ ...all, mode: "verify" })).exitCode).toBe(3)
			expect((await steps(all)).steps["share"]).toMatchObject({ outcome: "applied" })
			// Mounted by hand, and gone with the next boot.
			await shell("sed -i /sfs/d /etc/fstab")
			expect((await steps({ ...all, mode: "verify" })).steps["share"]).toMatchObject({
				because: expect.stringContaining("/etc/fstab doesn't have it as configured"),
			})
			expect((await steps(all)).steps["share"]).toMatchObject({ outcome: "applied" })
			expect(await shell("grep -c sfs /etc/fstab; findmnt --noheadings /mnt/sfs | wc -l")).toBe("1\n1\n")
		})

		test("a directory that ComfyUI's user may not write in is found, also where its mode is right", async () => {
			await shell("chmod 755 /mnt/sfs/outputs")
			const found = await steps({ ...all, mode: "verify" })
			expect(found.steps["share-directories"]?.because).toBe("/mnt/sfs/outputs has mode 755, not 1777")
			expect((await steps(all)).exitCode).toBe(0)
			await shell("mount -o remount,bind,ro /mnt/sfs")
			const readOnly = await steps({ ...all, mode: "verify" })
			expect(readOnly.steps["share-directories"]?.because).toContain(
				"uid 1000 may not write in /mnt/sfs/outputs",
			)
			await shell("mount -o remount,bind,rw /mnt/sfs")
		})

		test("is not taken when its file ENVIRONMENT names others", async () => {
			const production = { ...all, configuration: shareOf("staging") }
			const before = (await outside()).stdout
			const refused = await steps(production)
			expect(refused.exitCode).toBe(8)
			expect(refused.steps["share-sentinel"]?.because).toContain("is for testing, not for staging")
			expect(refused.steps["share-directories"]?.outcome).toBe("blocked")
			// Nor by what asks only whether the share is there, as every backup and restore does.
			const alone = await steps({ ...production, steps: ["share-directories"] })
			expect(alone.exitCode).toBe(8)
			expect((await outside()).stdout).toBe(before)
			await writeFile(join(directory, "share/ENVIRONMENT"), "testing staging   # the clone\n")
			expect((await steps(production)).exitCode).toBe(0)
			await writeFile(join(directory, "share/ENVIRONMENT"), "")
			expect((await steps(all)).exitCode).toBe(8)
		})

		test("is not claimed while somebody else's snapshots lie on it", async () => {
			await rm(join(directory, "share/ENVIRONMENT"))
			await mkdir(join(directory, "share/cache/backups/staging"))
			const refused = await steps(all)
			expect(refused.exitCode).toBe(8)
			expect(refused.steps["share-sentinel"]).toMatchObject({
				because: expect.stringContaining("holds snapshots of staging"),
				hint: expect.stringContaining("echo 'staging testing' >/mnt/sfs/ENVIRONMENT"),
			})
			expect(await readdir(join(directory, "share"))).not.toContain("ENVIRONMENT")
			await rm(join(directory, "share/cache/backups/staging"), { recursive: true })
			await mkdir(join(directory, "share/cache/backups/testing"))
			expect((await steps(all)).exitCode).toBe(0)
			expect(await readFile(join(directory, "share/ENVIRONMENT"), "utf8")).toBe("testing\n")
		})

		test("a server that can't be reached is told from one that refuses and from a name that nobody knows", async () => {
			const nfs = (host: string) =>
				configuration(`    share: { mount: mount -t nfs -o nconnect=16 ${host}:/share /mnt/nfs }\n`)
			const reach = (host: string, sharePort: number) =>
				steps({ configuration: nfs(host), steps: ["share-reachable"], sharePort })
			const server = createServer().listen(0, world.address)
			await poll(() => server.listening, { what: "the server", deadlineMs: 5_000 })
			const address = server.address()
			const port = typeof address === "object" ? (address?.port ?? 0) : 0
			expect((await reach(world.address, port)).steps["share-reachable"]).toMatchObject({
				outcome: "satisfied",
			})
			await new Promise((resolve) => server.close(resolve))
			for (const [host, says] of [
				[world.address, /refuses the connection/],
				// Nobody's, in the world's own network.
				[world.address.replace(/\.1$/, ".250"), /gives no answer \((EHOSTUNREACH|ETIMEDOUT)\)/],
				["nfs.nowhere.example.test", /nobody knows|can't be looked up/],
			] as const) {
				const failed = await reach(host, port)
				expect(failed.exitCode, failed.all).toBe(4)
				expect(failed.steps["share-reachable"]?.because).toMatch(says)
			}
		})
	})

	describe("scratch", () => {
		const scratchOf = (device: string) =>
			configuration(`    scratch: { device: ${device}, path: /mnt/scratch }\n`)
		const both = () => ({ configuration: scratchOf(loop), steps: ["scratch", "scratch-directories"] })
		const digest = async () => (await run("sha256sum", [join(directory, "scratch.img")])).stdout
		const wipe = () => run("blkdiscard", ["--force", "--zeroout", loop])

		test("a device that isn't there is said with what to do", async () => {
			const failed = await steps({ ...both(), configuration: scratchOf("/dev/vdz") })
			expect(failed.exitCode).toBe(4)
			expect(failed.steps["scratch"]).toMatchObject({
				hint: expect.stringContaining("shut the instance down"),
			})
		})

		test("nothing that holds something is formatted, whatever is named", async () => {
			for (const fill of [
				`mkfs.ext2 -q -F ${loop}`,
				`mkswap -q ${loop}`,
				// The head of a LUKS volume, and a partition table with one partition.
				`printf 'LUKS\\272\\276\\000\\001' | dd of=${loop} conv=notrunc status=none`,
				`printf '\\000\\000\\002\\000\\203\\000\\000\\000\\000\\010\\000\\000\\000\\020\\000\\000' | dd of=${loop} bs=1 seek=446 conv=notrunc status=none
				printf '\\125\\252' | dd of=${loop} bs=1 seek=510 conv=notrunc status=none`,
				// A file system that something else was put over.
				`mkfs.ext4 -q -F ${loop}; printf 'LUKS\\272\\276\\000\\001' | dd of=${loop} conv=notrunc status=none`,
			]) {
				await wipe()
				await run("sh", ["-c", fill])
				const before = await digest()
				const refused = await steps({ ...both(), formatScratch: loop })
				expect(refused.exitCode, `${fill}: ${refused.all}`).toBe(8)
				expect(await digest(), fill).toBe(before)
			}
			await wipe()
		})

		test("an empty one is formatted only when exactly it is named", async () => {
			const before = await digest()
			const refused = await steps(both())
			expect(refused.exitCode).toBe(8)
			expect(refused.steps["scratch"]).toMatchObject({
				hint: expect.stringContaining(`comfyume restore --env testing --format-scratch ${loop}`),
			})
			expect((await steps({ ...both(), formatScratch: "/dev/vdb" })).exitCode).toBe(8)
			const dry = await steps({ ...both(), formatScratch: loop, mode: "dry-run" })
			expect(dry.exitCode, dry.all).toBe(0)
			expect(await digest()).toBe(before)

			const applied = await steps({ ...both(), formatScratch: loop })
			expect(applied.exitCode, applied.all).toBe(0)
			expect(await shell("findmnt --noheadings --raw --output FSTYPE,SOURCE /mnt/scratch")).toBe(
				`ext4 ${loop}\n`,
			)
			expect(await shell("grep scratch /etc/fstab")).toBe(`${loop} /mnt/scratch ext4 defaults,nofail 0 2\n`)
			expect(await shell("cd /mnt/scratch && stat -c '%n %a' inputs outputs temp")).toBe(
				"inputs 755\noutputs 1777\ntemp 1777\n",
			)
			expect(await shell("stat -c %u:%g /mnt/scratch/inputs")).toBe("1000:1000\n")
			expect(
				(
					await machine.run(
						["setpriv", "--reuid=1000", "--clear-groups", "touch", "/mnt/scratch/outputs/x"],
						any,
					)
				).exitCode,
			).toBe(0)
		})

		test("what is on it stays, also when it is named again; a run that died before fstab goes on", async () => {
			expect((await steps({ ...both(), formatScratch: loop })).steps["scratch"]).toMatchObject({
				outcome: "satisfied",
			})
			await shell("sed -i /scratch/d /etc/fstab")
			expect((await steps({ ...both(), mode: "verify" })).exitCode).toBe(3)
			await shell("umount /mnt/scratch")
			const applied = await steps({ ...both(), formatScratch: loop })
			expect(applied.exitCode, applied.all).toBe(0)
			expect(await shell("ls /mnt/scratch/outputs")).toBe("x\n")
		})

		test("the disk that the machine boots from is never taken", async () => {
			await shell(`umount /mnt/scratch; mkdir -p /boot; mount ${loop} /boot`)
			const refused = await steps({ ...both(), formatScratch: loop })
			expect(refused.exitCode).toBe(8)
			expect(refused.steps["scratch"]?.because).toContain(`the disk that /boot lies on (${loop})`)
			await shell(`umount /boot; mount ${loop} /mnt/scratch`)
		})

		test("one that is mounted elsewhere is in use, and another one in its place is not taken for it", async () => {
			await shell(`umount /mnt/scratch; mkdir -p /srv/elsewhere; mount ${loop} /srv/elsewhere`)
			const elsewhere = await steps(both())
			expect(elsewhere.exitCode).toBe(8)
			expect(elsewhere.steps["scratch"]?.because).toContain("in use as /srv/elsewhere")
			await shell("umount /srv/elsewhere; mount -t tmpfs none /mnt/scratch")
			const strange = await steps(both())
			expect(strange.exitCode).toBe(8)
			expect(strange.steps["scratch"]?.because).toContain("/mnt/scratch is none (tmpfs)")
			await shell("umount /mnt/scratch")
		})

		test("a format that died halfway, before its superblock, is begun anew when it is named again", async () => {
			await run("dd", ["if=/dev/zero", `of=${loop}`, "bs=1k", "count=2", "conv=notrunc", "status=none"])
			expect((await steps(both())).exitCode).toBe(8)
			const applied = await steps({ ...both(), formatScratch: loop })
			expect(applied.exitCode, applied.all).toBe(0)
			await shell("umount /mnt/scratch")
		})

		test("a broken ext4 is said, and not formatted over", async () => {
			await writeFile(join(directory, "noise"), randomBytes(40 * 1024))
			// The superblock stays; what it points to is gone.
			await run("dd", [
				`if=${join(directory, "noise")}`,
				`of=${loop}`,
				"bs=1k",
				"seek=2",
				"conv=notrunc",
				"status=none",
			])
			const before = await digest()
			const failed = await steps({ ...both(), formatScratch: loop })
			expect(failed.exitCode).toBe(4)
			expect(failed.steps["scratch"]).toMatchObject({ hint: expect.stringContaining(`e2fsck -fn ${loop}`) })
			expect(await digest()).toBe(before)
		})
	})
})

const oldFstab = `# written by the installer
UUID=1234-made-up   /   ext4   errors=remount-ro 0  1

nfs.old.example.test:/OLD-Vault\t/mnt/sfs/ nfs nconnect=4 0 0
tmpfs /srv/made-up tmpfs noauto,size=1m 0 0
`
const installOldSettings = `set -e
mkdir -p /tmp/old/DEBIAN /tmp/old/etc
printf 'Package: made-up-settings\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: nobody <n@example.test>\\nDescription: made up\\n' >/tmp/old/DEBIAN/control
echo /etc/made-up.conf >/tmp/old/DEBIAN/conffiles
echo old >/tmp/old/etc/made-up.conf
dpkg-deb --root-owner-group --build /tmp/old /tmp/old.deb
dpkg --install /tmp/old.deb
echo 'changed here' >/etc/made-up.conf
`
const dockerStandIn = `#!/bin/sh
[ -e /run/docker-is-up ] || { echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?' >&2; exit 1; }
case $1 in
info) echo '{"ServerVersion":"26.1.5","MemTotal":1000000}' ;;
compose) echo 2.32.4 ;;
esac
`
const dockerUnit = `[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/touch /run/docker-is-up
ExecStop=/bin/rm /run/docker-is-up
[Install]
WantedBy=multi-user.target
`
const proStandIn = `#!/bin/sh
case $1 in
status) if [ -e /run/pro-saw ]; then echo '{"attached": true}'; else echo '{"attached": false}'; fi ;;
attach)
	if [ -e /run/pro-refuses ]; then sed 's/token: "\\(.*\\)"/Invalid token \\1/' "$3" >&2; exit 1; fi
	echo "$*" >/run/pro-saw; stat -c %a "$3" >>/run/pro-saw; cat "$3" >>/run/pro-saw ;;
esac
`
