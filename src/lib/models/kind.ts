// What a file that should be a model really is. Downloads that failed leave files behind that look like models in a
// listing: a pointer, a page, an empty file, a file of the right size whose end was never written.
import { isUtf8 } from "node:buffer"
import type { BigIntStats } from "node:fs"
import { lstat, stat } from "node:fs/promises"
import { codeOf, messageOf } from "../errors.ts"
import type { ReadRange } from "../formats/safetensors.ts"

/** A file that is open for judging, on a disk or in an object store. */
export type ModelFile = {
	sizeBytes: number
	/** What it takes of the disk; undefined where nobody knows, as in an object store. */
	allocatedBytes?: number
	read: ReadRange
}

/** What changes when a file is replaced or written to, as decimal numbers; times in nanoseconds. */
export type FileIdentity = {
	device: string
	inode: string
	sizeBytes: number
	modifiedNs: string
	changedNs: string
}

export type Located =
	| { state: "file"; sizeBytes: number; allocatedBytes: number; identity: FileIdentity }
	| { state: "missing" | "broken-link" | "not-a-file" | "unreadable"; because: string }

export const identityOf = (facts: BigIntStats): FileIdentity => ({
	device: String(facts.dev),
	inode: String(facts.ino),
	sizeBytes: Number(facts.size),
	modifiedNs: String(facts.mtimeNs),
	changedNs: String(facts.ctimeNs),
})

/** What lies at a path of this machine, links followed. Opens nothing: a pipe would wait for ever. */
export async function locate(diskPath: string): Promise<Located> {
	try {
		const facts = await stat(diskPath, { bigint: true })
		if (facts.isFile()) {
			const sizeBytes = Number(facts.size)
			const identity = identityOf(facts)
			return { state: "file", sizeBytes, allocatedBytes: Number(facts.blocks) * statBlockBytes, identity }
		}
		return { state: "not-a-file", because: facts.isDirectory() ? "it is a directory" : "it is not a file" }
	} catch (error) {
		const code = codeOf(error)
		if (code === "ELOOP") return { state: "broken-link", because: "its links lead in a circle" }
		if (code !== "ENOENT" && code !== "ENOTDIR") return { state: "unreadable", because: messageOf(error) }
		const isLink = await lstat(diskPath).then(
			(facts) => facts.isSymbolicLink(),
			() => false,
		)
		if (isLink) return { state: "broken-link", because: "it is a link to what does not exist" }
		// A name that isn't UTF-8 was listed with replacement characters, and can't be found by them.
		if (diskPath.includes("\uFFFD")) return { state: "unreadable", because: "its name is not UTF-8" }
		return { state: "missing", because: "it is not there" }
	}
}

// POSIX leaves the unit open; Linux and macOS count 512 bytes whatever the file system's own blocks are.
const statBlockBytes = 512

/** As many bytes from the beginning as `kindOfHead` wants to see. */
export const headBytes = 1024

export type Kind = "data" | "empty" | "lfs-pointer" | "html" | "json"

/** Recognizes what is no model by how it begins. */
export function kindOfHead(head: Buffer): Kind {
	if (head.length === 0) return "empty"
	const text = textOf(head)
	if (text === undefined) return "data"
	if (/^version https:\/\/(git-lfs|hawser)\.github\.com\/spec\//.test(text)) return "lfs-pointer"
	if (/^(<!--[\s\S]*?-->\s*)?<(!doctype\s+html|html|head|body|\?xml)\b/i.test(text)) return "html"
	if (/^[{[]\s*["\]}{[\d-]/.test(text)) return "json"
	return "data"
}

/** The beginning as text, without leading space; undefined for what is none. */
function textOf(head: Buffer): string | undefined {
	// The head may end inside a character: at most its last three bytes are of one.
	const whole = [0, 1, 2, 3].some((cut) => isUtf8(head.subarray(0, Math.max(1, head.length - cut))))
	if (!whole) return undefined
	const text = head.toString("utf8").replace(/^\uFEFF?\s*/, "")
	// The eight bytes of a safetensors length may begin like a text; below 100 MB the last four are always zero.
	// biome-ignore lint/suspicious/noControlCharactersInRegex: that there are none is what makes it a text
	return /[\x00-\x08\x0e-\x1f]/.test(text) ? undefined : text
}

const smallestHoleBytes = 64 * 1024
const tellingZeroBytes = 1024 * 1024
const stretchBytes = 4096

/**
 * Looks for an end that was never written. Zeros alone say little: a tensor may well end in some. They count from
 * 64 KiB where the file also takes less of the disk than its size (a hole), and from 1 MiB where it doesn't (space
 * that was reserved before a download, or a file system that shows no holes). A file of fewer zeros passes.
 * Reads 4 KiB of a file that is right, and at most little more than 1 MiB.
 * @returns what was found, as the rest of a sentence that begins with "it"
 */
export async function findZeroTail({
	sizeBytes,
	allocatedBytes,
	read,
}: ModelFile): Promise<string | undefined> {
	const hasHole = allocatedBytes !== undefined && sizeBytes - allocatedBytes >= smallestHoleBytes
	const wanted = hasHole ? smallestHoleBytes : tellingZeroBytes
	if (sizeBytes < wanted) return undefined
	let zeroBytes = 0
	for (let stretch = stretchBytes; zeroBytes < wanted; stretch = Math.min(stretch * 4, wanted - zeroBytes)) {
		const bytes = await read(sizeBytes - zeroBytes - stretch, stretch)
		if (bytes.some((byte) => byte !== 0)) return undefined
		zeroBytes += stretch
	}
	const how = hasHole ? `, and only ${allocatedBytes} of its ${sizeBytes} bytes are on the disk` : ""
	return `ends in ${zeroBytes} zero bytes or more${how}`
}
