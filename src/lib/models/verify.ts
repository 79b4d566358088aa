// Is a model what it should be? In tiers, each dearer than the one before: it exists, has its size, is whole by its
// structure, has its digest.
import { join } from "node:path"
import { codeOf, messageOf } from "../errors.ts"
import { inspectSafetensors } from "../formats/safetensors.ts"
import { openHashPool } from "../storage/hash-pool.ts"
import { isModelName, isSafetensorsName, listModels } from "./directories.ts"
import { type Digested, digestOfFile, type Hashing } from "./hashing.ts"
import { inOrder } from "./in-order.ts"
import {
	findZeroTail,
	headBytes,
	type Kind,
	kindOfHead,
	type Located,
	locate,
	type ModelFile,
} from "./kind.ts"
import type { ModelEntry } from "./manifest.ts"
import { openModel } from "./open.ts"

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
	/** The places have different files under its name. */
	| "differs"
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
	sizeBytes?: number
	/** Of its bytes, where they were read, now or before; with when that was. */
	sha256?: string
	hashedAt?: string
}

export type VerifyOptions = {
	level: Level
	/** How digests are had; needed for the level `digest`. */
	hashing?: Hashing
	signal?: AbortSignal
}

export type Judged = Pick<Verdict, "status" | "tier" | "because" | "sha256" | "hashedAt">

/** A model that is open for judging, wherever it lies. */
export type JudgedFile = ModelFile & {
	/** Asked only for what passed everything before. */
	digest?: () => Promise<Digested>
	/** Asked at the level `structure` too, of what ends in zeros: whether the bytes there are those of this entry. */
	endsAs?: (entry: ModelEntry) => Promise<boolean>
}

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
	if (located.state !== "file") return verdictOf(path, judgeAbsent(located), entry)
	const { sizeBytes } = located
	const known = options.level === "digest" ? remembered(path, located, entry, options) : undefined
	const judged = known ?? (await judgeOnDisk({ path, diskPath, located }, entry, options))
	return verdictOf(path, judged.status === "missing" ? judged : { ...judged, sizeBytes }, entry)
}

/** What was found out as a verdict: what nobody needs may be missing; but where it lies, it must be what it says. */
export function verdictOf(
	path: string,
	judged: Judged & { sizeBytes?: number },
	entry: ModelEntry | undefined,
): Verdict {
	const needed = entry !== undefined && entry.optional !== true
	const forgiven = judged.status === "missing" && !needed
	return { path, ...judged, needed, right: judged.status === "ok" || forgiven }
}

/** A file whose right digest is known from before, and that has not changed since, is not even opened. */
function remembered(
	path: string,
	{ identity, sizeBytes }: Extract<Located, { state: "file" }>,
	entry: ModelEntry | undefined,
	{ hashing }: VerifyOptions,
): Judged | undefined {
	if (entry?.sha256 === undefined || hashing?.treat(path) === "hash") return undefined
	if (entry.sizeBytes !== undefined && entry.sizeBytes !== sizeBytes) return undefined
	const found = hashing?.cache?.find(path, identity)
	return found?.sha256 === entry.sha256
		? judgeDigest({ state: "read", ...found }, { status: "ok", tier: "structure", because: "" }, entry)
		: undefined
}

/** A file that is not in the manifest: listed, and named where it is nothing at all. It makes nothing fail. */
async function extraFile(directory: string, path: string, options: VerifyOptions): Promise<Verdict> {
	// A scrub reads these too: that their bytes changed by themselves shows without a manifest.
	const scrubbed = options.level === "digest" && options.hashing?.treat(path) === "hash"
	const level = scrubbed && isModelName(path) ? "digest" : "exists"
	const verdict = await verifyModel(directory, path, undefined, { ...options, level })
	return asExtra(verdict)
}

