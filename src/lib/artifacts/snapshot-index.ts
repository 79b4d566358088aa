// The index of an incremental snapshot: every file, directory and link it consists of, and which archive holds its
// bytes. Text that `awk` and `tar --files-from` take as it is, so that a snapshot can be put together without comfyume.
import { constants, zstdCompressSync, zstdDecompressSync } from "node:zlib"
import { messageOf, OperatorError } from "../errors.ts"
import { type Tree, type TreeEntry, treeOf } from "./tree.ts"

/** Where the bytes of an entry lie: the id of the snapshot with whose archive they were packed. */
export type IndexedEntry = TreeEntry & { archive: string }

const firstLine = "comfyume-index\t1"
const archivePattern = /^\d{8}T\d{6}Z-[0-9a-f]{12}$/
const mostBytes = 1024 ** 3

/** GNU tar undoes these in a list of names; with them a line is a line, and a field a field. */
const escaped = (text: string) =>
	text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\t", "\\t")
const unescaped = (text: string) =>
	text.replaceAll(/\\([\\nt])/g, (_, letter: string) => ({ n: "\n", t: "\t" })[letter] ?? "\\")

/** Fields: type, mode, owner, group, size in bytes, sha256 or a link's target, archive, path. Compressed with zstd. */
export function renderIndex(entries: readonly IndexedEntry[]): Buffer {
	const lines = entries.map(({ type, mode, owner, group, sizeBytes, digest, target, archive, path }) =>
		[
			type,
			mode.toString(8).padStart(4, "0"),
			escaped(owner),
			escaped(group),
			sizeBytes,
			type === "symlink" ? escaped(target ?? "") : (digest ?? "-"),
			archive,
			escaped(path),
		].join("\t"),
	)
	return zstdCompressSync(`${[firstLine, ...lines].join("\n")}\n`, {
		params: { [constants.ZSTD_c_compressionLevel]: 3 },
	})
}

/**
 * Reads an index back.
 * @throws {OperatorError} naming the line that is none
 */
export function parseIndex(compressed: Buffer): IndexedEntry[] {
	let text: string
	try {
		text = zstdDecompressSync(compressed, { maxOutputLength: mostBytes }).toString("utf8")
	} catch (error) {
		throw new OperatorError(`its index is damaged: ${messageOf(error)}`, { cause: error })
	}
	const [first, ...lines] = text.split("\n")
	if (first !== firstLine || lines.pop() !== "")
		throw new OperatorError("its index is not one, or is cut off")
	return lines.map((line, number) => {
		const entry = parseLine(line)
		if (entry !== undefined) return entry
		throw new OperatorError(`its index is damaged in line ${number + 2}`)
	})
}

function parseLine(line: string): IndexedEntry | undefined {
	const [type, mode, owner, group, size, content, archive, path, ...more] = line.split("\t")
	if (type !== "file" && type !== "directory" && type !== "symlink") return undefined
	if (owner === undefined || group === undefined || !/^[0-7]{4}$/.test(mode ?? "")) return undefined
	if (!/^\d{1,15}$/.test(size ?? "") || content === undefined || path === undefined || path === "")
		return undefined
	if (!archivePattern.test(archive ?? "") || more.length > 0) return undefined
	if (type === "file" && !/^[0-9a-f]{64}$/.test(content)) return undefined
	return {
		type,
		path: unescaped(path),
		mode: Number.parseInt(mode ?? "", 8),
		owner: unescaped(owner),
		group: unescaped(group),
		sizeBytes: Number(size),
		archive: archive ?? "",
		...(type === "file" ? { digest: content } : type === "symlink" ? { target: unescaped(content) } : {}),
	}
}

/** What the snapshot is when it stands on a disk. */
export function treeOfIndex(entries: readonly IndexedEntry[]): Tree {
	return treeOf(entries.map(({ archive: _, ...entry }) => entry))
}
