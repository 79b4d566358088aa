// What lies below some paths of a host, down to the digest of every file: the form in which a live server, an
// archive and an unpacked copy are compared with each other.
import { createHash } from "node:crypto"
import { lstat, open, readdir, readFile, readlink } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { codeOf, OperatorError, systemError } from "../errors.ts"
import { companionsAmong } from "../formats/sqlite-files.ts"
import type { LocalHost } from "../host/local.ts"
import { type FileIdentity, identityOf } from "../models/kind.ts"
import { isWithin } from "./path-pattern.ts"

/** One file, directory or symbolic link. */
export type TreeEntry = {
	/** Relative to `/` of the host, without a leading or trailing slash: `etc/ssh/ssh_host_rsa_key`. */
	path: string
	type: "file" | "directory" | "symlink"
	/** Permission bits including setuid, setgid and sticky. 0o777 for a symbolic link. */
	mode: number
	/** By name; the number as text where the host has no name for it. */
	owner: string
	group: string
	sizeBytes: number
	/** sha256 of a file's content, in hex. */
	digest?: string
	/** What a symbolic link points to. */
	target?: string
}

export type Tree = {
	/** In byte order of their paths. */
	entries: readonly TreeEntry[]
	/** Sum of the files' sizes. */
	sizeBytes: number
	/** What was left out although it lies below the paths, and why: sockets, devices, names that aren't UTF-8. */
	leftOut: readonly LeftOut[]
}

export type LeftOut = {
	path: string
	because: string
	/** True when somebody may miss it after a restore. Sockets and devices are made anew by whoever needs them. */
	missed: boolean
	/** True of a file that is there and can't be read as it should be: what was stored of it before is still worth having. */
	unread?: boolean
	/** The archive that holds what was stored of it before, which then stands in the tree. */
	earlier?: string
}

/** One file's content can't be had, and all others' can. */
export class UnreadableFile extends OperatorError {
	override name = "UnreadableFile"
}

/**
 * Gives a file's content, in whatever way; undefined when it has vanished. `disk` is its path on this machine,
 * `identity` what the disk said of it just before. Several files are asked for at a time.
 */
export type ReadFile = (
	path: string,
	disk: string,
	identity: FileIdentity,
) => Promise<{ digest: string; sizeBytes: number } | undefined>

export type TreeRequest = {
	/** Absolute paths on the host; the last part may hold `*`. */
	paths: readonly string[]
	/** Path patterns (path-pattern.ts). What matches, and what lies below it, isn't part of the tree. */
	exclude: readonly string[]
	/** `*` in a path is a part of a name. */
	exact?: boolean
	/** A file that can't be read as it should be is left out and said, instead of failing all others. */
	tolerant?: boolean
}

// A restore puts directories of its own before a path, and Linux takes 4095 bytes.
const longestPathBytes = 3500
const isTooLong = (path: string) => Buffer.byteLength(path) > longestPathBytes

// Reading holes takes time and room as if they were data: one user's could take all others' backup.
const mostHolesBytes = 1024n ** 3n
const isHollow = ({ size, blocks }: { size: bigint; blocks: bigint }) => size - blocks * 512n > mostHolesBytes

/**
 * Reads a tree from a host's disk. Paths that don't exist are simply not in it; nor is what SQLite keeps beside a
 * database in use, which belongs to another state than the database's file alone.
 * @param at where on the host the paths begin: `/`, or a staging directory that holds a copy of them
 * @throws {OperatorError} when something can't be read
 */
