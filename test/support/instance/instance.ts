// One fresh instance: its own systemd, sshd, host keys, machine id, disk and network address.
import { spawn } from "node:child_process"
import { createHash, randomUUID } from "node:crypto"
import { mkdir, open, readdir, readFile, writeFile } from "node:fs/promises"
import { connect } from "node:net"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { poll } from "../poll.ts"
import { type Ran, type RunOptions, run } from "../run.ts"
import { containerArguments, containerDirectories, ensureDockerLayer } from "./containers.ts"
import { controllerDirectories, groupDirectories, processesIn } from "./control-groups.ts"
import { type Disk, makeDisk } from "./disks.ts"
import { givenUpFile, instanceName, removeInstance } from "./remove.ts"
import type { WorldRecord } from "./world.ts"

export type InstanceOptions = {
	/** Short name, for messages. */
	name: string
	hostname: string
	/** A line for root's `authorized_keys`, the only way in. */
	authorizedKey: string
	/**
	 * Directories of this machine that are mounted in the instance, as the share is. They are real mount points there.
	 * To mount and unmount one while the instance runs, bind it aside and let the instance `mount --bind` it.
	 */
	binds?: readonly { from: string; to: string; readOnly?: boolean }[]
	/** Docker Engine inside, as on a machine whose image brings it along: running, and without images. */
	docker?: boolean
	/** Empty disks, without a partition table. */
	disks?: readonly Disk[]
	/** Called with the instance's root directory before it boots, to put files there. */
	prepare?: (root: string) => Promise<void>
}

export type Instance = {
	readonly name: string
	readonly hostname: string
	readonly address: string
	/** The instance's `/` on this machine. What is bound into it doesn't show here. */
	readonly root: string
	/** Fingerprints (`SHA256:…`) by key type (`ssh-ed25519`), read from the disk: what a cloud's console shows. */
	hostKeyFingerprints(): Promise<Map<string, string>>
	/** Fingerprints by key type as sshd shows them to whoever connects. */
	hostKeyFingerprintsOnWire(): Promise<Map<string, string>>
	/** Resolves once sshd greets. 15 s unless told otherwise. */
	waitForSsh(options?: { deadlineMs?: number }): Promise<void>
	/** Runs a program inside as root, not through SSH. */
	run(args: readonly string[], options?: RunOptions): Promise<Ran>
	/** Reboots, and resolves when the new systemd has begun. */
	reboot(): Promise<void>
	/** The power cut: kills all, removes all. A second call does nothing. */
	destroy(): Promise<void>
	[Symbol.asyncDispose](): Promise<void>
}

type Placement = {
	base: string
	world: WorldRecord
	address: string
	/** Counts the instances of a world from 1. */
	index: number
}

/** Makes an instance and starts it. Called by the world, which knows the place. */
export async function createInstance(options: InstanceOptions & Placement): Promise<Instance> {
	const { world, index, base, address, hostname, authorizedKey, prepare } = options
	const { binds = [], disks = [], docker = false } = options
	const id = instanceName(world.number, index)
	const directory = join(world.directory, id)
	const root = join(directory, "root")
	const groups = [...(await groupDirectories(id)), ...(docker ? await controllerDirectories(id) : [])]
	const devices: { from: string; to: string }[] = []

	try {
		await makeRoot(directory, root, docker ? [await ensureDockerLayer(), base] : [base])
		await Promise.all([
			personalise(root, { hostname, authorizedKey, outside: `198.18.${world.number}.1` }),
			plugIn(id, world.number, index, address),
		])
		if (docker) await makeRoomForContainers(directory, root)
		for (const disk of disks) devices.push({ from: await makeDisk(directory, disk), to: `/dev/${disk.name}` })
		await prepare?.(root)
	} catch (error) {
		await removeInstance(id, directory)
		throw error
	}
	const supervisor = await powerOn()

	// PID 1 of the instance, by its number on this machine.
	const findInit = async () => {
		for (const pid of await processesIn(groups)) {
			const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "")
			if (/^NSpid:\t\d+\t1$/m.test(status) && /^Name:\tsystemd$/m.test(status)) return pid
		}
		return undefined
	}
	const init = () => poll(findInit, { what: `the boot of ${options.name}`, deadlineMs: 15_000 })

	const runInside = async (args: readonly string[], runOptions: RunOptions = {}) => {
		const environment = {
			PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			HOME: "/root",
		}
		const enter = ["--target", String(await init()), "--mount", "--uts", "--ipc", "--net", "--pid"]
		return run("nsenter", [...enter, "--root", "--wd", "--", ...args], {
			...runOptions,
			environment: { ...environment, LC_ALL: "C.UTF-8", ...runOptions.environment },
		})
	}

	let destroyed: Promise<void> | undefined
	const destroy = () => {
		destroyed ??= removeInstance(id, directory, () => supervisor.exitCode !== null)
		return destroyed
	}

	return {
		name: options.name,
		hostname,
		address,
		root,
		run: runInside,
		hostKeyFingerprints: async () => {
			const names = (await readdir(join(root, "etc/ssh"))).filter((name) => /^ssh_host_.*\.pub$/.test(name))
			const lines = await Promise.all(names.map((name) => readFile(join(root, "etc/ssh", name), "utf8")))
			return fingerprints(lines)
		},
		hostKeyFingerprintsOnWire: async () => {
			const { stdout } = await run("ssh-keyscan", ["-T", "5", address])
			// Each line begins with the address.
			return fingerprints(stdout.split("\n").map((line) => line.slice(line.indexOf(" ") + 1)))
		},
		waitForSsh: ({ deadlineMs = 15_000 } = {}) =>
			poll(() => greets(address), { what: `SSH on ${options.name} (${address})`, deadlineMs }).then(() => {}),
		reboot: async () => {
			const before = await init()
			// The connection to an init that is going down may break before it answers.
			await runInside(["systemctl", "reboot"], { allowedExitCodes: "any" })
			await poll(async () => ((await findInit()) ?? before) !== before, {
				what: `the reboot of ${options.name}`,
				deadlineMs: 30_000,
			})
		},
		destroy,
		[Symbol.asyncDispose]: destroy,
	}

	async function powerOn() {
		const log = await open(join(directory, "console.log"), "a")
		const script = fileURLToPath(new URL("supervise.sh", import.meta.url))
		const bindArguments = [...binds, ...devices].map(
			({ from, to, readOnly }: NonNullable<InstanceOptions["binds"]>[number]) =>
				`--bind${readOnly === true ? "-ro" : ""}=${escapeColons(from)}:${escapeColons(to)}`,
		)
		const child = spawn(
			"/bin/sh",
			[
				script,
				id,
				groups.join(" "),
				givenUpFile(directory),
				...["--quiet", "--boot", "--register=no", "--keep-unit", "--link-journal=no", "--console=pipe"],
				...[`--machine=${id}`, `--hostname=${hostname}`, `--directory=${root}`],
				...[`--network-namespace-path=/run/netns/${id}`, "--resolv-conf=off", "--timezone=off"],
				// The firewall is the instance's own.
				...(docker ? containerArguments(directory) : ["--capability=CAP_NET_ADMIN"]),
				...bindArguments,
			],
			// A session of its own: Ctrl-C is meant for the tests, which then destroy what they made.
			{ stdio: ["ignore", log.fd, log.fd], detached: true },
		)
		await log.close()
		return child
	}
}

