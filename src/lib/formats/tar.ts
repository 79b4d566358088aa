// Reads tar archives, header by header, without unpacking: what is in there is judged before any of it touches a disk.
// Format: POSIX.1-2001 ustar and pax, and the GNU extensions for long names and large numbers.
import { createHash } from "node:crypto"

type TarMemberType =
	| "file"
	| "directory"
	| "symlink"
	| "hardlink"
	| "character-device"
	| "block-device"
	| "fifo"

export type TarMember = {
	/** As it stands in the archive, without a trailing slash. Unchecked: may be absolute or climb out. */
	path: string
	type: TarMemberType
	/** Permission bits including setuid, setgid and sticky. */
	mode: number
	uid: number
	gid: number
	/** User and group by name; empty when the archive has none. */
	owner: string
	group: string
	sizeBytes: number
	/** What a symbolic or hard link points to. */
	target: string
	/** sha256 of a file's content, in hex; undefined for everything else. */
	digest: string | undefined
	/** Of a file that was asked to be kept. */
	content?: Buffer
}

export type TarOptions = {
	/** Which files' content is given too, and not only its digest: it is held in memory. */
	keep?: (path: string, sizeBytes: number) => boolean
}

/** The bytes are not a tar archive that can be read without guessing. The message says where and why. */
export class TarError extends Error {
	override name = "TarError"
}

const blockBytes = 512
const longestMetadataBytes = 1024 * 1024

const types: Readonly<Record<string, TarMemberType>> = {
	"0": "file",
	"\0": "file",
	"7": "file",
	"1": "hardlink",
	"2": "symlink",
	"3": "character-device",
	"4": "block-device",
	"5": "directory",
	"6": "fifo",
}

/**
 * Reads all members in the order of the archive. Each is given once its content has been read and hashed; memory is
 * bounded by the chunks of the source. Everything after the closing zero blocks must be zero.
 * @param source the uncompressed archive
 * @throws {TarError} when it is cut short, damaged, followed by garbage, or uses what isn't understood (sparse files,
 *   volumes, global headers that change members)
 */
export async function* readTar(
	source: AsyncIterable<Uint8Array>,
	{ keep = () => false }: TarOptions = {},
): AsyncGenerator<TarMember> {
	const input = byteReader(source)
	try {
		yield* readMembers(input, keep)
	} finally {
		await input.close()
	}
}

type Keep = NonNullable<TarOptions["keep"]>

async function* readMembers(input: ByteReader, keep: Keep): AsyncGenerator<TarMember> {
	let overrides: Record<string, string> = {}
	for (;;) {
		const at = input.position()
		const block = await input.take(blockBytes)
		if (block.length === 0) throw new TarError(`cut short: it ends at byte ${at} without its closing blocks`)
		if (block.length < blockBytes) throw new TarError(`cut short: it ends inside a header at byte ${at}`)
		if (isZero(block)) {
			await readClosing(input)
			return
		}
		const header = readHeader(block, at)
		const typeFlag = header.typeFlag
		if (typeFlag === "x" || typeFlag === "g" || typeFlag === "L" || typeFlag === "K") {
			const content = await readMetadata(input, header.sizeBytes, at)
			if (typeFlag === "x") overrides = { ...overrides, ...readPaxRecords(content, at) }
			else if (typeFlag === "g") rejectGlobal(readPaxRecords(content, at), at)
			else overrides[typeFlag === "L" ? "path" : "linkpath"] = untilNul(content)
			continue
		}
		yield await readMember(input, { header, overrides, at, keep })
		overrides = {}
	}
}

type Header = {
	path: string
	mode: number
	uid: number
	gid: number
	sizeBytes: number
	typeFlag: string
	target: string
	owner: string
	group: string
}

