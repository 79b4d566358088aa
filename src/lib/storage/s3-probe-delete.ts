// Whether a bucket keeps what it is given: an object is put there, and then its deletion is attempted. The only request
// to delete an object in the whole program. Nobody can say which object: its key is made here, below `records/probes/`,
// and nothing is deleted that this very call hasn't stored a moment ago.
import { createHash } from "node:crypto"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { exitCodes, OperatorError } from "../errors.ts"
import { s3Store } from "./s3.ts"
import { type Attended, attended, attendedLimits } from "./s3-attended.ts"
import { connect } from "./s3-connection.ts"
import { s3Error, statusOf } from "./s3-errors.ts"

export type ProbeOutcome = {
	/** Of the probe. It stays where it can't be deleted. */
	key: string
	/**
	 * `locked`: the bucket's lock refused. `denied`: these credentials may not delete, and what the bucket would do isn't
	 * known. `hidden`: it is gone from sight, and a version of it is kept. `deleted`: it is gone.
	 */
	outcome: "locked" | "denied" | "hidden" | "deleted"
}

/** What the probe's name is made of. */
export type ProbeOrigin = { environment: string; host: string; at: Date; randomId: string; comfyume: string }

const keyPattern = /^\w[\w.-]*\/records\/probes\/\w[\w.-]*\/\d{8}T\d{6}Z-[0-9a-f]+\.json$/

/**
 * Stores a probe and tries to delete exactly that one.
 * @throws {OperatorError} when it can't be stored, or the answer to the deletion says nothing about the lock
 */
export async function probeDelete(bucket: Attended, origin: ProbeOrigin): Promise<ProbeOutcome> {
	const { environment, host, at, randomId } = origin
	const time = at.toISOString().replace(/\.\d+/, "").replaceAll(/[-:]/g, "")
	const key = `${environment}/records/probes/${host}/${time}-${randomId}.json`
	if (!keyPattern.test(key)) throw new Error(`${key} is no probe's key`)
	await using store = s3Store({ ...bucket, ...attendedLimits })
	if ((await putProbe(store, key, origin)) !== "stored")
		throw new OperatorError(`${key} stands in ${bucket.bucket} already, and is not ours to delete`, {
			exitCode: exitCodes.refusedByGuard,
			hint: "date -u   # then try again",
		})
	const outcome = await tryToDelete(bucket, key)
	const stands = (await store.head(key)) !== undefined
	// What was said is no evidence: whether the object still is there is.
	if (outcome === "deleted" && stands) return { key, outcome: "hidden" }
	if ((outcome === "locked" || outcome === "denied") && !stands) return { key, outcome: "deleted" }
	return { key, outcome }
}

async function putProbe(store: ReturnType<typeof s3Store>, key: string, origin: ProbeOrigin) {
	const { environment, host, at, comfyume } = origin
	const text = `${JSON.stringify({ version: 1, kind: "probe", comfyume, environment, host, at: at.toISOString() })}\n`
	const directory = await mkdtemp(join(tmpdir(), "comfyume-probe-"))
	try {
		const file = join(directory, "probe.json")
		await writeFile(file, text, { mode: 0o600 })
		const sizeBytes = Buffer.byteLength(text)
		const digest = createHash("sha256").update(text).digest("hex")
		return await store.put(key, file, { sizeBytes, digest, ifAbsent: true })
	} finally {
		await rm(directory, { recursive: true, force: true })
	}
}

async function tryToDelete(bucket: Attended, key: string): Promise<ProbeOutcome["outcome"]> {
	const { sdk, client } = await connect(attended(bucket))
	try {
		const command = new sdk.DeleteObjectCommand({ Bucket: bucket.bucket, Key: key })
		const { DeleteMarker: marker } = await client.send(command, { abortSignal: bucket.signal })
		return marker === true ? "hidden" : "deleted"
	} catch (error) {
		// R2's own code for it; S3 says AccessDenied whether the lock refuses or the policy.
		if (error instanceof Error && error.name === "ObjectLockedByBucketPolicy") return "locked"
		if (statusOf(error) === 403) return "denied"
		throw s3Error(error, `trying to delete ${key}`, bucket, bucket.signal)
	} finally {
		client.destroy()
	}
}
