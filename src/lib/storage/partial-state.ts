// What is noted beside a file that is being filled: which blocks are in it, so that they are looked for there after an
// interruption. A hint, never a proof: a block counts when the bytes on the disk have the digest.
import { constants, type FileHandle, open, rm } from "node:fs/promises"
import { codeOf, OperatorError } from "../errors.ts"

type Content = { etag?: string; sizeBytes: number; blockBytes: number }

export type PartialState = Content & {
	/** sha256 of each block as it was when it came. */
	blocks: ReadonlyMap<number, string>
}

/** Lines of JSON: what it is of, then one for each block. Appended, so that a kill costs no more than the last line. */
const stateFile = (partialFile: string) => `${partialFile}.json`

/** Undefined where nothing useful was noted. */
export async function readPartialState(partialFile: string): Promise<PartialState | undefined> {
	const text = await readState(stateFile(partialFile))
	const [head, ...lines] = text.split("\n").map(parsed)
	if (typeof head?.sizeBytes !== "number" || typeof head.blockBytes !== "number") return undefined
	const blocks = new Map<number, string>()
	for (const line of lines)
		if (typeof line?.block === "number" && typeof line.sha256 === "string")
			blocks.set(line.block, line.sha256)
	const { sizeBytes, blockBytes, etag } = head
	return { sizeBytes, blockBytes, blocks, ...(typeof etag === "string" && { etag }) }
}

async function readState(path: string): Promise<string> {
	try {
		await using file = await openPlain(path, constants.O_RDONLY)
		return await file.readFile("utf8")
	} catch (error) {
		// What a link leads to was noted by nobody; beginning anew replaces the link.
		if (["ENOENT", "ELOOP"].includes(codeOf(error) ?? "")) return ""
		throw error
	}
}

/** Users can write beside models, and we are root: no link is followed, and nothing but a plain file is written to. */
async function openPlain(path: string, flags: number): Promise<FileHandle> {
	const file = await open(path, flags | constants.O_NOFOLLOW | constants.O_NONBLOCK, 0o644)
	try {
		if ((await file.stat()).isFile()) return file
		throw new OperatorError(`${path} is no plain file`, { hint: `ls -ld ${path}` })
	} catch (error) {
		await file.close()
		throw error
	}
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
	// Not written over: a second name of somebody's file may stand there.
	await removePartialState(partialFile)
	const { O_WRONLY, O_CREAT, O_EXCL } = constants
	await using file = await openPlain(stateFile(partialFile), O_WRONLY | O_CREAT | O_EXCL)
	await file.writeFile(`${JSON.stringify(content)}\n`)
}

/** Notes a block that has been written. Call it one at a time. */
export async function noteBlock(partialFile: string, block: number, sha256: string): Promise<void> {
	await using file = await openPlain(stateFile(partialFile), constants.O_WRONLY | constants.O_APPEND)
	await file.appendFile(`${JSON.stringify({ block, sha256 })}\n`)
}

export async function removePartialState(partialFile: string): Promise<void> {
	await rm(stateFile(partialFile), { force: true })
}

/** Removes what an interrupted transfer left, when nobody will go on with it. */
export async function removePartial(partialFile: string): Promise<void> {
	await rm(partialFile, { force: true })
	await removePartialState(partialFile)
}