async function readMember(
	input: ByteReader,
	{
		header,
		overrides,
		at,
		keep,
	}: { header: Header; overrides: Readonly<Record<string, string>>; at: number; keep: Keep },
): Promise<TarMember> {
	const type = types[header.typeFlag]
	if (type === undefined)
		throw new TarError(`member type ${JSON.stringify(header.typeFlag)} at byte ${at} is not understood`)
	if (Object.keys(overrides).some((key) => key.startsWith("GNU.sparse")))
		throw new TarError(`sparse file at byte ${at}: not understood`)
	const path = (overrides["path"] ?? header.path).replace(/\/+$/, "")
	const sizeBytes = overrides["size"] === undefined ? header.sizeBytes : decimal(overrides["size"], at)
	const named = {
		path,
		type,
		mode: header.mode & 0o7777,
		uid: overrides["uid"] === undefined ? header.uid : decimal(overrides["uid"], at),
		gid: overrides["gid"] === undefined ? header.gid : decimal(overrides["gid"], at),
		owner: overrides["uname"] ?? header.owner,
		group: overrides["gname"] ?? header.group,
		target: type === "symlink" || type === "hardlink" ? (overrides["linkpath"] ?? header.target) : "",
	}
	if (type !== "file") {
		// Only files have content. A size on anything else is either the archiver's note (some write a link's or
		// directory's size) or an attempt to make two readers disagree about where the next header is.
		if (sizeBytes !== 0) throw new TarError(`${type} with content at byte ${at}`)
		return { ...named, sizeBytes: 0, digest: undefined }
	}
	const hash = createHash("sha256")
	const kept: Buffer[] | undefined = keep(path, sizeBytes) ? [] : undefined
	const take = (chunk: Buffer) => {
		hash.update(chunk)
		kept?.push(Buffer.from(chunk))
	}
	await input.pass(sizeBytes, take, `the content of ${path}`)
	await input.pass(padding(sizeBytes), () => {}, `the padding after ${path}`)
	const digest = hash.digest("hex")
	return { ...named, sizeBytes, digest, ...(kept === undefined ? {} : { content: Buffer.concat(kept) }) }
}

function readHeader(block: Buffer, at: number): Header {
	const stated = numberField(block, 148, 8, at)
	let sum = 0
	for (let index = 0; index < blockBytes; index++)
		sum += index >= 148 && index < 156 ? 32 : (block[index] ?? 0)
	if (sum !== stated)
		throw new TarError(`damaged header at byte ${at}: its checksum is ${sum}, stated ${stated}`)
	const magic = block.toString("latin1", 257, 263)
	const posix = magic === "ustar\0"
	if (!posix && magic !== "ustar ") throw new TarError(`header at byte ${at} is in a format before POSIX`)
	// In the GNU format the bytes of the prefix hold times instead.
	const prefix = posix ? untilNul(block.subarray(345, 500)) : ""
	const name = untilNul(block.subarray(0, 100))
	return {
		path: prefix === "" ? name : `${prefix}/${name}`,
		mode: numberField(block, 100, 8, at),
		uid: numberField(block, 108, 8, at),
		gid: numberField(block, 116, 8, at),
		sizeBytes: numberField(block, 124, 12, at),
		typeFlag: String.fromCharCode(block[156] ?? 0),
		target: untilNul(block.subarray(157, 257)),
		owner: untilNul(block.subarray(265, 297)),
		group: untilNul(block.subarray(297, 329)),
	}
}

/** Octal text, or GNU's base-256 when the first bit is set. */
function numberField(block: Buffer, offset: number, length: number, at: number): number {
	const first = block[offset] ?? 0
	if (first & 0x80) {
		let value = BigInt(first & 0x7f)
		for (let index = offset + 1; index < offset + length; index++)
			value = value * 256n + BigInt(block[index] ?? 0)
		if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new TarError(`number out of range at byte ${at}`)
		return Number(value)
	}
	const text = block
		.toString("latin1", offset, offset + length)
		.replace(/[\0 ]+$/, "")
		.trimStart()
	if (text === "") return 0
	if (!/^[0-7]+$/.test(text)) throw new TarError(`damaged number ${JSON.stringify(text)} at byte ${at}`)
	return Number.parseInt(text, 8)
}

