// The scratch disk: fast, local, and worth nothing once the work is done. It is formatted only where there is nothing at
// all on it and the operator names it; what holds something is never touched.
import { realpath } from "node:fs/promises"
import { join } from "node:path"
import { stackOf } from "../../config/environment.ts"
import { exitCodes, OperatorError } from "../../errors.ts"
import type { FstabEntry } from "../../formats/fstab.ts"
import { command, withOptions } from "../../host/command.ts"
import type { LocalHost } from "../../host/local.ts"
import { mountAt } from "../../host/mounts.ts"
import { type Finding, needed, type Step, satisfied } from "../../plan/step.ts"
import type { StepContext } from "../context.ts"
import { contentOf, deviceNumber, refuseSystemDisk } from "./block-device.ts"
import { lookAtDirectories, makeDirectories, type WantedDirectory } from "./directories.ts"
import { isInFstab, mountTarget, refuseHidden, writeFstab } from "./fstab.ts"

const nothingConfigured = "no scratch disk is configured"
const formatTimeoutMs = 30 * 60_000

type Scratch = { device: string; path: string }

/** By the device's path: a cloned disk has the UUID and the label of the one it was cloned from. Pure. */
export const scratchEntry = ({ device, path }: Scratch): FstabEntry => ({
	...{ source: device, target: path, type: "ext4", options: ["defaults", "nofail"] },
	...{ dump: 0, pass: 2 },
})

/**
 * The scratch disk is mounted, now and after a reboot.
 * @param formatScratch the device that the operator named with --format-scratch
 */
export function scratchIsMounted(context: StepContext, formatScratch: string | undefined): Step {
	const { host, environment, spoken } = context
	const { scratch } = environment
	return {
		id: "scratch",
		title: "the scratch disk is mounted",
		check: async (): Promise<Finding> => {
			if (scratch === undefined) return satisfied(nothingConfigured)
			if (host.standIn) return satisfied("a directory stands in for the machine: it has no scratch disk")
			const lasting = await isInFstab(host, scratchEntry(scratch))
			if (await isMounted(host, scratch)) {
				if (lasting) return satisfied(`${scratch.device} at ${scratch.path}, also after a reboot`)
				return needed("/etc/fstab doesn't have it as configured")
			}
			await refuseHidden(host, scratch.path, "the scratch disk")
			const empty = await isEmpty(host, scratch, formatScratch, spoken)
			return needed(
				empty
					? `${scratch.device} is empty, and is to be formatted`
					: `${scratch.device} (ext4) is not mounted at ${scratch.path}`,
			)
		},
		apply: async (report) => {
			if (scratch === undefined) return
			if (!(await isMounted(host, scratch))) {
				await refuseHidden(host, scratch.path, "the scratch disk")
				// Asked again, right before: a volume may have been attached since.
				if (await isEmpty(host, scratch, formatScratch, spoken)) await format(host, scratch)
			}
			await writeFstab(context, scratchEntry(scratch), report.note)
			if (await isMounted(host, scratch)) return
			await mountTarget(host, scratch.path, `e2fsck -fn ${scratch.device}; dmesg | tail`)
		},
	}
}

/** @throws {OperatorError} (8) when another device is mounted there, or this one with another file system */
async function isMounted(host: LocalHost, scratch: Scratch): Promise<boolean> {
	const found = await mountAt(host.path(scratch.path))
	if (found === undefined) return false
	await requireDevice(host, scratch)
	const { device: number, filesystem: type, source } = found
	if (number === (await deviceNumber(host, scratch.device)) && type === "ext4") return true
	throw new OperatorError(
		`${scratch.path} is ${source} (${type}), and the scratch disk is expected to be ${scratch.device} (ext4)`,
		{
			exitCode: exitCodes.refusedByGuard,
			hint: "lsblk; compare scratch.device in comfyume.yaml with the console",
		},
	)
}

