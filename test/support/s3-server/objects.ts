// What the server keeps: in memory, or as pairs of files in a directory.
import { createHash, randomUUID } from "node:crypto"
import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises"
import { join } from "node:path"

export type StoredObject = {
	key: string
	sizeBytes: number
	etag: string
	storedAt: Date
	metadata: Readonly<Record<string, string>>
	contentType: string
	/** CRC-64/NVME of the whole object in base64, when the client sent one. */
	crc64?: string
}

export type StoredObjects = {
	hasBucket(bucket: string): boolean
	/** Keys in byte order. */
	keys(bucket: string): string[]
	find(bucket: string, key: string): StoredObject | undefined
	read(bucket: string, key: string): Promise<Buffer>
	/** Puts an object, replacing what is there. */
	write(bucket: string, object: Omit<StoredObject, "sizeBytes">, content: Buffer): Promise<void>
	/** Changes the bytes and nothing else, as a sick disk does. */
	corrupt(bucket: string, key: string, change: (content: Buffer) => Buffer): Promise<void>
	/** Takes an object away behind the server's back. */
	lose(bucket: string, key: string): Promise<void>
}

/** Opens the buckets; with a directory, what an earlier server kept there is there again. */
export async function openObjects(buckets: readonly string[], directory?: string): Promise<StoredObjects> {
	const heads = new Map(buckets.map((bucket) => [bucket, new Map<string, StoredObject>()]))
	const memory = new Map<string, Buffer>()
	const headsOf = (bucket: string) => heads.get(bucket) ?? new Map<string, StoredObject>()
	// Keys can be longer than file names, and may hold anything.
	const fileOf = (bucket: string, key: string) =>
		join(directory ?? "", bucket, createHash("sha256").update(key).digest("hex"))

	if (directory !== undefined) {
		for (const bucket of buckets) {
			await mkdir(join(directory, bucket), { recursive: true })
			for (const file of await readdir(join(directory, bucket))) {
				if (!file.endsWith(".json")) continue
				const head = JSON.parse(await readFile(join(directory, bucket, file), "utf8")) as StoredObject
				headsOf(bucket).set(head.key, { ...head, storedAt: new Date(head.storedAt) })
			}
		}
	}
	const keep = async (bucket: string, key: string, content: Buffer) => {
		if (directory === undefined) {
			memory.set(`${bucket}/${key}`, content)
			return
		}
		const partial = `${fileOf(bucket, key)}.${randomUUID()}`
		await writeFile(partial, content)
		await rename(partial, `${fileOf(bucket, key)}.data`)
	}
	const read = async (bucket: string, key: string) =>
		directory === undefined
			? (memory.get(`${bucket}/${key}`) ?? Buffer.alloc(0))
			: await readFile(`${fileOf(bucket, key)}.data`)

	return {
		hasBucket: (bucket) => heads.has(bucket),
		keys: (bucket) =>
			[...headsOf(bucket).keys()].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))),
		find: (bucket, key) => headsOf(bucket).get(key),
		read,
		write: async (bucket, object, content) => {
			const head = { ...object, sizeBytes: content.length }
			// Known at once, so that of two who put at the same time the second one finds it.
			headsOf(bucket).set(object.key, head)
			await keep(bucket, object.key, content)
			if (directory !== undefined) await writeFile(`${fileOf(bucket, object.key)}.json`, JSON.stringify(head))
		},
		corrupt: async (bucket, key, change) => {
			await keep(bucket, key, change(await read(bucket, key)))
		},
		lose: async (bucket, key) => {
			headsOf(bucket).delete(key)
			memory.delete(`${bucket}/${key}`)
			if (directory === undefined) return
			await rm(`${fileOf(bucket, key)}.json`, { force: true })
			await rm(`${fileOf(bucket, key)}.data`, { force: true })
		},
	}
}
