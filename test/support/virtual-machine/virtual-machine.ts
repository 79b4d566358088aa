// One virtual machine: a kernel of its own, where the outer machine's lacks something. Slower than an instance (on an
// emulated processor), and like one in all that is seen from outside.
import { spawn } from "node:child_process"
import { randomUUID } from "node:crypto"
import { mkdir, open, readFile, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { groupDirectories } from "../instance/control-groups.ts"
import { greets } from "../instance/instance.ts"
import { instanceName, removeInstance } from "../instance/remove.ts"
import type { WorldRecord } from "../instance/world.ts"
import { poll } from "../poll.ts"
import { type Ran, type RunOptions, run } from "../run.ts"
import { ensureImage } from "./image.ts"

export type VirtualMachineOptions = {
	/** Short name, for messages. */
	name: string
	hostname: string
	/** The operator's private key, the only way in; its public half lies beside it. */
	keyFile: string
	memoryMebibytes?: number
	/** Called with the mounted root directory before the first boot, to put files there. */
	prepare?: (root: string) => Promise<void>
}

export type VirtualMachine = {
	readonly name: string
	readonly hostname: string
	readonly address: string
	/** Resolves once sshd greets. 600 s unless told otherwise: an emulated processor takes its time. */
	waitForSsh(options?: { deadlineMs?: number }): Promise<void>
	/** Runs a program inside as root, through SSH. The environment is the one that sshd gives. */
	run(args: readonly string[], options?: RunOptions): Promise<Ran>
	/** Reboots, and resolves when sshd greets again. */
	reboot(): Promise<void>
	/** What the machine has said on its console. */
	console(): Promise<string>
	/** The power cut: kills and removes all. A second call does nothing. */
	destroy(): Promise<void>
	[Symbol.asyncDispose](): Promise<void>
}

type Placement = { world: WorldRecord; address: string; index: number }

/** Makes a machine and starts it. Called by the world, which knows the place. Needs qemu. */
export async function createVirtualMachine(
	options: VirtualMachineOptions & Placement,
): Promise<VirtualMachine> {
	const { world, index, address, hostname, keyFile, memoryMebibytes = 1024, prepare } = options
	const image = await ensureImage()
	const id = instanceName(world.number, index)
	const directory = join(world.directory, id)
	const disk = join(directory, "root.disk")
	const consoleLog = join(directory, "console.log")
	const groups = await groupDirectories(id)
	let ended = false

	let destroyed: Promise<void> | undefined
	const destroy = () => {
		destroyed ??= removeInstance(id, directory, () => ended)
		return destroyed
	}

	try {
		await mkdir(directory, { recursive: true })
		await run("cp", ["--sparse=always", image.disk, disk])
		await personalise()
		await run("ip", ["netns", "exec", `cfy${world.number}`, "ip", "-batch", "-"], {
			stdin: [
				`tuntap add dev port${index} mode tap`,
				`link set port${index} master bridge0`,
				`link set port${index} up`,
			].join("\n"),
		})
		await powerOn()
	} catch (error) {
		ended = true
		await destroy()
		throw error
	}

	const ssh = (args: readonly string[], runOptions?: RunOptions) =>
		run(
			"ssh",
			[
				...["-i", keyFile, "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=30"],
				...["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"],
				...[`root@${address}`, "--", ...args.map(quote)],
			],
			{ timeoutMs: 180_000, ...runOptions },
		)
	const waitForSsh = ({ deadlineMs = 600_000 } = {}) =>
		poll(
			async () => {
				if (ended) throw new Error(`${options.name} is off:\n${(await readConsole()).slice(-2000)}`)
				return greets(address)
			},
			{ what: `SSH on ${options.name} (${address})`, deadlineMs, intervalMs: 100 },
		).then(() => {})
	const readConsole = () => readFile(consoleLog, "latin1")

	return {
		name: options.name,
		hostname,
		address,
		waitForSsh,
		run: ssh,
		reboot: async () => {
			const bootId = async () =>
				(await ssh(["cat", "/proc/sys/kernel/random/boot_id"], { allowedExitCodes: "any" })).stdout.trim()
			const before = await bootId()
			// The connection may break before it answers.
			await ssh(["systemctl", "reboot"], { allowedExitCodes: "any" })
			await poll(async () => !["", before].includes(await bootId()), {
				what: `the reboot of ${options.name}`,
				deadlineMs: 900_000,
				intervalMs: 200,
			})
		},
		console: readConsole,
		destroy,
		[Symbol.asyncDispose]: destroy,
	}

	async function personalise(): Promise<void> {
		const root = join(directory, "root")
		await mkdir(root)
		await run("mount", ["-o", "loop", disk, root])
		try {
			await run("ssh-keygen", ["-A", "-f", root])
			await writeFile(join(root, "etc/machine-id"), `${randomUUID().replaceAll("-", "")}\n`)
			await writeFile(join(root, "etc/hostname"), `${hostname}\n`)
			await writeFile(join(root, "etc/hosts"), `127.0.0.1 localhost\n127.0.1.1 ${hostname}\n`)
			await writeFile(
				join(root, "etc/systemd/network/eth0.network"),
				`[Match]\nName=eth0\n\n[Network]\nAddress=${address}/24\n`,
			)
			await mkdir(join(root, "root/.ssh"), { mode: 0o700, recursive: true })
			await writeFile(join(root, "root/.ssh/authorized_keys"), await readFile(`${keyFile}.pub`), {
				mode: 0o600,
			})
			await prepare?.(root)
		} finally {
			await run("umount", [root])
		}
	}

	async function powerOn(): Promise<void> {
		const log = await open(join(directory, "qemu.log"), "a")
		const qemu = [
			...["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"],
			// An emulated processor is had everywhere; the real one's virtualisation isn't, though its device be there.
			...["-accel", "tcg", "-cpu", "qemu64", "-m", `${memoryMebibytes}`],
			...["-kernel", image.kernel, "-initrd", image.initialRamDisk],
			...["-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet"],
			...["-drive", `file=${disk},format=raw,if=virtio,cache=unsafe`],
			...["-netdev", `tap,id=net,ifname=port${index},script=no,downscript=no`],
			...[
				"-device",
				`virtio-net-pci,netdev=net,mac=52:54:00:12:${hexadecimal(world.number)}:${hexadecimal(index)},romfile=`,
			],
			...["-device", "virtio-rng-pci", "-serial", `file:${consoleLog}`],
		]
		const enter =
			'for group in $1; do mkdir -p "$group" && echo 0 >"$group/cgroup.procs" || exit 1; done; shift; exec "$@"'
		const child = spawn(
			"/bin/sh",
			["-c", enter, "sh", groups.join(" "), "ip", "netns", "exec", `cfy${world.number}`, ...qemu],
			// A session of its own: Ctrl-C is meant for the tests, which then destroy what they made.
			{ stdio: ["ignore", log.fd, log.fd], detached: true },
		)
		child.once("exit", () => {
			ended = true
		})
		await log.close()
	}
}

const hexadecimal = (byte: number) => byte.toString(16).padStart(2, "0")

// SSH hands its arguments to a shell.
const quote = (word: string) => `'${word.replaceAll("'", `'\\''`)}'`