/** The verdict of a file that stands in no manifest. */
export function asExtra(verdict: Verdict): Verdict {
	if (verdict.status !== "ok") return { ...verdict, right: verdict.status !== "digest-mismatch" }
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
async function judgeOnDisk(
	file: { path: string; diskPath: string; located: Extract<Located, { state: "file" }> },
	entry: ModelEntry | undefined,
	options: VerifyOptions,
): Promise<Judged> {
	const { path, diskPath, located } = file
	const { hashing, level, signal } = options
	try {
		if (level === "exists")
			return await judge(path, { ...located, read: () => Promise.resolve(Buffer.alloc(0)) }, entry, level)
		await using opened = await openModel(diskPath)
		const digest = hashing && (() => digestOfFile({ ...file, entry }, hashing, signal))
		const sha256 = () => sha256Of(diskPath, digest, signal)
		const endsAs = async ({ sha256: wanted }: Pick<ModelEntry, "sha256">) => (await sha256()) === wanted
		const judgedFile = { ...located, read: opened.read, endsAs, ...(digest && { digest }) }
		return await judge(path, judgedFile, entry, level)
	} catch (error) {
		// The system's errors are this file's; a signal's or a bug's are not.
		if (codeOf(error) === undefined || (error instanceof Error && error.name === "AbortError")) throw error
		if (codeOf(error) === "ENOENT")
			return { status: "missing", tier: "exists", because: "it vanished while it was looked at" }
		return { status: "unknown", tier: "none", because: `it can't be read: ${messageOf(error)}` }
	}
}

/** Remembered where it may be, else of this one file's bytes. */
async function sha256Of(
	diskPath: string,
	digest: (() => Promise<Digested>) | undefined,
	signal: AbortSignal | undefined,
): Promise<string | undefined> {
	const digested = await digest?.()
	if (digested !== undefined) return "sha256" in digested ? digested.sha256 : undefined
	await using pool = openHashPool(1)
	return (await pool.hashFile(diskPath, signal && { signal })).digest
}

/** Judges an open file, tier by tier up to the level. */
export async function judge(
	path: string,
	file: JudgedFile,
	entry: ModelEntry | undefined,
	level: Level,
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

	// Zeros only make one suspicious; where the right digest is known, it decides at every level.
	const zeroTail = await findZeroTail(file)
	const zeros: Judged = { status: "zero-tail", tier: "structure", because: `it ${zeroTail}` }
	const digestDecides = level === "digest" && entry?.sha256 !== undefined
	if (zeroTail !== undefined && entry?.sha256 === undefined) return zeros
	const structure = await judgeStructure(path, file, entry)
	if (structure.status !== "ok") return zeroTail === undefined ? structure : zeros
	if (zeroTail !== undefined && !digestDecides) {
		if (entry === undefined || (await file.endsAs?.(entry)) !== true) return zeros
		return { ...structure, because: `it ${zeroTail}, and so it must, by the manifest's digests` }
	}
	if (level !== "digest") return structure

	const digested: Digested = (await file.digest?.()) ?? { state: "none", because: "it was not asked for" }
	const judged = judgeDigest(digested, structure, entry)
	if (zeroTail === undefined || judged.tier === "none") return judged
	if (judged.status === "ok")
		// What was noted when it was stored says nothing of a disk that fell ill since.
		return digested.state === "read" || (entry !== undefined && (await file.endsAs?.(entry)) === true)
			? judged
			: zeros
	return { ...judged, status: "zero-tail", because: zeros.because }
}

/** @param structure what is proven already, for a digest that proves nothing */
function judgeDigest(digested: Digested, structure: Judged, entry: ModelEntry | undefined): Judged {
	if (digested.state === "changed")
		return { status: "unknown", tier: "none", because: "it changed while it was read: look again" }
	if (digested.state === "none") return { ...structure, because: `${structure.because}; ${digested.because}` }
	const { sha256 } = digested
	const wanted = entry?.sha256
	if (digested.state === "claimed") {
		if (wanted === undefined) return { ...structure, because: `${structure.because}; no digest is known` }
		const claim = `the sha256 that was noted when it was stored is`
		if (sha256 !== wanted)
			return { status: "digest-mismatch", tier: "digest", because: `${claim} ${sha256}, not ${wanted}` }
		return { ...structure, because: `${claim} the manifest's: a claim, its bytes were not read` }
	}
	const { hashedAt, before } = digested
	const found = { sha256, hashedAt }
	if (before !== undefined && before !== sha256 && sha256 !== wanted) {
		const because = `its bytes changed by themselves: neither size nor times did. Its sha256 was ${before} and is ${sha256}`
		return { status: "digest-mismatch", tier: "digest", because, ...found }
	}
	if (wanted === undefined)
		return { ...structure, because: `${structure.because}; no digest is known`, ...found }
	if (sha256 === wanted) {
		const when = digested.now === true ? "" : `; read on ${hashedAt}, unchanged since`
		const because = `its sha256 is the manifest's${unverified(entry)}${when}`
		return { status: "ok", tier: "digest", because, ...found }
	}
	const because = `its sha256 is ${sha256}, not ${wanted}${unverified(entry)}`
	return { status: "digest-mismatch", tier: "digest", because, ...found }
}

async function judgeStructure(path: string, file: ModelFile, entry: ModelEntry | undefined): Promise<Judged> {
	if (!isSafetensorsName(path)) {
		const tier = entry?.sizeBytes === undefined ? "exists" : "size"
		return { status: "ok", tier, because: "its structure can't be judged: it is no safetensors file" }
	}
	const finding = await inspectSafetensors(file.read, file.sizeBytes)
	if (finding.state === "ok")
		return {
			status: "ok",
			tier: "structure",
			because:
				finding.tensors === 1
					? "1 tensor fills it to its last byte"
					: `${finding.tensors} tensors fill it to its last byte`,
		}
	const status = finding.state === "truncated" ? "truncated" : "damaged"
	return { status, tier: "structure", because: finding.because }
}

const unverified = (entry: ModelEntry | undefined) =>
	entry?.figures?.verified === false ? ` (a figure that was never verified: ${entry.figures.from})` : ""

// A share answers several questions in the time of one.
const askedAtOnce = 8

/**
 * Judges all that lies below a directory: with a manifest its models in their order, then what else lies there;
 * without one every file.
 * @param listed what lies there, where the caller has listed it already
 * @throws {OperatorError} (2) when there is no such directory
 */
export async function* verifyModels(
	directory: string,
	models: readonly ModelEntry[] | undefined,
	options: VerifyOptions & { listed?: Iterable<string> },
): AsyncGenerator<Verdict> {
	const listed = [...(options.listed ?? (await listModels(directory, options.signal)))]
	const known = new Set(models?.map(({ path }) => path))
	const judgeListed = async (path: string) => {
		if (models !== undefined) return extraFile(directory, path, options)
		return isModelName(path) ? verifyModel(directory, path, undefined, options) : otherFile(path)
	}
	const works = [
		...(models ?? []).map((entry) => () => verifyModel(directory, entry.path, entry, options)),
		...listed.filter((path) => !known.has(path)).map((path) => () => judgeListed(path)),
	]
	const together = options.level === "digest" ? (options.hashing?.together ?? 1) : askedAtOnce
	for await (const verdict of inOrder(works, together)) {
		options.signal?.throwIfAborted()
		yield verdict
	}
}
