// The digests of files that have not changed since they were read: hashing 200 GB takes minutes, asking again nothing.
import { createHash, randomUUID } from "node:crypto"
import { mkdir, open, rename, rm } from "node:fs/promises"
import { userInfo } from "node:os"
import { dirname, join } from "node:path"
import { z } from "zod"
import { codeOf, messageOf } from "../errors.ts"
import type { FileIdentity } from "./kind.ts"

const recordSchema = z.strictObject({
	device: z.string(),
	inode: z.string(),
	sizeBytes: z.number(),
	modifiedNs: z.string(),
	changedNs: z.string(),
	sha256: z.string().regex(/^[0-9a-f]{64}$/),
	hashedAt: z.iso.datetime(),
})
const fileSchema = z.strictObject({
	version: z.literal(1),
	/** sha256 of the records as they stand in the file: a cache with a flipped bit must not accuse a model. */
	digest: z.string(),
	files: z.record(z.string(), recordSchema),
})

type CacheRecord = z.infer<typeof recordSchema>

/** The digest of a file, and when its bytes were read. */
export type Remembered = { sha256: string; hashedAt: string }

export type DigestCache = {
	/** What is known of a file that is still the very same in all five; undefined when anything differs. */
	find(path: string, identity: FileIdentity): Remembered | undefined
	/**
	 * Remembers a digest, unless the file was changed so shortly before that another change could have left the same
	 * times. Is on the disk after a few seconds, or with `save`.
	 * @param startedAt when reading its bytes began
	 */
	note(path: string, identity: FileIdentity, found: { sha256: string; startedAt: Date }): Promise<void>
	/** Writes what is new, and forgets the files that are not among these. */
	save(present?: ReadonlySet<string>): Promise<void>
	/** Why what lay there was not used, or why nothing can be kept; undefined when all is well. */
	trouble(): string | undefined
}

/** File systems count times in steps; on a share another machine's clock sets them. */
const settledAfterMs = 2000
const saveEveryMs = 5000
const largestFileBytes = 64 * 1024 * 1024

/** The cache's file for a directory of models. Another directory has another one. */
export const digestCacheFile = (cacheDirectory: string, modelsDirectory: string): string =>
	join(
		cacheDirectory,
		`models-${createHash("sha256").update(modelsDirectory).digest("hex").slice(0, 12)}.json`,
	)

/**
 * Opens the cache. A file that is damaged, or that others can write, is passed over and said; never throws.
 * @param file from `digestCacheFile`; its directory is made when something is kept
 */
export async function openDigestCache(file: string, now: () => Date): Promise<DigestCache> {
	const opened = await readRecords(file)
	let { trouble } = opened
	const records = new Map(Object.entries(opened.records))
	const fresh = new Map<string, CacheRecord>()
	let savedAtMs = now().getTime()
	let saving: Promise<void> = Promise.resolve()

	const write = async (present?: ReadonlySet<string>) => {
		if (fresh.size === 0 && [...records.keys()].every((path) => present?.has(path) !== false)) return
		try {
			// Another run may have noted something meanwhile.
			const merged = new Map(Object.entries((await readRecords(file)).records))
			for (const [path, record] of fresh) merged.set(path, record)
			for (const path of merged.keys()) if (present?.has(path) === false) merged.delete(path)
			await writeWhole(file, Object.fromEntries(merged))
			fresh.clear()
		} catch (error) {
			trouble = `digests can't be kept in ${file}: ${messageOf(error)}`
		}
	}
	const save = (present?: ReadonlySet<string>) => {
		savedAtMs = now().getTime()
		saving = saving.then(() => write(present))
		return saving
	}

	return {
		find: (path, identity) => {
			const record = records.get(path)
			if (record === undefined || !isSame(record, identity)) return undefined
			return { sha256: record.sha256, hashedAt: record.hashedAt }
		},
		note: async (path, identity, { sha256, startedAt }) => {
			const changedMs = Math.max(...[identity.modifiedNs, identity.changedNs].map((ns) => Number(ns) / 1e6))
			if (startedAt.getTime() - changedMs < settledAfterMs) return
			const record = { ...identity, sha256, hashedAt: startedAt.toISOString() }
			records.set(path, record)
			fresh.set(path, record)
			if (now().getTime() - savedAtMs >= saveEveryMs) await save()
		},
		save,
		trouble: () => trouble,
	}
}

/** Whether nothing of it changed. */
export const isSame = (one: FileIdentity, other: FileIdentity): boolean =>
	one.device === other.device &&
	one.inode === other.inode &&
	one.sizeBytes === other.sizeBytes &&
	one.modifiedNs === other.modifiedNs &&
	one.changedNs === other.changedNs

const digestOfRecords = (files: unknown) => createHash("sha256").update(JSON.stringify(files)).digest("hex")

async function readRecords(
	file: string,
): Promise<{ records: Record<string, CacheRecord>; trouble?: string }> {
	try {
		await using handle = await open(file, "r")
		const { uid, mode, size } = await handle.stat()
		// Whoever can write it can say of a damaged model that it is right.
		if (uid !== userInfo().uid || (mode & 0o022) !== 0)
			return { records: {}, trouble: `${file} is passed over: others can write it` }
		if (size > largestFileBytes) return { records: {}, trouble: `${file} is passed over: it is too large` }
		const written: unknown = JSON.parse(await handle.readFile("utf8"))
		const { files, digest } = fileSchema.parse(written)
		if (digestOfRecords((written as { files: unknown }).files) !== digest)
			throw new Error("its own digest does not fit")
		return { records: files }
	} catch (error) {
		if (codeOf(error) === "ENOENT") return { records: {} }
		const why = codeOf(error) === undefined ? "it is damaged" : messageOf(error)
		return { records: {}, trouble: `${file} is passed over: ${why}` }
	}
}

async function writeWhole(file: string, files: Record<string, CacheRecord>): Promise<void> {
	await mkdir(dirname(file), { recursive: true, mode: 0o700 })
	const partial = `${file}.${randomUUID().slice(0, 8)}.partial`
	try {
		const handle = await open(partial, "wx", 0o600)
		try {
			await handle.writeFile(JSON.stringify({ version: 1, digest: digestOfRecords(files), files }))
			await handle.sync()
		} finally {
			await handle.close()
		}
		await rename(partial, file)
	} catch (error) {
		await rm(partial, { force: true })
		throw error
	}
}
