// comfyume and its peers, each fetching or sending one object of 1 GiB.
import { execFile } from "node:child_process"
import { rmSync } from "node:fs"
import { rename } from "node:fs/promises"
import { join } from "node:path"
import { promisify } from "node:util"
import { Secret } from "../../src/lib/secret.ts"
import { s3Store } from "../../src/lib/storage/s3.ts"
import { transfer } from "../../src/lib/storage/transfer.ts"
import { gibibyte, scratch } from "./files.ts"
import type { Subject } from "./measure.ts"
import { httpPort, sinkPort, tlsPort } from "./servers.ts"

const run = promisify(execFile)
export const target = join(scratch, "fetched")
const clear = () => {
	for (const file of [target, `${target}.partial`, `${target}.partial.json`]) rmSync(file, { force: true })
}

const keys = { accessKeyId: new Secret("bench-key"), secretAccessKey: new Secret("bench-secret") }
export const storeAt = (endpoint: string) => s3Store({ name: "bench", endpoint, bucket: "vault", ...keys })
export const plain = `http://127.0.0.1:${httpPort}`
export const secure = `https://localhost:${tlsPort}`

/** Verified by its blocks, synced, renamed. */
export function comfyumeGet(endpoint: string, blocks: readonly string[]): Subject {
	return {
		before: clear,
		run: async () => {
			await using store = storeAt(endpoint)
			const head = await store.head("model")
			if (head === undefined) throw new Error("no model")
			await transfer(store.byteSource(head), { partialFile: `${target}.partial`, expected: { blocks } })
			await rename(`${target}.partial`, target)
		},
	}
}

const rcloneRemote = (endpoint: string) =>
	`:s3,provider=Other,endpoint='${endpoint}',access_key_id=bench-key,secret_access_key=bench-secret,force_path_style=true:vault/model`
const rcloneEnvironment = { ...process.env, RCLONE_CONFIG: "/dev/null" }

export const rcloneGet = (endpoint: string, ...more: string[]): Subject => ({
	before: clear,
	run: () =>
		run("rclone", ["copyto", rcloneRemote(endpoint), target, "--s3-no-check-bucket", ...more], {
			env: rcloneEnvironment,
		}),
})

const awsEnvironment = {
	...process.env,
	AWS_ACCESS_KEY_ID: "bench-key",
	AWS_SECRET_ACCESS_KEY: "bench-secret",
	AWS_DEFAULT_REGION: "auto",
	AWS_EC2_METADATA_DISABLED: "true",
}
const aws = (endpoint: string, from: string, to: string) =>
	run("aws", ["s3", "cp", "--only-show-errors", "--endpoint-url", endpoint, from, to], {
		env: awsEnvironment,
	})

export const awsGet: Subject = { before: clear, run: () => aws(plain, "s3://vault/model", target) }

export const curlGet: Subject = {
	before: clear,
	run: () => run("curl", ["--silent", "--fail", "--output", target, `${plain}/vault/model`]),
}

const sink = `http://127.0.0.1:${sinkPort}`
const forget = () => fetch(`${sink}/vault/model`, { method: "DELETE" })

export const comfyumePut = (file: string, digest: string): Subject => ({
	before: forget,
	run: async () => {
		await using store = storeAt(sink)
		await store.put("model", file, { sizeBytes: gibibyte, digest, ifAbsent: true })
	},
})

export const rclonePut = (file: string): Subject => ({
	before: forget,
	run: () =>
		run(
			"rclone",
			["copyto", file, rcloneRemote(sink), "--s3-no-check-bucket", "--s3-use-multipart-etag=false"],
			{
				env: rcloneEnvironment,
			},
		),
})

export const awsPut = (file: string): Subject => ({
	before: forget,
	run: () => aws(sink, file, "s3://vault/model"),
})
