// Objects as files below a directory: the share. A file stands under its name only when it is whole.
import { createHash, randomUUID } from "node:crypto"
import type { Stats } from "node:fs"
import {
	access,
	constants,
	type FileHandle,
	link,
	lstat,
	mkdir,
	open,
	readdir,
	rename,
	rm,
} from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { Readable } from "node:stream"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { roomOf } from "../host/disk.ts"
import { checkKey, checkNewKey, checkPrefix, isReservedName } from "./keys.ts"
import { readStretch } from "./local-file.ts"
import {
	type GetOptions,
	type HealableStore,
	ObjectChanged,
	type ObjectHead,
	type PutOptions,
} from "./object-store.ts"

export type DirectoryStoreOptions = {
	/** What reports call it, as in `share`. */
	name: string
	/** Absolute path. Keys are paths below it. */
	directory: string
	/** What must exist, when the directory itself may still be missing: the share that it lies on. */
	mountPoint?: string
	/** Where it is, in the operator's words; the directory itself without it. */
	place?: string
	/** Throws when the share is not mounted there. Asked before every use: an empty mount point takes writes gladly. */
	mountCheck?: () => Promise<void>
	/** Permission bits of stored files. Snapshots hold keys and passwords, so only the owner reads them by default. */
	fileMode?: number
}

/**
 * Opens a directory as a store; holds nothing open. `list` passes over partial files and over copies that were set
 * aside; `head` and `get` still reach the latter by their full key. Symbolic links are no objects.
 */
export function directoryStore(options: DirectoryStoreOptions): HealableStore {
	const { name, directory, place = directory, fileMode = 0o600 } = options
	const mountCheck = options.mountCheck && sharedAnswer(options.mountCheck)
	const base = options.mountPoint ?? directory
	const pathOf = (key: string) => join(directory, key)
	const shown = (key: string) => `${key} in ${name} (${place})`

	const ready = async () => {
		await mountCheck?.()
		const stats = await lstatOrNothing(join(base, "."), `looking at ${name} (${place})`)
		if (stats?.isDirectory() !== true)
			throw new OperatorError(`${name}: the directory ${base} does not exist`, {
				exitCode: exitCodes.unreachable,
				hint: `findmnt --target ${base}; mkdir ${base}`,
			})
	}

	const head = async (key: string): Promise<ObjectHead | undefined> => {
		const stats = await lstatOrNothing(pathOf(key), `looking at ${shown(key)}`)
		return stats?.isFile() === true ? headOf(key, stats) : undefined
	}

	return {
		name,
		place,
		room: async () => {
			await ready()
			return roomOf(base)
		},
		probe: async () => {
			await ready()
			// Whether it can be written is for `put` to find out: restoring from a read-only share is fine.
			await guarded(`using ${name} (${place})`, () => access(base, constants.R_OK | constants.X_OK))
		},
		head: async (key) => {
			checkKey(key, name)
			await ready()
			return await head(key)
		},
		async *list(prefix) {
			checkPrefix(prefix, name)
			await ready()
			yield* walk(directory, prefix, `listing ${prefix === "" ? "all" : prefix} in ${name} (${place})`)
		},
		byteSource: ({ key, sizeBytes, etag }) => ({
			name,
			place: shown(key),
			sizeBytes,
			etag,
			access: { kind: "file", path: pathOf(key) },
		}),
		get: async (key, getOptions = {}) => {
			checkKey(key, name)
			await ready()
			return await openToRead(pathOf(key), key, shown(key), getOptions)
		},
		put: async (key, localFile, putOptions) => {
			checkNewKey(key, name)
			stopIfAborted(putOptions.signal, shown(key))
			await ready()
			if ((await lstatOrNothing(pathOf(key), `looking at ${shown(key)}`)) !== undefined)
				return "already-there"
			return await guarded(
				`storing ${shown(key)}`,
				() => putFile(directory, key, { localFile, shown: shown(key), fileMode, ...putOptions }),
				putOptions.signal,
			)
		},
		setAside: async (key, at) => {
			checkKey(key, name)
			await ready()
			await guarded(`setting ${shown(key)} aside`, () => moveAside(pathOf(key), at))
		},
		async [Symbol.asyncDispose]() {},
	}
}

function headOf(key: string, stats: Stats): ObjectHead {
	return {
		key,
		sizeBytes: stats.size,
		storedAt: stats.mtime,
		etag: `"${stats.size.toString(16)}-${stats.mtimeMs.toString(16)}-${stats.ino.toString(16)}"`,
	}
}

