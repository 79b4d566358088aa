// The environment's buckets, opened one by one to be looked at: what backups and restores do with them is none of this.
import type { BucketConfiguration, Environment } from "../config/environment.ts"
import type { Secrets } from "../config/secrets.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import type { Secret } from "../secret.ts"
import { type LockRule, readLockRules } from "../storage/bucket-lock.ts"
import type { ObjectStore } from "../storage/object-store.ts"
import { readOnlyStore } from "../storage/read-only.ts"
import type { ProbeOrigin, ProbeOutcome } from "../storage/s3-probe-delete.ts"

export type OpenedBucket = {
	/** What it is for, by the name in the configuration: `cache`, `models`, … */
	role: string
	configuration: BucketConfiguration
	provider: "r2" | "s3"
	/** @throws {OperatorError} (2) without credentials */
	store(): Promise<ObjectStore>
	/** Undefined where nobody can tell: no token, or a service that doesn't know of locks. */
	lockRules(): Promise<readonly LockRule[] | undefined>
	/** Stores a probe and tries to delete it. Only for who was asked to by name. */
	probeDelete(origin: ProbeOrigin): Promise<ProbeOutcome>
	[Symbol.asyncDispose](): Promise<void>
}

/** Whom R2's locks are asked of. Without a token nobody can be. */
export type Cloudflare = { api: string; token: Secret | undefined }

/** Opens nothing before it is asked for; a bucket without credentials fails by itself. */
export function openBuckets(
	{ objectStore }: Environment,
	secrets: Secrets,
	{ cloudflare, signal }: { cloudflare: Cloudflare; signal: AbortSignal },
): OpenedBucket[] {
	if (objectStore === undefined) return []
	const { buckets, region, provider } = objectStore
	return Object.entries(buckets).flatMap(([role, configuration]) => {
		if (configuration === undefined) return []
		const { bucket, endpoint, jurisdiction } = configuration
		const attended = () => ({
			...{ name: role, endpoint, bucket, region, signal },
			accessKeyId: secrets.need("R2_ACCESS_KEY_ID", `the bucket ${bucket}`),
			secretAccessKey: secrets.need("R2_SECRET_ACCESS_KEY", `the bucket ${bucket}`),
		})
		let store: ObjectStore | undefined
		return [
			{
				role,
				configuration,
				provider,
				store: async () => {
					const given = attended()
					const [{ s3Store }, { attendedLimits }] = await Promise.all([
						import("../storage/s3.ts"),
						import("../storage/s3-attended.ts"),
					])
					store ??= readOnlyStore(s3Store({ ...given, ...attendedLimits }))
					return store
				},
				lockRules: async () => {
					if (provider === "s3") return (await import("../storage/s3-lock.ts")).readObjectLock(attended())
					if (cloudflare.token === undefined) return undefined
					const accountId = /[0-9a-f]{32}/.exec(endpoint)?.[0]
					if (accountId === undefined)
						throw new OperatorError(`the endpoint ${endpoint} names no account`, {
							exitCode: exitCodes.usage,
							hint: "comfyume config check",
						})
					const { api, token } = cloudflare
					return readLockRules({ api, token, accountId, bucket, jurisdiction, signal })
				},
				probeDelete: async (origin) =>
					(await import("../storage/s3-probe-delete.ts")).probeDelete(attended(), origin),
				async [Symbol.asyncDispose]() {
					await store?.[Symbol.asyncDispose]()
				},
			},
		]
	})
}