/** @param layers directories that are never written to, the uppermost first */
async function makeRoot(directory: string, root: string, layers: readonly string[]): Promise<void> {
	const [upper, work] = [join(directory, "upper"), join(directory, "work")]
	for (const path of [upper, work, root]) await mkdir(path, { recursive: true })
	await run("mount", [
		"-t",
		"overlay",
		"-o",
		`lowerdir=${layers.join(":")},upperdir=${upper},workdir=${work}`,
		"overlay",
		root,
	])
}

async function makeRoomForContainers(directory: string, root: string): Promise<void> {
	for (const name of containerDirectories) await mkdir(join(directory, name), { mode: 0o711 })
	await run("chroot", [root, "groupadd", "--system", "docker"])
}

async function personalise(
	root: string,
	{ hostname, authorizedKey, outside }: { hostname: string; authorizedKey: string; outside: string },
): Promise<void> {
	await run("ssh-keygen", ["-A", "-f", root])
	await writeFile(join(root, "etc/machine-id"), `${randomUUID().replaceAll("-", "")}\n`)
	await writeFile(join(root, "etc/hostname"), `${hostname}\n`)
	await writeFile(
		join(root, "etc/hosts"),
		`127.0.0.1 localhost\n127.0.1.1 ${hostname}\n${outside} outside.example.test\n`,
	)
	await mkdir(join(root, "root/.ssh"), { mode: 0o700, recursive: true })
	await writeFile(join(root, "root/.ssh/authorized_keys"), `${authorizedKey.trim()}\n`, { mode: 0o600 })
}

async function plugIn(id: string, world: number, index: number, address: string): Promise<void> {
	await run("ip", ["netns", "add", id])
	await run("ip", ["-n", `cfy${world}`, "-batch", "-"], {
		stdin: [
			`link add name port${index} type veth peer name eth0 netns ${id}`,
			`link set port${index} master bridge0`,
			`link set port${index} up`,
		].join("\n"),
	})
	await run("ip", ["-n", id, "-batch", "-"], {
		stdin: ["link set lo up", `addr add ${address}/24 dev eth0`, "link set eth0 up"].join("\n"),
	})
}

function fingerprints(publicKeys: readonly string[]): Map<string, string> {
	const found = new Map<string, string>()
	for (const line of publicKeys) {
		const [type, key] = line.trim().split(" ")
		if (type === undefined || key === undefined) continue
		const digest = createHash("sha256").update(Buffer.from(key, "base64")).digest("base64")
		found.set(type, `SHA256:${digest.replace(/=+$/, "")}`)
	}
	return found
}

/** Whether an SSH server greets at an address. */
export function greets(address: string): Promise<boolean> {
	return new Promise((resolve) => {
		const socket = connect({ host: address, port: 22 })
		const answer = (is: boolean) => {
			socket.destroy()
			resolve(is)
		}
		socket.setTimeout(1_000, () => answer(false))
		socket.once("data", (chunk) => answer(chunk.toString("latin1").startsWith("SSH-2.0-")))
		socket.once("error", () => answer(false))
		socket.once("close", () => answer(false))
	})
}

const escapeColons = (path: string) => path.replaceAll(":", "\\:")
