// Room on file systems: measured before bytes are written, and looked at as a whole.
import { statfs } from "node:fs/promises"
import { exitCodes, OperatorError, systemError } from "../errors.ts"
import { command, withOptions } from "./command.ts"
import type { Host } from "./host.ts"
import type { LocalHost } from "./local.ts"

/** Room that must be free before bytes are written, as a multiple of what will be written. */
export const spaceFactor = 1.2

/** What can still be written on a file system. Not every one counts its inodes. */
export type Room = { freeBytes: number; freeInodes?: number }

/**
 * The room where a directory lies.
 * @param directory on this machine; must exist
 * @throws Node's own errors
 */
export async function roomOf(directory: string): Promise<Room> {
	const { bavail, bsize, files, ffree } = await statfs(directory)
	return { freeBytes: bavail * bsize, ...(files > 0 ? { freeInodes: ffree } : {}) }
}

export type Need = {
	bytes: number
	/** Files and directories that will be made. */
	files?: number
	/** How the place is called. */
	shown: string
	/** What it is for; only where the place doesn't tell. */
	forWhat?: string
	/** Where to look; the place itself without it. */
	directory?: string
}

/**
 * Makes sure that there is room before anything is written.
 * @param room where it is to be written; undefined for a place without such a limit
 * @throws {OperatorError} (7) naming what is needed and what is free
 */
export function requireRoom(room: Room | undefined, need: Need): void {
	const { bytes, files = 1, shown, forWhat, directory = shown } = need
	const rest = forWhat === undefined ? "" : ` for ${forWhat}`
	const refuse = (free: number, what: string, needed: number, hint: string) => {
		throw new OperatorError(`${shown} has ${free} ${what} free, ${needed} are needed${rest}`, {
			exitCode: exitCodes.noSpace,
			hint: `${hint} ${directory}`,
		})
	}
	if (room === undefined) return
	if (room.freeBytes < bytes) refuse(room.freeBytes, "bytes", bytes, "df -h")
	if (room.freeInodes !== undefined && room.freeInodes < files)
		refuse(room.freeInodes, "inodes", files, "df -i")
}

/**
 * The same for a directory of this machine.
 * @throws {OperatorError} (7) as above
 */
export async function requireSpace(directory: string, need: Need): Promise<void> {
	let room: Room
	try {
		room = await roomOf(directory)
	} catch (error) {
		throw systemError(error, `measuring the room in ${need.shown}`)
	}
	requireRoom(room, need)
}

/**
 * The same for a directory of a host whose disk is at hand.
 * @throws {OperatorError} (7) as above
 */
export const requireSpaceOn = (
	host: LocalHost,
	directory: string,
	need: Pick<Need, "bytes" | "files">,
): Promise<void> =>
	requireSpace(host.path(directory), { ...need, shown: `${directory} on ${host.name}`, directory })

export type FileSystem = {
	/** Of the kernel: what two paths share that lie on one file system. */
	device: string
	/** As `df` names it: a device, `nfs.example.test:/share`, `tmpfs`. */
	source: string
	sizeBytes: number
	freeBytes: number
	/** As `df` has it: of what users can write. */
	usedPercent: number
	/** Absent where the file system counts none. */
	inodesUsedPercent?: number
}

// A mount whose server is gone keeps whoever asks for ever.
const answerTimeoutMs = 20_000

/**
 * What a path's file system holds, asked of `df` and `stat` as programs: one that never answers can be ended.
 * @param path on this machine; must exist
 * @throws {OperatorError} (4) when no answer comes
 */
export async function fileSystemOf(host: Host, path: string): Promise<FileSystem> {
	const ask = (program: string, ...words: string[]) =>
		host.capture(withOptions(command(program, ...words, "--", path), { timeoutMs: answerTimeoutMs }))
	const [{ stdout: device }, { stdout }] = await Promise.all([
		ask("stat", "--format=%d"),
		ask("df", "--block-size=1", "--output=itotal,iavail,size,used,avail,source"),
	])
	const fields = stdout.trim().split("\n").at(-1)?.trim().split(/\s+/) ?? []
	// A file system that doesn't count says `-`.
	const [inodes = 0, freeInodes = 0, sizeBytes = 0, usedBytes = 0, freeBytes = 0] = fields
		.slice(0, 5)
		.map((text) => (text === "-" ? 0 : Number(text)))
	return {
		device: device.trim(),
		source: fields.slice(5).join(" "),
		sizeBytes,
		freeBytes,
		usedPercent: percent(usedBytes, usedBytes + freeBytes),
		...(inodes > 0 ? { inodesUsedPercent: percent(inodes - freeInodes, inodes) } : {}),
	}
}

// Up, as df does: 100 % only when nothing is left is no comfort.
const percent = (part: number, whole: number) => (whole <= 0 ? 0 : Math.ceil((part * 100) / whole))