// A directory sorts as if its name ended with `/`, so that whole keys come in byte order.
async function* walk(root: string, prefix: string, doing: string): AsyncGenerator<ObjectHead> {
	const entries = await guarded(doing, () => readdir(join(root, prefix), { withFileTypes: true })).catch(
		(error) => {
			if (["ENOENT", "ENOTDIR"].includes(codeOf(error.cause) ?? "")) return []
			throw error
		},
	)
	const sorted = entries
		.map((entry) => ({ entry, order: Buffer.from(entry.isDirectory() ? `${entry.name}/` : entry.name) }))
		.sort((a, b) => a.order.compare(b.order))
	// At once: on a share each is a question to its server.
	const looks = await Promise.all(
		sorted.map(async ({ entry }) =>
			entry.isFile() && !isReservedName(entry.name)
				? lstatOrNothing(join(root, prefix + entry.name), doing)
				: undefined,
		),
	)
	for (const [index, { entry }] of sorted.entries()) {
		const key = prefix + entry.name
		const stats = looks[index]
		if (entry.isDirectory()) yield* walk(root, `${key}/`, doing)
		else if (stats !== undefined) yield headOf(key, stats)
	}
}

async function openToRead(path: string, key: string, shown: string, options: GetOptions): Promise<Readable> {
	const { range, ifMatch, signal } = options
	stopIfAborted(signal, shown)
	const file = await guarded(`reading ${shown}`, () => open(path, constants.O_RDONLY | constants.O_NOFOLLOW))
	try {
		const stats = await file.stat()
		if (!stats.isFile()) throw new OperatorError(`reading ${shown}: it is not a file`)
		const { etag, sizeBytes } = headOf(key, stats)
		if (ifMatch !== undefined && ifMatch !== etag) throw new ObjectChanged(shown)
		const { first, last } = range ?? { first: 0, last: sizeBytes - 1 }
		if (range !== undefined && (first < 0 || last < first || last >= sizeBytes))
			throw new OperatorError(
				`reading ${shown}: it has ${sizeBytes} bytes, and ${first} to ${last} were asked for`,
			)
		const stretch = { offsetBytes: first, sizeBytes: last - first + 1 }
		const chunks = readWhole(file, stretch, { etag, key, shown, signal })
		const stream = Readable.from(chunks, { objectMode: false, highWaterMark: 1 })
		const stop = () => stream.destroy(new OperatorError(`${shown}: stopped`, { cause: signal?.reason }))
		signal?.addEventListener("abort", stop, { once: true })
		// Not in the generator: one that was never started doesn't run its `finally`. Closing what was only read from
		// has no failure worth telling.
		stream.once("close", () => {
			signal?.removeEventListener("abort", stop)
			file.close().catch(() => {})
		})
		return stream
	} catch (error) {
		await file.close()
		throw systemError(error, `reading ${shown}`)
	}
}

async function* readWhole(
	file: FileHandle,
	stretch: { offsetBytes: number; sizeBytes: number },
	object: { etag: string; key: string; shown: string; signal: AbortSignal | undefined },
): AsyncGenerator<Buffer> {
	try {
		for await (const chunk of readStretch(file, stretch)) {
			stopIfAborted(object.signal, object.shown)
			yield chunk
		}
		// Somebody wrote into the file while it was read: what was given out may be a mixture.
		if (headOf(object.key, await file.stat()).etag !== object.etag) throw new ObjectChanged(object.shown)
	} catch (error) {
		throw error instanceof ObjectChanged ? error : named(error, `reading ${object.shown}`, object.signal)
	}
}

type FilePut = PutOptions & { localFile: string; shown: string; fileMode: number }

async function putFile(root: string, key: string, put: FilePut): Promise<"stored" | "already-there"> {
	const final = join(root, key)
	await makeParents(root, dirname(final))
	const partial = join(dirname(final), `.${basename(final)}.${randomUUID().slice(0, 8)}.partial`)
	const source = await open(put.localFile, "r")
	try {
		const target = await open(partial, "wx", put.fileMode)
		try {
			await copyChecked(source, target, put)
			await target.chmod(put.fileMode)
			await target.sync()
			if ((await target.stat()).size !== put.sizeBytes)
				throw new OperatorError(`storing ${put.shown}: the share kept another number of bytes`)
		} finally {
			await target.close()
		}
		stopIfAborted(put.signal, put.shown)
		const result = await linkInPlace(partial, final)
		await removeAbandoned(partial)
		return result
	} finally {
		await source.close()
		await rm(partial, { force: true })
		await syncDirectory(dirname(final))
	}
}

const abandonedAfterMs = 24 * 60 * 60 * 1000

/**
 * Partial files of runs that were killed. Younger ones may be another host's, at this moment; the age is measured
 * against the file just written, by the share's own clock. A failure to clean up is none of the transfer.
 */
