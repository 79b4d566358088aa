// Archives: tar compressed with zstd, made so that the same content gives the same bytes, and judged member by member
// before anything of one is unpacked.
import { createReadStream } from "node:fs"
import { dirname } from "node:path"
import type { Readable } from "node:stream"
import { createGunzip, createZstdDecompress } from "node:zlib"
import { codeOf, exitCodes, messageOf, OperatorError, systemError } from "../errors.ts"
import { DockerImageError } from "../formats/docker-image.ts"
import { readTar, TarError, type TarMember } from "../formats/tar.ts"
import { command, withOptions } from "../host/command.ts"
import type { LocalHost } from "../host/local.ts"
import { isWithin, leadsTo } from "./path-pattern.ts"
import { type Tree, type TreeEntry, treeOf } from "./tree.ts"

/** What an archive may hold, and how large it may get when it is unpacked. */
export type ArchiveLimits = {
	/** Paths relative to `/`; the last part may be a glob. Members are one of them or lie below one. */
	roots: readonly string[]
	/** Sum of the sizes of all files. */
	mostBytes: number
	mostMembers: number
}

/**
 * Packs a tree into a `.tar.zst`. The members are exactly the tree's entries, in its order; nothing else is swept in.
 * @param archiveFile where it is written, a path on the host
 * @param staged files whose copies are packed in their stead, and the directory on the host that the copies lie in
 * @throws {OperatorError} when tar fails; a file that changed or vanished while it was read is no failure here:
 *   whoever asked compares the archive with the tree
 */
export async function createArchive(
	host: LocalHost,
	tree: Tree,
	archiveFile: string,
	staged: { directory: string; paths: ReadonlySet<string> } = { directory: "/", paths: new Set() },
): Promise<void> {
	const list = (paths: readonly string[]) => paths.map((path) => `${path}\0`).join("")
	const paths = tree.entries.map(({ path }) => path)
	const names = list(paths.filter((path) => !staged.paths.has(path)))
	const copies = paths.filter((path) => staged.paths.has(path))
	const copiesList = `${archiveFile}.copies`
	if (copies.length > 0) await host.write(copiesList, list(copies), { mode: 0o600 })
	const { stderr } = await host.execute(
		withOptions(
			command(
				"tar",
				"--create",
				"--format=gnu",
				// Before the list of names, or it has no effect on them.
				`--directory=${host.path("/")}`,
				// Several names for one file would need rules for what they point to; each becomes a file of its own.
				"--hard-dereference",
				"--no-recursion",
				// A file that is gone by now is a warning; what else can't be read is told apart below.
				"--ignore-failed-read",
				"--null",
				"--verbatim-files-from",
				"--files-from=-",
				...(copies.length > 0
					? [`--directory=${host.path(staged.directory)}`, `--files-from=${host.path(copiesList)}`]
					: []),
				"--use-compress-program=zstd --quiet -3 --threads=2",
				`--file=${host.path(archiveFile)}`,
			),
			{ environment: { TAR_OPTIONS: "" } },
		),
		{ stdin: names, allowedExitCodes: [1] },
	)
	const unread = stderr
		.split("\n")
		.find((line) => / Warning: /.test(line) && !/: (No such file or directory|Not a directory)$/.test(line))
	if (copies.length > 0) await host.files.remove(copiesList)
	if (unread !== undefined) throw new OperatorError(`packing ${archiveFile}: ${unread}`)
}

/**
 * Reads a whole archive: its compression, every header, every byte of content. Nothing is written.
 * @param archiveFile path on this machine; `.zst` or `.gz` by its ending
 * @returns what unpacking it would give
 * @throws {OperatorError} that names the archive and the member when it is cut, damaged, or holds what has no place in
 *   a backup: members outside of the roots, `..`, absolute names, devices, setuid, links that lead out or are written
 *   through, the same name twice, more than the limits
 */
export async function inspectArchive(
	archiveFile: string,
	limits: ArchiveLimits,
	signal?: AbortSignal,
): Promise<Tree> {
	const judge = memberJudge(limits)
	try {
		for await (const member of readTar(openArchive(archiveFile))) {
			signal?.throwIfAborted()
			judge.take(member)
		}
	} catch (error) {
		throw archiveError(error)
	}
	return judge.tree()
}

/** The uncompressed bytes of an archive. Errors of the compression end the stream. */
export function openArchive(archiveFile: string): Readable {
	const compressed = createReadStream(archiveFile, { highWaterMark: 1024 * 1024 })
	const options = { chunkSize: 1024 * 1024 }
	const plain = isGzip(archiveFile) ? createGunzip(options) : createZstdDecompress(options)
	compressed.on("error", (error) => plain.destroy(error))
	plain.on("close", () => compressed.destroy())
	return compressed.pipe(plain)
}

const isGzip = (archiveFile: string) => /\.t?gz(\.|$)/.test(archiveFile)

/**
 * Unpacks an archive that `inspectArchive` has passed into a directory that holds none of its files yet.
 * @param members only these, and nothing below them; all without it
 */
