// What can be done with files of the share and of the outputs directory: few, coarse operations, each of them safe
// against links and against names that lead elsewhere. They run in the threads of file-pool.ts.
import { createHash } from "node:crypto"
import {
	closeSync,
	constants,
	fchmodSync,
	fstatSync,
	fsyncSync,
	linkSync,
	lstatSync,
	openSync,
	readdirSync,
	readSync,
	renameSync,
	rmdirSync,
	type Stats,
	unlinkSync,
	writeSync,
} from "node:fs"
import { codeOf, OperatorError } from "../../lib/errors.ts"
import { inspectMedia, type MediaFinding, pngTexts } from "../../lib/formats/media.ts"
import { makeDirectory, type Place, withDirectory, withFile, withParent } from "./held-files.ts"

/** Changes whenever a file does, as far as the file system tells. */
export type Facts = { sizeBytes: number; modifiedMs: number; inode: string }

export type Entry = Facts & {
	name: string
	kind: "file" | "directory" | "link" | "other"
	/** Names that the file has in all. */
	links: number
}

export type Listing = {
	entries: Entry[]
	/** Names that stand in the directory and could not be looked at, with the system's code. */
	unreadable: { name: string; code: string }[]
}

export type Inspection = Facts & {
	finding: MediaFinding
	/** What ran, as ComfyUI left it in a whole PNG; `unreadable` when it is too long. */
	prompt: { state: "read"; text: string } | { state: "absent" | "unreadable" }
}

export type Copied = Facts & {
	/** sha256 in hex. */
	digest: string
}

const copyChunkBytes = 1024 * 1024
const newFile = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
const mostEntries = 10_000

export const operations = {
	/** Makes a directory that the GPU's side may write into. */
	makeShared: async (place: Place) => makeDirectory(place, 0o777),
	/** Makes a directory for us to write into and everybody to read. */
	makeOwn: async (place: Place) => makeDirectory(place, 0o755),

	/** Reads a directory anew. @throws when there is none, also where one isn't seen yet */
	list: async (place: Place): Promise<Listing> =>
		withDirectory(place, (entry) => {
			const listing: Listing = { entries: [], unreadable: [] }
			for (const name of readdirSync(entry("."))) {
				if (listing.entries.length >= mostEntries)
					throw new OperatorError(`${place.path} has more than ${mostEntries} entries`)
				try {
					listing.entries.push(entryOf(name, lstatSync(entry(name))))
				} catch (error) {
					listing.unreadable.push({ name, code: codeOf(error) ?? "unknown" })
				}
			}
			return listing
		}),

	/** The names in a directory; none where there is no directory. */
	names: async (place: Place): Promise<string[]> => {
		try {
			return withDirectory(place, (entry) => readdirSync(entry(".")))
		} catch (error) {
			if (codeOf(error) === "ENOENT") return []
			throw error
		}
	},

	/** Judges a file by its structure, and reads a PNG's prompt. */
	inspect: (place: Place): Promise<Inspection> =>
		withFile(place, async ({ facts, read }) => {
			const finding = await inspectMedia(read, facts.size)
			const isWhole = finding.kind === "png" && finding.state === "whole"
			const found = isWhole ? await pngTexts(read, facts.size, ["prompt"]) : undefined
			const text = found?.texts.get("prompt")
			const prompt: Inspection["prompt"] =
				text !== undefined
					? { state: "read", text }
					: { state: found?.unreadable.includes("prompt") ? "unreadable" : "absent" }
			return { ...factsOf(facts), finding, prompt }
		}),

	/**
	 * Copies a file to a new one, on disk when it returns, and says what arrived there by reading it back.
	 * @throws {OperatorError} when the source is larger than allowed, has other names, or changes meanwhile
	 */
	copy: ({ from, to, mostBytes }: { from: Place; to: Place; mostBytes: number }): Promise<Copied> =>
		withFile(from, async ({ descriptor, facts, readInto }) => {
			if (facts.nlink !== 1)
				throw new OperatorError(`${from.path} has ${facts.nlink} names: it may be another's`)
			if (facts.size > mostBytes)
				throw new OperatorError(`${from.path} has ${facts.size} bytes, ${mostBytes} are the most`)
			const digest = withParent(to, (path) => copyInto(path, facts.size, readInto))
			const after = fstatSync(descriptor)
			if (after.size !== facts.size || after.mtimeMs !== facts.mtimeMs)
				throw new OperatorError(`${from.path} changed while it was copied`)
			const arrived = await operations.digest(to)
			if (arrived.digest !== digest) throw new OperatorError(`the copy of ${from.path} is not what was read`)
			return { ...factsOf(facts), digest }
		}),

	/** sha256 of a file. */
	digest: (place: Place): Promise<Copied> =>
		withFile(place, async ({ facts, readInto }) => {
			const hash = createHash("sha256")
			const buffer = Buffer.allocUnsafe(copyChunkBytes)
			for (let offset = 0; ; ) {
				const count = readInto(buffer, offset)
				if (count === 0) break
				hash.update(buffer.subarray(0, count))
				offset += count
			}
			return { ...factsOf(facts), digest: hash.digest("hex") }
		}),

	/**
	 * Gives a file of a directory a second name there unless something has that name; the directory is on disk after.
	 * A rename would replace what stands there.
	 */
	publish: async ({ root, path, name }: Place & { name: string }): Promise<"published" | "taken"> =>
		withParent({ root, path }, (part) => {
			const target = `${part.slice(0, part.lastIndexOf("/"))}/${name}`
			try {
				linkSync(part, target)
			} catch (error) {
				if (codeOf(error) === "EEXIST") return "taken"
				throw error
			}
			syncDirectory(part)
			return "published"
		}),

	/** Removes one name, when it is there. */
	remove: async (place: Place): Promise<void> =>
		withParent(place, (file) => {
			try {
				unlinkSync(file)
			} catch (error) {
				if (codeOf(error) !== "ENOENT") throw error
			}
		}),

	/**
	 * Removes a directory with all that is in it; links in it are removed and not followed, also those that are put
	 * there meanwhile. @throws when something is nested deeper than 32, or comes in again and again
	 */
	removeTree: async (place: Place): Promise<void> => {
		try {
			withParent(place, (directory) => removeWhole(directory, 0))
		} catch (error) {
			if (codeOf(error) !== "ENOENT") throw error
		}
	},

	/** Removes a directory that is empty, and leaves any other and what is none. */
	removeEmpty: async (place: Place): Promise<void> => {
		try {
			withParent(place, (directory) => rmdirSync(directory))
		} catch (error) {
			if (!["ENOENT", "ENOTEMPTY", "EEXIST", "ENOTDIR"].includes(codeOf(error) ?? "")) throw error
		}
	},

	/** Moves a file below one root; the directory it goes to must be there. */
	move: async ({ root, path, to }: Place & { to: string }): Promise<void> =>
		withParent({ root, path }, (file) =>
			withParent({ root, path: to }, (target) => renameSync(file, target)),
		),

	/** Writes a small new file, on disk when it returns. */
	write: async ({ root, path, text }: Place & { text: string }): Promise<void> =>
		withParent({ root, path }, (file) => {
			const descriptor = openSync(file, newFile, 0o644)
			try {
				fchmodSync(descriptor, 0o644)
				writeSync(descriptor, text)
				fsyncSync(descriptor)
			} finally {
				closeSync(descriptor)
			}
		}),

	/** Reads a small file. */
	readText: ({ root, path, mostBytes }: Place & { mostBytes: number }): Promise<string> =>
		withFile({ root, path }, async ({ facts, descriptor }) => {
			const buffer = Buffer.alloc(Math.min(facts.size, mostBytes))
			return buffer.toString("utf8", 0, readSync(descriptor, buffer, 0, buffer.length, 0))
		}),
} as const