/** Records of the form `<length> <key>=<value>\n`, the length counting the whole record in bytes. */
function readPaxRecords(content: Buffer, at: number): Record<string, string> {
	const records: Record<string, string> = {}
	let position = 0
	while (position < content.length) {
		const space = content.indexOf(0x20, position)
		const length = space === -1 ? Number.NaN : Number(content.toString("latin1", position, space))
		const end = position + length
		if (!Number.isInteger(length) || end > content.length || end <= space || content[end - 1] !== 0x0a)
			throw new TarError(`damaged extended header at byte ${at}`)
		const record = content.toString("utf8", space + 1, end - 1)
		const equals = record.indexOf("=")
		if (equals <= 0) throw new TarError(`damaged extended header at byte ${at}`)
		records[record.slice(0, equals)] = record.slice(equals + 1)
		position = end
	}
	return records
}

function rejectGlobal(records: Readonly<Record<string, string>>, at: number): void {
	const changing = Object.keys(records).filter((key) => key !== "comment")
	if (changing.length > 0)
		throw new TarError(
			`global header at byte ${at} changes ${changing.join(", ")} of all members: not understood`,
		)
}

async function readMetadata(input: ByteReader, sizeBytes: number, at: number): Promise<Buffer> {
	if (sizeBytes > longestMetadataBytes)
		throw new TarError(`extended header of ${sizeBytes} bytes at byte ${at}`)
	const content = await input.take(sizeBytes)
	if (content.length < sizeBytes)
		throw new TarError(`cut short: it ends inside an extended header at byte ${at}`)
	await input.pass(padding(sizeBytes), () => {}, "the padding after an extended header")
	return content
}

async function readClosing(input: ByteReader): Promise<void> {
	const second = await input.take(blockBytes)
	if (second.length < blockBytes) throw new TarError("cut short: the second closing block is missing")
	if (!isZero(second)) throw new TarError("a single zero block stands between members")
	for (;;) {
		const at = input.position()
		const rest = await input.take(blockBytes)
		if (rest.length === 0) return
		if (!isZero(rest)) throw new TarError(`garbage after the end of the archive, at byte ${at}`)
	}
}

const padding = (sizeBytes: number) => (blockBytes - (sizeBytes % blockBytes)) % blockBytes

function decimal(text: string, at: number): number {
	const value = Number(text)
	if (!/^\d+$/.test(text) || !Number.isSafeInteger(value))
		throw new TarError(`damaged number ${JSON.stringify(text)} at byte ${at}`)
	return value
}

function untilNul(bytes: Buffer): string {
	const end = bytes.indexOf(0)
	return bytes.toString("utf8", 0, end === -1 ? bytes.length : end)
}

const isZero = (block: Buffer) => block.every((byte) => byte === 0)

type ByteReader = {
	position(): number
	/** The next bytes; fewer only at the end of the source. */
	take(length: number): Promise<Buffer>
	/** Hands the next bytes on in the chunks they came in. @throws {TarError} when the source ends before. */
	pass(length: number, to: (chunk: Buffer) => void, what: string): Promise<void>
	/** Lets the source go, also when it was not read to its end. */
	close(): Promise<void>
}

function byteReader(source: AsyncIterable<Uint8Array>): ByteReader {
	const iterator = source[Symbol.asyncIterator]()
	let chunk: Buffer = Buffer.alloc(0)
	let position = 0
	/** Up to `length` bytes of what is at hand; empty only at the end of the source. */
	const next = async (length: number): Promise<Buffer> => {
		while (chunk.length === 0) {
			const result = await iterator.next()
			if (result.done === true) return chunk
			chunk = Buffer.from(result.value.buffer, result.value.byteOffset, result.value.byteLength)
		}
		const part = chunk.subarray(0, length)
		chunk = chunk.subarray(part.length)
		position += part.length
		return part
	}
	return {
		position: () => position,
		close: async () => {
			await iterator.return?.()
		},
		take: async (length) => {
			const parts: Buffer[] = []
			let missing = length
			while (missing > 0) {
				const part = await next(missing)
				if (part.length === 0) break
				parts.push(part)
				missing -= part.length
			}
			return parts.length === 1 && parts[0] !== undefined ? parts[0] : Buffer.concat(parts)
		},
		pass: async (length, to, what) => {
			let missing = length
			while (missing > 0) {
				const part = await next(missing)
				if (part.length === 0) throw new TarError(`cut short: ${missing} bytes of ${what} are missing`)
				to(part)
				missing -= part.length
			}
		},
	}
}
