// A verified archive unpacked on trial, and what other programs than ours say of it: `find` and `sha256sum`. What our
// reader has said of the archive, which is what its sidecar says, must be what they find on the disk.
import { exitCodes, OperatorError } from "../errors.ts"
import { command, withOptions } from "../host/command.ts"
import type { LocalHost } from "../host/local.ts"
import { unpackArchive } from "./archive.ts"
import type { ArchiveArtifact } from "./catalogue.ts"
import type { Verified } from "./chain.ts"
import { floorProblems } from "./floor.ts"
import { isWithin } from "./path-pattern.ts"
import { demandModes } from "./replace.ts"
import { differences, type Tree, type TreeEntry, treeOf } from "./tree.ts"

/**
 * Unpacks an archive with the system's own programs, gives it modes and owners as a restore does, and compares.
 * @param directory an empty one on the host, that only root can enter
 * @returns what lies there now, by `find` and `sha256sum`
 * @throws {OperatorError} (3) saying what differs; (7) when the disk is full
 */
export async function unpackOnTrial(
	host: LocalHost,
	artifact: ArchiveArtifact,
	{ parts, sidecar, tree }: Verified,
	directory: string,
): Promise<Tree> {
	for (const { archiveFile, members } of parts) await unpackArchive(host, archiveFile, directory, members)
	await demandModes(host, tree, directory)
	const found = await lookAt(host, artifact, directory)
	// Where a directory stands in for a server, owners aren't set and can't be compared.
	const ownership = (sidecar?.ownership ?? true) && !host.standIn
	const wrong = differences(tree, found, { ownership, limit: 5 })
	if (wrong.length > 0)
		throw new OperatorError(`unpacked, it is not what the archive holds: ${wrong.join("; ")}`)
	const problems = floorProblems(artifact, found)
	if (problems.length > 0) throw new OperatorError(`unpacked, it holds too little: ${problems.join("; ")}`)
	return found
}

const types: Readonly<Record<string, TreeEntry["type"]>> = { f: "file", d: "directory", l: "symlink" }

async function lookAt(host: LocalHost, { paths }: ArchiveArtifact, directory: string): Promise<Tree> {
	const at = { workingDirectory: directory }
	// NUL ends every field that may hold anything: a name, a link's target.
	const listing = await fieldsOf(
		host,
		withOptions(command("find", ".", "-mindepth", "1", "-printf", "%y %m %u %g %s\\0%l\\0%P\\0"), at),
	)
	const entries: TreeEntry[] = []
	for (let index = 0; index + 2 < listing.length; index += 3) {
		const [kind = "", mode = "", owner = "", group = "", size = ""] = (listing[index] ?? "").split(" ")
		const path = listing[index + 2] ?? ""
		// The directories above the artifact's own come from unpacking, and are no part of it.
		if (!paths.some((root) => isWithin(`/${path}`, root))) continue
		const type = types[kind]
		if (type === undefined)
			throw new OperatorError(`/${path} is neither a file nor a directory nor a link`, {
				exitCode: exitCodes.incomplete,
			})
		const common = { path, type, mode: Number.parseInt(mode, 8), owner, group, sizeBytes: 0 }
		if (type === "file") entries.push({ ...common, sizeBytes: Number(size) })
		else entries.push(type === "symlink" ? { ...common, target: listing[index + 1] ?? "" } : common)
	}
	const digests = await digestsOf(host, directory, entries)
	return treeOf(
		entries.map((entry) =>
			entry.type === "file" ? { ...entry, digest: digests.get(entry.path) ?? "unread" } : entry,
		),
	)
}

async function digestsOf(
	host: LocalHost,
	directory: string,
	entries: readonly TreeEntry[],
): Promise<Map<string, string>> {
	const files = entries.filter(({ type }) => type === "file")
	const lines = await fieldsOf(
		host,
		withOptions(command("xargs", "--null", "--no-run-if-empty", "sha256sum", "--zero", "--"), {
			workingDirectory: directory,
		}),
		files.map(({ path }) => `${path}\0`).join(""),
	)
	// `<64 digits>  <name>`
	return new Map(lines.map((line) => [line.slice(66), line.slice(0, 64)]))
}

async function fieldsOf(
	host: LocalHost,
	asked: Parameters<LocalHost["capture"]>[0],
	stdin?: string,
): Promise<string[]> {
	const chunks: Buffer[] = []
	await host.capture(asked, {
		onStdout: (chunk) => void chunks.push(chunk),
		...(stdin === undefined ? {} : { stdin }),
	})
	return Buffer.concat(chunks).toString("utf8").split("\0").slice(0, -1)
}
