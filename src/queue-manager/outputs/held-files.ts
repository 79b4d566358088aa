// Files below a root that others write into, opened part by part, each through the one before it: no link is followed,
// and nothing can be put in a path's place between looking and reading. Linux only (/proc/self/fd).
//
// All calls are synchronous and run in threads of their own (file-thread.ts): a call that hangs on a dead mount must
// hold up neither the event loop nor libuv's few threads, which every asynchronous file call would go through.
import {
	closeSync,
	constants,
	fchmodSync,
	fstatSync,
	mkdirSync,
	openSync,
	readSync,
	type Stats,
} from "node:fs"
import { codeOf, OperatorError } from "../../lib/errors.ts"
import type { ReadRange } from "../../lib/formats/safetensors.ts"

/** A file or directory: `root` is trusted and may be a link; of `path` every part is checked. */
export type Place = { root: string; path: string }

const asDirectory = constants.O_RDONLY | constants.O_DIRECTORY
const noLink = constants.O_NOFOLLOW | constants.O_NONBLOCK

/** The parts of a path below a root. @throws {OperatorError} for one that could lead elsewhere */
export function partsOf(path: string): string[] {
	const parts = path.split("/")
	const isStrange = (part: string) => part === "" || part === "." || part === ".." || part.includes("\0")
	if (parts.some(isStrange))
		throw new OperatorError(`${JSON.stringify(path.slice(0, 200))} is not a path below a directory`)
	return parts
}

/** Runs `use` with the descriptor of a directory below the root, `""` for the root itself. */
export function withDirectory<T>({ root, path }: Place, use: (entry: (name: string) => string) => T): T {
	let held = openSync(root, asDirectory)
	try {
		for (const part of path === "" ? [] : partsOf(path)) {
			const next = openSync(`/proc/self/fd/${held}/${part}`, asDirectory | noLink)
			closeSync(held)
			held = next
		}
		return use((name) => `/proc/self/fd/${held}/${name}`)
	} catch (error) {
		if (codeOf(error) === "ELOOP" || codeOf(error) === "ENOTDIR")
			throw new OperatorError(`${path} below ${root}: a part of it is a link or no directory`, {
				cause: error,
			})
		throw error
	} finally {
		closeSync(held)
	}
}

/** Runs `use` in the directory that holds a file, with a path of the file that stays right. */
export function withParent<T>({ root, path }: Place, use: (file: string, name: string) => T): T {
	const parts = partsOf(path)
	const name = parts.pop() ?? ""
	return withDirectory({ root, path: parts.join("/") }, (entry) => use(entry(name), name))
}

/** Makes a directory and those above it, open to everybody: the GPU's ComfyUI writes as another user than ours. */
export function makeDirectory({ root, path }: Place, mode: number): void {
	let held = openSync(root, asDirectory)
	try {
		for (const part of partsOf(path)) {
			const at = `/proc/self/fd/${held}/${part}`
			let isNew = true
			try {
				mkdirSync(at, { mode })
			} catch (error) {
				if (codeOf(error) !== "EEXIST") throw error
				isNew = false
			}
			const next = openSync(at, asDirectory | noLink)
			if (isNew) fchmodSync(next, mode) // The umask took bits away.
			closeSync(held)
			held = next
		}
	} finally {
		closeSync(held)
	}
}

/** A regular file, open for reading. */
export type HeldFile = {
	descriptor: number
	facts: Stats
	read: ReadRange
	/** Fills the buffer from an offset, as far as the file goes. */
	readInto(buffer: Buffer, offset: number): number
}

/**
 * Opens a regular file that has no second name, and closes it when `use` is through.
 * @throws {OperatorError} for links, hard links and what is no file
 */
export async function withFile<T>(place: Place, use: (file: HeldFile) => Promise<T>): Promise<T> {
	const descriptor = withParent(place, (file) => {
		try {
			return openSync(file, constants.O_RDONLY | noLink)
		} catch (error) {
			if (codeOf(error) !== "ELOOP") throw error
			throw new OperatorError(`${place.path} is a link: links are not followed`, { cause: error })
		}
	})
	try {
		const facts = fstatSync(descriptor)
		if (!facts.isFile()) throw new OperatorError(`${place.path} is not a regular file`)
		const readInto = (buffer: Buffer, offset: number) => {
			let done = 0
			while (done < buffer.length) {
				const count = readSync(descriptor, buffer, done, buffer.length - done, offset + done)
				if (count === 0) break
				done += count
			}
			return done
		}
		return await use({
			descriptor,
			facts,
			readInto,
			read: async (offset, length) => {
				const buffer = Buffer.allocUnsafe(length)
				return buffer.subarray(0, readInto(buffer, offset))
			},
		})
	} finally {
		closeSync(descriptor)
	}
}
