// A transfer or an upload in a process of its own, to be killed or given certificates. Its one argument is a job as
// JSON; what came of it is one line of JSON.
import { Secret } from "../../src/lib/secret.ts"
import { s3Store } from "../../src/lib/storage/s3.ts"
import { type TransferOptions, transfer } from "../../src/lib/storage/transfer.ts"

export type TransferJob = {
	endpoint: string
	key: string
	/** S3 limits, as in `s3Store`. */
	store?: { singlePutBytes?: number; partBytes?: number; attempts?: number }
} & (
	| {
			download: Pick<
				TransferOptions,
				"partialFile" | "expected" | "limitBytesPerSecond" | "blockSizeBytes" | "lanes"
			>
	  }
	| {
			upload: {
				file: string
				sizeBytes: number
				digest: string
				resumeFile?: string
				limitBytesPerSecond?: number
			}
	  }
)

/** What the server of such a test must know. */
export const childKeys = { accessKeyId: "transfer-key", secretAccessKey: "transfer-secret" }

if (import.meta.main) {
	const job = JSON.parse(process.argv[2] ?? "{}") as TransferJob
	await using store = s3Store({
		name: "r2",
		endpoint: job.endpoint,
		bucket: "vault",
		accessKeyId: new Secret(childKeys.accessKeyId),
		secretAccessKey: new Secret(childKeys.secretAccessKey),
		...job.store,
	})
	if ("download" in job) {
		const head = await store.head(job.key)
		if (head === undefined) throw new Error(`no ${job.key}`)
		console.log(JSON.stringify(await transfer(store.byteSource(head), job.download)))
	} else {
		const { file, ...facts } = job.upload
		console.log(JSON.stringify({ put: await store.put(job.key, file, { ...facts, ifAbsent: true }) }))
	}
	const { maxRSS } = process.resourceUsage()
	console.error(`peak ${Math.round(maxRSS / 1024)} MiB`)
}