export async function readTree(
	host: LocalHost,
	{ paths, exclude, exact = false, tolerant = false }: TreeRequest,
	at = "/",
	signal?: AbortSignal,
	read: ReadFile = plainReader(signal),
): Promise<Tree> {
	const names = await readNames(host)
	const entries: TreeEntry[] = []
	const leftOut: LeftOut[] = []
	// Two names that look the same must not take turns in one place; archives with both are refused.
	const seen = new Set<string>()

	const visit = async (path: string): Promise<void> => {
		signal?.throwIfAborted()
		if (exclude.some((pattern) => isWithin(path, pattern))) return
		// Asked before the disk is: under the name as it was decoded there is nothing.
		if (path.includes("\uFFFD")) {
			leftOut.push({ path, because: "its name is not UTF-8", missed: true })
			return
		}
		if (isTooLong(path)) {
			const shown = `${path.slice(0, 200)}…`
			leftOut.push({
				path: shown,
				because: `its path is longer than ${longestPathBytes} bytes`,
				missed: true,
			})
			return
		}
		const folded = path.normalize("NFC")
		const isTwin = seen.has(folded)
		seen.add(folded)
		const disk = host.path(join(at, path))
		const facts = await orNothing(lstat(disk, { bigint: true }))
		if (facts === undefined) return
		if (isTwin) {
			leftOut.push({ path, because: "another name looks the same", missed: true })
			return
		}
		const mode = Number(facts.mode)
		const common = {
			path: path.slice(1),
			mode: mode & 0o7777,
			owner: names.user(Number(facts.uid)),
			group: names.group(Number(facts.gid)),
			sizeBytes: 0,
		}
		if (facts.isSymbolicLink()) {
			entries.push({ ...common, type: "symlink", mode: 0o777, target: await readlink(disk) })
		} else if (facts.isDirectory()) {
			entries.push({ ...common, type: "directory" })
			const inside = await readdir(disk)
			const companions = companionsAmong(inside)
			await inGroups(
				inside.filter((name) => !companions.has(name)),
				(name) => visit(join(path, name)),
			)
		} else if (facts.isFile()) {
			if (mode & 0o6000) {
				leftOut.push({ path, because: "it is setuid or setgid", missed: true })
				return
			}
			if (tolerant && isHollow(facts)) {
				const because = `it claims ${facts.size} bytes and holds ${facts.blocks * 512n}`
				leftOut.push({ path, because, missed: true, unread: true })
				return
			}
			// It may have vanished since; then it isn't part of the tree.
			const hashed = await orNothing(read(path, disk, identityOf(facts))).catch((error: unknown) => {
				if (!tolerant || !(error instanceof UnreadableFile)) throw error
				leftOut.push({ path, because: error.message, missed: true, unread: true })
			})
			if (hashed !== undefined) entries.push({ ...common, type: "file", ...hashed })
		} else {
			leftOut.push({ path, because: "it is a socket, a pipe or a device", missed: false })
		}
	}

	try {
		for (const path of paths)
			for (const root of exact ? [path] : await expand(host, join(at, path), path)) await visit(root)
	} catch (error) {
		throw systemError(error, `reading what lies below ${paths.join(", ")}`)
	}
	return treeOf(entries, leftOut)
}

/** True when no file with a byte in it lies at the paths or below them. Ends with the first that does. */
export async function isAbsent(host: LocalHost, { paths, exclude }: TreeRequest): Promise<boolean> {
	const holds = async (path: string): Promise<boolean> => {
		if (exclude.some((pattern) => isWithin(path, pattern)) || isTooLong(path)) return false
		const disk = host.path(path)
		const facts = await orNothing(lstat(disk))
		if (facts?.isFile() === true) return facts.size > 0
		if (facts?.isDirectory() !== true) return false
		for (const name of (await orNothing(readdir(disk))) ?? []) if (await holds(join(path, name))) return true
		return false
	}
	for (const path of paths)
		for (const found of await expand(host, path, path)) if (await holds(found)) return false
	return true
}

/** So many entries of a directory are looked at together: each look is short, and waits for its turn on the disk. */
const together = 32

async function inGroups<T>(all: readonly T[], work: (one: T) => Promise<void>): Promise<void> {
	for (let from = 0; from < all.length; from += together) {
		// Also when one has failed: nobody goes on behind the back of whoever cleans up then.
		const ended = await Promise.allSettled(all.slice(from, from + together).map(work))
		for (const each of ended) if (each.status === "rejected") throw each.reason
	}
}

/** Reads each file whole, one after another, whoever asks: a disk reads one file faster than several. */
export function plainReader(signal?: AbortSignal): ReadFile {
	const buffer = Buffer.allocUnsafe(bufferBytes)
	let before: Promise<unknown> = Promise.resolve()
	return (_path, disk) => {
		const reading = before.then(() => digestFile(disk, signal, buffer))
		before = reading.catch(() => {})
		return reading
	}
}

/** Puts entries in order and adds them up. */
export function treeOf(entries: readonly TreeEntry[], leftOut: Tree["leftOut"] = []): Tree {
	const sorted = entries
		.map((entry) => ({ entry, bytes: Buffer.from(entry.path) }))
		.sort((a, b) => Buffer.compare(a.bytes, b.bytes))
		.map(({ entry }) => entry)
	return {
		entries: sorted,
		sizeBytes: sorted.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
		leftOut,
	}
}

