// The files that are measured with: random bytes in a directory of their own, kept from one measurement to the next.
import { createHash } from "node:crypto"
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs"
import { open } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { openHashPool } from "../../src/lib/storage/hash-pool.ts"

export const scratch = process.env.COMFYUME_BENCH_DIRECTORY ?? join(tmpdir(), "comfyume-bench")
export const gibibyte = 2 ** 30

/** A file of random bytes; made when it isn't there. */
export async function randomFile(name: string, sizeBytes = gibibyte): Promise<string> {
	mkdirSync(scratch, { recursive: true })
	const path = join(scratch, name)
	if (existsSync(path) && statSync(path).size === sizeBytes) return path
	const { randomFillSync } = await import("node:crypto")
	const chunk = Buffer.alloc(16 * 1024 * 1024)
	const file = await open(path, "w")
	for (let done = 0; done < sizeBytes; done += chunk.length)
		await file.write(randomFillSync(chunk), 0, Math.min(chunk.length, sizeBytes - done))
	await file.close()
	return path
}

export type Digests = { digest: string; blocks: string[]; md5: string }

/** What a manifest would say of it, and the MD5 that rclone wants. */
export async function digestsOf(path: string): Promise<Digests> {
	const noted = `${path}.json`
	if (existsSync(noted) && statSync(noted).mtimeMs > statSync(path).mtimeMs)
		return JSON.parse(readFileSync(noted, "utf8")) as Digests
	await using pool = openHashPool(1)
	const { digest, blocks = [] } = await pool.hashFile(path, { blocks: true })
	const md5 = createHash("md5")
	for await (const chunk of (await open(path)).createReadStream({ highWaterMark: 2 ** 20 })) md5.update(chunk)
	const digests = { digest, blocks: [...blocks], md5: md5.digest("base64") }
	writeFileSync(noted, JSON.stringify(digests))
	return digests
}
