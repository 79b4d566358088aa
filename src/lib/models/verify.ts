// Is a model what it should be? In tiers, each dearer than the one before: it exists, has its size, is whole by its
// structure, has its digest.
import { join } from "node:path"
import { codeOf, messageOf } from "../errors.ts"
import { inspectSafetensors } from "../formats/safetensors.ts"
import { digestModel } from "./digest.ts"
import { isModelName, isSafetensorsName, listModels } from "./directories.ts"
import { findZeroTail, headBytes, type Kind, kindOfHead, type Located, locate } from "./kind.ts"
import type { ModelEntry } from "./manifest.ts"
import { type OpenModel, openModel } from "./open.ts"

export const levels = ["exists", "size", "structure", "digest"] as const
export type Level = (typeof levels)[number]

export type ModelStatus =
	| "ok"
	| "missing"
	| "truncated"
	| "size-mismatch"
	| "digest-mismatch"
	| "damaged"
	| Exclude<Kind, "data">
	| "zero-tail"
	| "broken-link"
	| "extra"
	| "unknown"

export type Verdict = {
	path: string
	status: ModelStatus
	/** For what is right the deepest tier that was proven, else the one that decided; `none` when none was reached. */
	tier: Level | "none"
	because: string
	/** Stands in the manifest, and not as optional. */
	needed: boolean
	/** False makes the run end with 3. */
	right: boolean
}

export type VerifyOptions = {
	level: Level
	/** One for all files: memory doesn't grow with them. */
	buffer: Buffer
	signal?: AbortSignal
}

type Judged = Pick<Verdict, "status" | "tier" | "because">

const kindsSay: Readonly<Record<Exclude<Kind, "data">, string>> = {
	empty: "it is empty",
	"lfs-pointer": "it is a Git LFS pointer: the model itself was never fetched",
	html: "it is an HTML page: a download was answered with an error or a login",
	json: "it is a JSON text: a download was answered with an error",
}

/**
 * Judges one file of this machine's disk. Never throws for what the file is.
 * @param entry what the manifest says of it; without one its kind and structure alone are judged
 */
export async function verifyModel(
	directory: string,
	path: string,
	entry: ModelEntry | undefined,
	options: VerifyOptions,
): Promise<Verdict> {
	const diskPath = join(directory, path)
	const located = await locate(diskPath)
	const judged =
		located.state === "file"
			? await withOpen(diskPath, options.level, (file) =>
					judge(path, { ...located, ...file }, entry, options),
				)
			: judgeAbsent(located)
	const needed = entry !== undefined && entry.optional !== true
	// What nobody needs may be missing; but where it lies, it must be what it says.
	const forgiven = judged.status === "missing" && !needed
	return { path, ...judged, needed, right: judged.status === "ok" || forgiven }
}

/** A file that is not in the manifest: listed, and named where it is nothing at all. It makes nothing fail. */
async function extraFile(directory: string, path: string, options: VerifyOptions): Promise<Verdict> {
	const verdict = await verifyModel(directory, path, undefined, { ...options, level: "exists" })
	if (verdict.status !== "ok") return { ...verdict, right: true }
	return { ...verdict, status: "extra", because: "it is not in the manifest", right: true }
}

/** A file beside models that is none by its name. */
const otherFile = (path: string): Verdict => ({
	path,
	status: "unknown",
	tier: "exists",
	because: "it is no model by its name: not judged",
	needed: false,
	right: true,
})

function judgeAbsent({ state, because }: Exclude<Located, { state: "file" }>): Judged {
	if (state === "unreadable") return { status: "unknown", tier: "none", because }
	return { status: state === "not-a-file" ? "damaged" : state, tier: "exists", because }
}

/** Opened only when something has to be read: `exists` on a slow share is a question of names. */
async function withOpen(
	diskPath: string,
	level: Level,
	work: (file: OpenModel) => Promise<Judged>,
): Promise<Judged> {
	const nothing = async () => Promise.reject(new Error("nothing is read at this level"))
	try {
		if (level === "exists") return await work({ read: nothing, readInto: nothing })
		await using file = await openModel(diskPath)
		return await work(file)
	} catch (error) {
		// The system's errors are this file's; a signal's or a bug's are not.
		if (codeOf(error) === undefined || (error instanceof Error && error.name === "AbortError")) throw error
		return { status: "unknown", tier: "none", because: `it can't be read: ${messageOf(error)}` }
	}
}