export async function unpackArchive(
	host: LocalHost,
	archiveFile: string,
	directory: string,
	members?: readonly string[],
): Promise<void> {
	const compression = isGzip(archiveFile) ? "gzip" : "zstd"
	await host.execute(
		withOptions(
			command(
				"tar",
				"--extract",
				`--use-compress-program=${compression}`,
				`--file=${host.path(archiveFile)}`,
				`--directory=${host.path(directory)}`,
				"--preserve-permissions",
				host.standIn ? "--no-same-owner" : "--same-owner",
				"--delay-directory-restore",
				"--keep-old-files",
				...(members === undefined
					? []
					: ["--no-recursion", "--null", "--verbatim-files-from", "--files-from=-"]),
			),
			{ environment: { TAR_OPTIONS: "" } },
		),
		members === undefined ? {} : { stdin: members.map((path) => `${path}\0`).join("") },
	)
}

/** The compression program's own test, which also sees garbage after the end. For archives without a sidecar. */
export async function testCompression(host: LocalHost, archiveFile: string): Promise<void> {
	const program = isGzip(archiveFile) ? "gzip" : "zstd"
	await host.capture(command(program, "--quiet", "--test", host.path(archiveFile)))
}

/** A path that doesn't lie in a name of its own below one of the roots is never unpacked. */
function memberJudge({ roots, mostBytes, mostMembers }: ArchiveLimits) {
	const entries = new Map<string, TreeEntry>()
	// NFC, because two names that look the same must not take turns in one place on a file system that folds them.
	const seen = new Set<string>()
	let sizeBytes = 0

	const refuse = (member: TarMember, because: string): never => {
		throw new OperatorError(`member ${JSON.stringify(member.path)} ${because}`, {
			exitCode: exitCodes.incomplete,
		})
	}

	const take = (member: TarMember): void => {
		// GNU tar takes `./a` for `a`; nothing else is made sense of.
		const path = member.path.replace(/^(\.\/+)+/, "")
		if (path === "" || path === ".") return
		if (path.includes("\0") || path.includes("\uFFFD")) refuse(member, "has a name that is not UTF-8")
		if (path.startsWith("/")) refuse(member, "has an absolute name")
		const parts = path.split("/")
		if (parts.some((part) => part === ".." || part === "." || part === ""))
			refuse(member, "has a name that climbs or is not plain")
		if (!roots.some((root) => isWithin(path, root) || (member.type === "directory" && leadsTo(path, root))))
			refuse(member, "is not part of this artifact")
		const folded = path.normalize("NFC")
		if (seen.has(folded)) refuse(member, "is there twice")
		seen.add(folded)
		if (seen.size > mostMembers) refuse(member, `is one too many: at most ${mostMembers} members are taken`)
		for (let parent = dirname(path); parent !== "."; parent = dirname(parent)) {
			const above = entries.get(parent)
			if (above !== undefined && above.type !== "directory")
				refuse(member, `would be written through the ${above.type} ${JSON.stringify(parent)}`)
		}
		if (member.mode & 0o6000 && member.type !== "directory") refuse(member, "is setuid or setgid")
		sizeBytes += member.sizeBytes
		if (sizeBytes > mostBytes)
			refuse(member, `makes it larger than the ${mostBytes} bytes that this artifact may have`)
		entries.set(path, entryOf(member, path))
	}

	const entryOf = (member: TarMember, path: string): TreeEntry => {
		const common = {
			path,
			mode: member.mode,
			owner: member.owner === "" ? String(member.uid) : member.owner,
			group: member.group === "" ? String(member.gid) : member.group,
			sizeBytes: member.sizeBytes,
		}
		switch (member.type) {
			case "directory":
				return { ...common, type: "directory" }
			case "file":
				return { ...common, type: "file", ...(member.digest === undefined ? {} : { digest: member.digest }) }
			case "symlink":
				return { ...common, type: "symlink", mode: 0o777, target: member.target }
			case "hardlink": {
				const first = entries.get(member.target.replace(/^(\.\/+)+/, ""))
				if (first?.type !== "file")
					return refuse(
						member,
						`is a hard link to ${JSON.stringify(member.target)}, which is no file before it`,
					)
				return { ...first, path }
			}
			default:
				return refuse(member, `is a ${member.type}`)
		}
	}

	return { take, tree: () => treeOf([...entries.values()]) }
}

/** What reading an archive came to, in words. */
export function archiveError(error: unknown): OperatorError {
	if (error instanceof OperatorError) return error
	if (error instanceof DockerImageError) return new OperatorError(error.message)
	if (error instanceof TarError) return new OperatorError(`not a whole archive: ${error.message}`)
	const code = codeOf(error) ?? ""
	if (code.startsWith("Z") || code.startsWith("ERR_"))
		return new OperatorError(`its compression is damaged: ${messageOf(error)}`, { cause: error })
	return systemError(error, "reading the archive")
}
