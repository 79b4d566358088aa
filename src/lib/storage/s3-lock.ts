// The object lock of a bucket of S3 itself, and services like it. R2 doesn't know this request: bucket-lock.ts.
import type { LockRule } from "./bucket-lock.ts"
import { type Attended, attended } from "./s3-attended.ts"
import { connect } from "./s3-connection.ts"
import { s3Error, statusOf } from "./s3-errors.ts"

const daySeconds = 24 * 60 * 60

/**
 * The rule by which everything that is stored is locked.
 * @returns none where the bucket has no such rule; undefined where the service doesn't know the request
 * @throws {OperatorError} when the service refuses or can't be reached
 */
export async function readObjectLock(bucket: Attended): Promise<LockRule[] | undefined> {
	const { sdk, client } = await connect(attended(bucket))
	try {
		const command = new sdk.GetObjectLockConfigurationCommand({ Bucket: bucket.bucket })
		const { ObjectLockConfiguration: found } = await client.send(command, { abortSignal: bucket.signal })
		const { Mode: mode, Days: days, Years: years } = found?.Rule?.DefaultRetention ?? {}
		if (found?.ObjectLockEnabled !== "Enabled" || mode === undefined) return []
		const seconds = ((days ?? 0) + (years ?? 0) * 365) * daySeconds
		return [{ name: mode, prefix: "", enabled: true, lasts: { kind: "seconds", seconds } }]
	} catch (error) {
		if (error instanceof Error && error.name === "ObjectLockConfigurationNotFoundError") return []
		if (statusOf(error) === 501) return undefined
		throw s3Error(error, "asking for the object lock", bucket, bucket.signal)
	} finally {
		client.destroy()
	}
}
