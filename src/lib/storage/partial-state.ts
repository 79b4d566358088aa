// What is noted beside a file that is being filled: which blocks are in it, so that they are looked for there after an
// interruption. A hint, never a proof: a block counts when the bytes on the disk have the digest.
import { appendFile, readFile, rm, writeFile } from "node:fs/promises"
import { codeOf } from "../errors.ts"

type Content = { etag?: string; sizeBytes: number; blockBytes: number }

export type PartialState = Content & {
	/** sha256 of each block as it was when it came. */
	blocks: ReadonlyMap<number, string>
}

/** Lines of JSON: what it is of, then one for each block. Appended, so that a kill costs no more than the last line. */
const stateFile = (partialFile: string) => `${partialFile}.json`

/** Undefined where nothing useful was noted. */
export async function readPartialState(partialFile: string): Promise<PartialState | undefined> {
	const text = await readFile(stateFile(partialFile), "utf8").catch((error: unknown) => {
		if (codeOf(error) === "ENOENT") return ""
		throw error
	})
	const [head, ...lines] = text.split("\n").map(parsed)
	if (typeof head?.sizeBytes !== "number" || typeof head.blockBytes !== "number") return undefined
	const blocks = new Map<number, string>()
	for (const line of lines)
		if (typeof line?.block === "number" && typeof line.sha256 === "string")
			blocks.set(line.block, line.sha256)
	const { sizeBytes, blockBytes, etag } = head
	return { sizeBytes, blockBytes, blocks, ...(typeof etag === "string" && { etag }) }
}

type Line = { etag?: unknown; sizeBytes?: unknown; blockBytes?: unknown; block?: unknown; sha256?: unknown }

function parsed(line: string): Line | undefined {
	try {
		const value: unknown = JSON.parse(line)
		return typeof value === "object" && value !== null ? value : undefined
	} catch {
		return undefined
	}
}

/** Begins anew. */
export async function beginPartialState(partialFile: string, content: Content): Promise<void> {
	await writeFile(stateFile(partialFile), `${JSON.stringify(content)}\n`, { mode: 0o644 })
}

/** Notes a block that has been written. Call it one at a time. */
export async function noteBlock(partialFile: string, block: number, sha256: string): Promise<void> {
	await appendFile(stateFile(partialFile), `${JSON.stringify({ block, sha256 })}\n`)
}

export async function removePartialState(partialFile: string): Promise<void> {
	await rm(stateFile(partialFile), { force: true })
}

/** Removes what an interrupted transfer left, when nobody will go on with it. */
export async function removePartial(partialFile: string): Promise<void> {
	await rm(partialFile, { force: true })
	await removePartialState(partialFile)
}