export type Operations = typeof operations

function copyInto(
	path: string,
	sizeBytes: number,
	readInto: (buffer: Buffer, offset: number) => number,
): string {
	const descriptor = openSync(path, newFile, 0o644)
	try {
		fchmodSync(descriptor, 0o644)
		const hash = createHash("sha256")
		const buffer = Buffer.allocUnsafe(copyChunkBytes)
		for (let offset = 0; offset < sizeBytes; ) {
			const count = readInto(buffer.subarray(0, Math.min(buffer.length, sizeBytes - offset)), offset)
			if (count === 0) throw new OperatorError("the file became shorter while it was copied")
			hash.update(buffer.subarray(0, count))
			for (let done = 0; done < count; ) done += writeSync(descriptor, buffer, done, count - done)
			offset += count
		}
		fsyncSync(descriptor)
		return hash.digest("hex")
	} catch (error) {
		unlinkSync(path)
		throw error
	} finally {
		closeSync(descriptor)
	}
}

const mostDepth = 32

/** By handles all the way down: a directory that becomes a link in the middle of it is met as a link. */
function removeWhole(directory: string, depth: number): void {
	if (depth > mostDepth) throw new OperatorError(`a directory is nested deeper than ${mostDepth}`)
	const descriptor = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW)
	try {
		for (const name of readdirSync(`/proc/self/fd/${descriptor}`)) {
			const entry = `/proc/self/fd/${descriptor}/${name}`
			try {
				unlinkSync(entry)
			} catch (error) {
				const code = codeOf(error)
				// What unlink says of directories: Linux EISDIR, POSIX EPERM.
				if (code === "EISDIR" || code === "EPERM") removeWhole(entry, depth + 1)
				else if (code !== "ENOENT") throw error
			}
		}
	} finally {
		closeSync(descriptor)
	}
	rmdirSync(directory)
}

function syncDirectory(file: string): void {
	const descriptor = openSync(
		file.slice(0, file.lastIndexOf("/")),
		constants.O_RDONLY | constants.O_DIRECTORY,
	)
	try {
		fsyncSync(descriptor)
	} finally {
		closeSync(descriptor)
	}
}

function factsOf(facts: Stats): Facts {
	return { sizeBytes: facts.size, modifiedMs: facts.mtimeMs, inode: `${facts.dev}:${facts.ino}` }
}

function entryOf(name: string, facts: Stats): Entry {
	const kind = facts.isFile()
		? "file"
		: facts.isDirectory()
			? "directory"
			: facts.isSymbolicLink()
				? "link"
				: "other"
	return { name, kind, links: facts.nlink, ...factsOf(facts) }
}
