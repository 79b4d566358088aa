// One part of an upload, in a worker: measured, and then sent as the signed request wants it.
import { createHash } from "node:crypto"
import { constants } from "node:fs"
import { exchangeOn, fileFor, keepPace } from "./block-job.ts"
import { countBytes } from "./control.ts"
import { crc64nvme } from "./crc64nvme.ts"
import { readAhead } from "./hash-job.ts"
import type { Jobs } from "./worker-pool.ts"

/** sha256 in hex and CRC-64/NVME in base64, in one pass. */
export async function measurePart({
	path,
	first,
	last,
	control,
}: Jobs["measure"]["input"]): Promise<Jobs["measure"]["output"]> {
	const digest = createHash("sha256")
	const crc64 = crc64nvme()
	let done = 0
	for await (const chunk of readAhead(fileFor(path, constants.O_RDONLY), first, last + 1, control)) {
		digest.update(chunk)
		crc64.update(chunk)
		done += chunk.length
	}
	if (done !== last - first + 1) throw new Error("the file became shorter while it was read")
	return { digest: digest.digest("hex"), crc64: crc64.base64() }
}

/** Read once more, from the system's cache: parts are too large to be kept. */
export async function sendPart(input: Jobs["send"]["input"]): Promise<Jobs["send"]["output"]> {
	const { lane, path, first, last, request, limits, control } = input
	let counted = 0
	async function* chunks() {
		// An exchange that is made twice counts once.
		countBytes(control, -counted)
		counted = 0
		for await (const chunk of readAhead(fileFor(path, constants.O_RDONLY), first, last + 1, control)) {
			yield chunk
			counted += chunk.length
			countBytes(control, chunk.length)
			await keepPace(control, chunk.length, input.limitBytesPerSecond)
		}
	}
	try {
		const { headers } = await exchangeOn(lane, () => ({
			...request,
			...limits,
			method: "PUT",
			body: { sizeBytes: last - first + 1, chunks: chunks() },
			onHead: (head) => Number(head.headers.get("content-length") ?? 0),
			onChunk: async () => {},
		}))
		const etag = headers.get("etag")
		return etag === undefined ? {} : { etag }
	} catch (error) {
		countBytes(control, -counted)
		throw error
	}
}