/**
 * One digest for a whole tree: the sha256 over a line per entry. Times are left out: they change without a change of
 * what the files are. With `ownership: false` (a directory that stands in for a server) owners are left out too.
 */
export function treeDigest({ entries }: Tree, { ownership }: { ownership: boolean }): string {
	const hash = createHash("sha256")
	for (const { path, type, mode, owner, group, sizeBytes, digest, target } of entries) {
		const fields = [
			path,
			type,
			mode.toString(8),
			...(ownership ? [owner, group] : []),
			sizeBytes,
			digest ?? "",
			target ?? "",
		]
		hash.update(`${JSON.stringify(fields)}\n`)
	}
	return hash.digest("hex")
}

/** How two trees differ, each difference as a short sentence that names the path. At most `limit` of them. */
export function differences(
	expected: Tree,
	found: Tree,
	{ ownership, limit }: { ownership: boolean; limit: number },
): string[] {
	const said: string[] = []
	const foundByPath = new Map(found.entries.map((entry) => [entry.path, entry]))
	for (const entry of expected.entries) {
		const other = foundByPath.get(entry.path)
		foundByPath.delete(entry.path)
		const difference = other === undefined ? "is missing" : entryDifference(entry, other, ownership)
		if (difference !== undefined) said.push(`/${entry.path} ${difference}`)
	}
	for (const path of foundByPath.keys()) said.push(`/${path} is not in the snapshot`)
	return said.length > limit ? [...said.slice(0, limit), `and ${said.length - limit} more`] : said
}

function entryDifference(expected: TreeEntry, found: TreeEntry, ownership: boolean): string | undefined {
	if (expected.type !== found.type) return `is a ${found.type}, not a ${expected.type}`
	if (expected.digest !== found.digest) return "has other content"
	if (expected.target !== found.target) return `points to ${found.target}, not ${expected.target}`
	if (expected.mode !== found.mode)
		return `has mode ${found.mode.toString(8)}, not ${expected.mode.toString(8)}`
	if (ownership && (expected.owner !== found.owner || expected.group !== found.group))
		return `belongs to ${found.owner}:${found.group}, not ${expected.owner}:${expected.group}`
	return undefined
}

const bufferBytes = 1024 * 1024

/**
 * sha256 of a file on this machine, in hex, with the number of bytes that were hashed. One buffer serves the whole
 * file: streams make a new one per chunk, and memory would grow with the file's size.
 */
export async function digestFile(
	diskPath: string,
	signal?: AbortSignal,
	buffer = Buffer.allocUnsafe(bufferBytes),
): Promise<{ digest: string; sizeBytes: number }> {
	const hash = createHash("sha256")
	let sizeBytes = 0
	const file = await open(diskPath, "r")
	try {
		for (;;) {
			signal?.throwIfAborted()
			const { bytesRead } = await file.read(buffer, 0, buffer.length)
			if (bytesRead === 0) break
			hash.update(buffer.subarray(0, bytesRead))
			sizeBytes += bytesRead
		}
	} finally {
		await file.close()
	}
	return { digest: hash.digest("hex"), sizeBytes }
}

/** The paths a request means: itself, or with a glob in its last part what matches in that directory. */
async function expand(host: LocalHost, diskPath: string, path: string): Promise<string[]> {
	if (!basename(path).includes("*")) return [path]
	const names = (await orNothing(readdir(host.path(dirname(diskPath))))) ?? []
	return names.map((name) => join(dirname(path), name)).filter((candidate) => isWithin(candidate, path))
}

async function orNothing<T>(work: Promise<T>): Promise<T | undefined> {
	try {
		return await work
	} catch (error) {
		if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return undefined
		throw error
	}
}

type Names = { user(uid: number): string; group(gid: number): string }

// The files and not getent: a host being restored has local users only, and one read serves ten thousand files.
async function readNames(host: LocalHost): Promise<Names> {
	const [users, groups] = await Promise.all(
		["/etc/passwd", "/etc/group"].map(async (file) => {
			const text = (await orNothing(readFile(host.standIn ? file : host.path(file), "utf8"))) ?? ""
			return new Map(
				text
					.split("\n")
					.map((line) => line.split(":"))
					.map(([name, , id]) => [Number(id), name ?? ""]),
			)
		}),
	)
	return {
		user: (uid) => users?.get(uid) ?? String(uid),
		group: (gid) => groups?.get(gid) ?? String(gid),
	}
}