/** @throws {OperatorError} (4) when there is no such device, (8) when it is none for blocks */
async function requireDevice(host: LocalHost, { device }: Scratch): Promise<void> {
	if (await host.test(command("test", "-b", device))) return
	if (await host.test(command("test", "-e", device)))
		throw new OperatorError(`${device} is no block device`, {
			exitCode: exitCodes.refusedByGuard,
			hint: `ls -l ${device}; lsblk; then correct scratch.device in comfyume.yaml`,
		})
	throw new OperatorError(`there is no ${device} on ${host.name}`, {
		exitCode: exitCodes.unreachable,
		hint: "shut the instance down, attach the block volume in the console, boot it; then look with lsblk",
	})
}

/**
 * True for one that is empty and may be formatted, false for one with ext4 on it.
 * @throws {OperatorError} (8) for everything else, with what is on it
 */
async function isEmpty(
	host: LocalHost,
	scratch: Scratch,
	formatScratch: string | undefined,
	spoken: string,
): Promise<boolean> {
	const { device } = scratch
	await requireDevice(host, scratch)
	await refuseSystemDisk(host, device)
	const refuse = (message: string, hint: string) =>
		new OperatorError(message, { exitCode: exitCodes.refusedByGuard, hint })
	const content = await contentOf(host, device)
	switch (content.holds) {
		case "file system":
			if (content.type === "ext4") return false
			throw refuse(
				`${device} holds a file system of type ${content.type}, and scratch is ext4: nothing is formatted over it`,
				`lsblk --fs ${device}; compare scratch.device in comfyume.yaml with the console`,
			)
		case "something else":
			throw refuse(
				`${device} is not empty: ${content.what}; nothing is formatted over it`,
				`lsblk --fs ${device}; wipefs --no-act ${device}`,
			)
		case "nothing": {
			const named = formatScratch === undefined ? undefined : await resolved(formatScratch)
			if (named === (await resolved(device))) return true
			const also = formatScratch === undefined ? "" : `, and --format-scratch names ${formatScratch}`
			throw refuse(
				`${device} has no file system${also}`,
				`comfyume restore ${spoken} --format-scratch ${device}   # if it is the scratch disk: lsblk`,
			)
		}
	}
}

// `/dev/disk/by-id/…` is a link.
const resolved = (device: string) => realpath(device).catch(() => device)

/** Never with --force: mkfs itself refuses what is in use. */
async function format(host: LocalHost, { device }: Scratch): Promise<void> {
	await host.execute(withOptions(command("mkfs.ext4", "-q", "--", device), { timeoutMs: formatTimeoutMs }))
}

/** Where ComfyUI's outputs, inputs and temporary files go; its user may write there. */
export function scratchDirectories({ host, environment }: StepContext): Step {
	const { scratch } = environment
	const wantedOn = ({ path }: Scratch): WantedDirectory[] => {
		const { outputs, inputs } = stackOf(environment).paths
		// The sticky bit: who may write there can't take away what is another's.
		const shared = { mode: 0o1777, written: true }
		return [
			{ path: outputs, ...shared },
			{ path: inputs, mode: 0o755, written: false, users: true },
			{ path: join(path, "temp"), ...shared },
		].filter((wanted) => wanted.path.startsWith(`${path}/`))
	}
	return {
		id: "scratch-directories",
		title: "the scratch disk's directories",
		requires: ["scratch"],
		check: async (): Promise<Finding> => {
			if (scratch === undefined) return satisfied(nothingConfigured)
			if (host.standIn) return satisfied("a directory stands in for the machine: it has no scratch disk")
			if (!(await isMounted(host, scratch)))
				return needed(`the scratch disk is not mounted at ${scratch.path} yet`)
			const wanted = wantedOn(scratch)
			const problems = await lookAtDirectories(host, wanted)
			return problems.length === 0
				? satisfied(`${wanted.length} directories, and uid 1000 may write where it has to`)
				: needed(problems.join("; "))
		},
		apply: async () => {
			if (scratch === undefined) return
			await requireScratch(host, scratch)
			await makeDirectories(wantedOn(scratch), scratch.path, true)
		},
	}
}

async function requireScratch(host: LocalHost, scratch: Scratch): Promise<void> {
	if (await isMounted(host, scratch)) return
	throw new OperatorError(`the scratch disk is not mounted at ${scratch.path}`, {
		exitCode: exitCodes.unreachable,
		hint: `mount ${scratch.path}`,
	})
}