async function removeAbandoned(justWritten: string): Promise<void> {
	const directory = dirname(justWritten)
	try {
		const { mtimeMs } = await lstat(justWritten)
		for (const name of await readdir(directory)) {
			if (!/^\..*\.partial$/.test(name)) continue
			const path = join(directory, name)
			if (mtimeMs - (await lstat(path)).mtimeMs > abandonedAfterMs) await rm(path, { force: true })
		}
	} catch {
		// The next run tries again.
	}
}

async function copyChecked(source: FileHandle, target: FileHandle, put: FilePut): Promise<void> {
	const hash = createHash("sha256")
	const { size } = await source.stat()
	if (size !== put.sizeBytes)
		throw new OperatorError(
			`storing ${put.shown}: ${put.localFile} has ${size} bytes instead of ${put.sizeBytes}`,
		)
	let done = 0
	for await (const chunk of readStretch(source, { offsetBytes: 0, sizeBytes: size })) {
		stopIfAborted(put.signal, put.shown)
		hash.update(chunk)
		for (let written = 0; written < chunk.length; )
			written += (await target.write(chunk, written, chunk.length - written)).bytesWritten
		done += chunk.length
		put.onProgress?.(done)
	}
	if (hash.digest("hex") !== put.digest)
		throw new OperatorError(`storing ${put.shown}: ${put.localFile} does not have the digest ${put.digest}`, {
			hint: `sha256sum ${put.localFile}`,
		})
}

// `rename` would replace what another run put there meanwhile; `link` fails instead.
async function linkInPlace(partial: string, final: string): Promise<"stored" | "already-there"> {
	try {
		await link(partial, final)
		return "stored"
	} catch (error) {
		if (codeOf(error) !== "EEXIST") throw error
		// NFS repeats a request whose answer was lost, and the second one finds the first one's link.
		const [ours, there] = await Promise.all([lstat(partial), lstat(final)])
		return ours.ino === there.ino && ours.dev === there.dev ? "stored" : "already-there"
	}
}

async function moveAside(path: string, at: Date): Promise<void> {
	const stamp = at.toISOString().replace(/[-:]|\.\d+/g, "")
	for (let attempt = 1; ; attempt++) {
		const aside = `${path}.bad-${stamp}${attempt === 1 ? "" : `-${attempt}`}`
		// The empty file takes the name, so that the rename replaces nothing but it.
		const taken = await open(aside, "wx", 0o600).catch((error) => {
			if (codeOf(error) === "EEXIST") return undefined
			throw error
		})
		if (taken === undefined) continue
		await taken.close()
		try {
			await rename(path, aside)
		} catch (error) {
			await rm(aside, { force: true })
			throw error
		}
		await syncDirectory(dirname(path))
		return
	}
}

async function makeParents(root: string, directory: string): Promise<void> {
	const firstMade = await mkdir(directory, { recursive: true, mode: 0o755 })
	if (firstMade === undefined) return
	for (let made = directory; made.startsWith(root); made = dirname(made)) {
		await syncDirectory(made)
		if (made === dirname(firstMade)) return
	}
}

async function syncDirectory(path: string): Promise<void> {
	const handle = await open(path, "r")
	try {
		await handle.sync()
	} finally {
		await handle.close()
	}
}

async function lstatOrNothing(path: string, doing: string): Promise<Stats | undefined> {
	try {
		return await lstat(path)
	} catch (error) {
		if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return undefined
		throw systemError(error, doing)
	}
}

function stopIfAborted(signal: AbortSignal | undefined, shown: string): void {
	if (signal?.aborted === true) throw new OperatorError(`${shown}: stopped`, { cause: signal.reason })
}

const named = (error: unknown, doing: string, signal: AbortSignal | undefined) =>
	signal?.aborted === true
		? new OperatorError(`${doing}: stopped`, { cause: error })
		: describeError(error, doing)

function describeError(error: unknown, doing: string): OperatorError {
	if (codeOf(error) === "ENOENT")
		return new OperatorError(`${doing}: there is no such file`, { cause: error })
	return systemError(error, doing)
}

async function guarded<T>(doing: string, work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
	try {
		return await work()
	} catch (error) {
		throw error instanceof OperatorError ? error : named(error, doing, signal)
	}
}

/** Questions that come while one is under way share its answer: each starts a program, and twenty artifacts ask at once. */
function sharedAnswer<T>(ask: () => Promise<T>): () => Promise<T> {
	let asked: Promise<T> | undefined
	return () => {
		asked ??= ask().finally(() => {
			asked = undefined
		})
		return asked
	}
}