/** Judges an open file. Exported for its reads to be counted. */
export async function judge(
	path: string,
	file: { sizeBytes: number; allocatedBytes?: number } & OpenModel,
	entry: ModelEntry | undefined,
	{ level, buffer, signal }: VerifyOptions,
): Promise<Judged> {
	const { sizeBytes } = file
	if (sizeBytes === 0) return { status: "empty", tier: "exists", because: kindsSay.empty }
	if (level === "exists") return { status: "ok", tier: "exists", because: "it is there, and not empty" }

	const wrongSize = entry?.sizeBytes !== undefined && entry.sizeBytes !== sizeBytes
	if (level === "size" && !wrongSize)
		return entry?.sizeBytes === undefined
			? { status: "ok", tier: "exists", because: "it is there; no size is known" }
			: { status: "ok", tier: "size", because: `it has ${sizeBytes} bytes${unverified(entry)}` }

	// A pointer or a page of the wrong size is better named for what it is.
	const kind = kindOfHead(await file.read(0, Math.min(headBytes, sizeBytes)))
	if (kind !== "data") return { status: kind, tier: "structure", because: kindsSay[kind] }
	if (wrongSize) {
		const status = sizeBytes < Number(entry.sizeBytes) ? "truncated" : "size-mismatch"
		const because = `it has ${sizeBytes} bytes, not ${entry.sizeBytes}${unverified(entry)}`
		return { status, tier: "size", because }
	}

	// Zeros only make one suspicious; where the digest is asked for and known, it decides.
	const digestDecides = level === "digest" && entry?.sha256 !== undefined
	const zeroTail = await findZeroTail(file)
	if (zeroTail !== undefined && !digestDecides)
		return { status: "zero-tail", tier: "structure", because: `it ${zeroTail}` }
	const structure = await judgeStructure(path, file, entry)
	if (structure.status !== "ok" || level === "structure") return structure
	if (entry?.sha256 === undefined)
		return { ...structure, because: `${structure.because}; no digest is known` }

	const { digest } = await digestModel(file.readInto, { blocks: false, buffer, ...(signal && { signal }) })
	if (digest === entry.sha256)
		return { status: "ok", tier: "digest", because: `its sha256 is the manifest's${unverified(entry)}` }
	if (zeroTail !== undefined) return { status: "zero-tail", tier: "digest", because: `it ${zeroTail}` }
	const because = `its sha256 is ${digest}, not ${entry.sha256}${unverified(entry)}`
	return { status: "digest-mismatch", tier: "digest", because }
}

async function judgeStructure(
	path: string,
	file: { sizeBytes: number } & OpenModel,
	entry: ModelEntry | undefined,
): Promise<Judged> {
	if (!isSafetensorsName(path)) {
		const tier = entry?.sizeBytes === undefined ? "exists" : "size"
		return { status: "ok", tier, because: "its structure can't be judged: it is no safetensors file" }
	}
	const finding = await inspectSafetensors(file.read, file.sizeBytes)
	if (finding.state === "ok")
		return { status: "ok", tier: "structure", because: `${finding.tensors} tensors fill it to its last byte` }
	const status = finding.state === "truncated" ? "truncated" : "damaged"
	return { status, tier: "structure", because: finding.because }
}

const unverified = ({ figures }: ModelEntry) =>
	figures?.verified === false ? ` (a figure that was never verified: ${figures.from})` : ""

// A share answers several questions in the time of one. Hashing takes the whole of it, and the one buffer.
const atOnce: Readonly<Record<Level, number>> = { exists: 8, size: 8, structure: 8, digest: 1 }

/**
 * Judges all that lies below a directory: with a manifest its models in their order, then what else lies there;
 * without one every file.
 * @throws {OperatorError} (2) when there is no such directory
 */
export async function* verifyModels(
	directory: string,
	models: readonly ModelEntry[] | undefined,
	options: VerifyOptions,
): AsyncGenerator<Verdict> {
	const listed = await listModels(directory, options.signal)
	const known = new Set(models?.map(({ path }) => path))
	const judgeListed = (path: string) => {
		if (models !== undefined) return extraFile(directory, path, options)
		return isModelName(path) ? verifyModel(directory, path, undefined, options) : otherFile(path)
	}
	const works = [
		...(models ?? []).map((entry) => () => verifyModel(directory, entry.path, entry, options)),
		...listed.filter((path) => !known.has(path)).map((path) => () => judgeListed(path)),
	]
	const together = atOnce[options.level]
	for (let index = 0; index < works.length; index += together) {
		options.signal?.throwIfAborted()
		yield* await Promise.all(works.slice(index, index + together).map((work) => work()))
	}
}
