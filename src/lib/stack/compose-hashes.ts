// What compose makes of the same files is the same, and takes it a quarter of a second of a processor each time: it is kept
// with a digest of what it was made of.
import { createHash } from "node:crypto"
import { dirname } from "node:path"
import { z } from "zod"
import type { Host } from "../host/host.ts"
import { isLocal } from "../host/local.ts"

/** Service -> compose's hashes of it. */
export type ComposeHashes = ReadonlyMap<string, readonly string[]>

const file = "/var/lib/comfyume/digests/compose-hashes.json"
const keptSchema = z.object({ of: z.string(), hashes: z.record(z.string(), z.array(z.string())) })

/**
 * The hashes as an earlier run has got them from compose for the same inputs, else as `ask` gets them now. Of a host
 * elsewhere, and of a directory that stands in for one, nothing is kept.
 * @param inputs everything that the hashes depend on; only its digest is kept
 */
export async function rememberedHashes(
	host: Host,
	inputs: () => Promise<readonly string[]>,
	ask: () => Promise<ComposeHashes>,
): Promise<ComposeHashes> {
	if (!isLocal(host) || host.standIn) return ask()
	const of = createHash("sha256")
		.update(JSON.stringify(await inputs()))
		.digest("hex")
	const kept = readKept((await host.read(file).catch(() => undefined))?.toString())
	if (kept?.of === of) return new Map(Object.entries(kept.hashes))
	const hashes = await ask()
	try {
		await host.files.makeDirectory(dirname(file), 0o700)
		const text = JSON.stringify({ of, hashes: Object.fromEntries(hashes) })
		await host.write(file, `${text}\n`, { mode: 0o600 })
	} catch {
		// A run that only looks keeps nothing, and neither does a full disk: the next one asks compose again.
	}
	return hashes
}

function readKept(text: string | undefined): z.infer<typeof keptSchema> | undefined {
	try {
		return keptSchema.parse(JSON.parse(text ?? ""))
	} catch {
		return undefined
	}
}
