// What is noted of an upload in parts that isn't finished, so that a later run goes on with it. An upload's id is known
// to nobody but the service and whoever began it, and the service doesn't tell what an upload was begun for.
import { appendFile, readFile, rm, writeFile } from "node:fs/promises"
import { codeOf } from "../errors.ts"

/** An upload that is the same in all of this can be gone on with. */
export type UploadFacts = {
	endpoint: string
	bucket: string
	key: string
	sizeBytes: number
	partBytes: number
	digest: string
}

export type UploadState = UploadFacts & {
	uploadId: string
	/** What marks the object as made by this upload. */
	putId: string
	parts: ReadonlyMap<number, SentPart>
}

export type SentPart = { etag: string; crc64: string }

const lineOf = (value: object) => `${JSON.stringify(value)}\n`

/** Undefined where nothing useful was noted. */
export async function readUploadState(file: string): Promise<UploadState | undefined> {
	const text = await readFile(file, "utf8").catch((error: unknown) => {
		if (codeOf(error) === "ENOENT") return ""
		throw error
	})
	// The last line may be half a one: a kill came between.
	const [head, ...lines] = text.split("\n").map(parsed)
	if (head === undefined) return undefined
	const known = ["endpoint", "bucket", "key", "digest", "uploadId", "putId"] as const
	if (known.some((name) => typeof head[name] !== "string")) return undefined
	const parts = new Map<number, SentPart>()
	for (const line of lines) {
		const { part, etag, crc64 } = line ?? {}
		if (typeof part === "number" && typeof etag === "string" && typeof crc64 === "string")
			parts.set(part, { etag, crc64 })
	}
	return { ...(head as unknown as Omit<UploadState, "parts">), parts }
}

function parsed(line: string): Record<string, unknown> | undefined {
	try {
		const value: unknown = JSON.parse(line)
		return typeof value === "object" && value !== null ? { ...value } : undefined
	} catch {
		return undefined
	}
}

/** Whether the upload that is noted is one of the same bytes to the same place. */
export function isSameUpload(state: UploadFacts, facts: UploadFacts): boolean {
	const names = ["endpoint", "bucket", "key", "sizeBytes", "partBytes", "digest"] as const
	return names.every((name) => state[name] === facts[name])
}

export async function beginUploadState(file: string, { parts: _, ...state }: UploadState): Promise<void> {
	await writeFile(file, lineOf(state), { mode: 0o600 })
}

export async function noteSentPart(file: string, part: number, sent: SentPart): Promise<void> {
	await appendFile(file, lineOf({ part, ...sent }))
}

export async function removeUploadState(file: string): Promise<void> {
	await rm(file, { force: true })
}
