// Models in all their places: a share and a bucket filled alike, and the manifest of what lies there.
import { createHash } from "node:crypto"
import { mkdirSync, rmSync, writeFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { stringify } from "yaml"
import { type S3Server, startS3Server } from "./s3-server/index.ts"

export const modelsBucket = "model-vault"

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex")

export type ModelPlaces = Awaited<ReturnType<typeof openModelPlaces>>

/**
 * A bucket for models on a server of its own, and the share's directory of models.
 * @param share the share's root
 */
export async function openModelPlaces(
	share: string,
	credential: { accessKeyId: string; secretAccessKey: string },
	address?: string,
) {
	const s3: S3Server = await startS3Server({
		buckets: [modelsBucket],
		credentials: [credential],
		...(address === undefined ? {} : { address }),
	})
	const directory = join(share, "models/shared")
	const onShare = (path: string, bytes: Buffer) => {
		mkdirSync(dirname(join(directory, path)), { recursive: true })
		writeFileSync(join(directory, path), bytes)
	}
	/** @param claimed the digest that is noted with it; none with undefined */
	const inBucket = (path: string, bytes: Buffer, claimed: string | undefined = sha256(bytes)) =>
		s3.objects.write(
			modelsBucket,
			{
				key: path,
				etag: `"${sha256(bytes).slice(0, 32)}"`,
				storedAt: new Date("2026-01-01T00:00:00Z"),
				metadata: claimed === "" ? {} : { sha256: claimed },
				contentType: "application/octet-stream",
			},
			bytes,
		)
	return {
		s3,
		directory,
		onShare,
		inBucket,
		everywhere: async (path: string, bytes: Buffer) => {
			onShare(path, bytes)
			await inBucket(path, bytes)
		},
		/** The manifest of these models, as text. `known` leaves figures out. */
		manifestOf: (models: Readonly<Record<string, Buffer>>, known: "all" | "paths" = "all") =>
			stringify({
				version: 1,
				models: Object.entries(models).map(([path, bytes]) => ({
					path,
					...(known === "all" && {
						sizeBytes: bytes.length,
						sha256: sha256(bytes),
						figures: { from: "measured for the test", verified: true },
					}),
				})),
			}),
		/** Takes all models away, from both places. */
		clear: async () => {
			rmSync(directory, { recursive: true, force: true })
			mkdirSync(directory, { recursive: true })
			for (const key of s3.objects.keys(modelsBucket)) await s3.objects.lose(modelsBucket, key)
		},
		/** The bucket as a line of comfyume.yaml. */
		bucketLine: () => `models: { bucket: ${modelsBucket}, endpoint: "${s3.endpoint}" }`,
	}
}
