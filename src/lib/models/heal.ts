// A missing or damaged model comes back: fetched from the best source beside its place, proven there, renamed.
import { createHash } from "node:crypto"
import { lstat, stat } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { codeOf, type ExitCode, exitCodes, messageOf, OperatorError, systemError } from "../errors.ts"
import { requireSpace, spaceFactor } from "../host/disk.ts"
import type { Report } from "../plan/step.ts"
import { openHashPool } from "../storage/hash-pool.ts"
import { ObjectChanged } from "../storage/object-store.ts"
import { removePartial } from "../storage/partial-state.ts"
import { type TransferProgress, transfer } from "../storage/transfer.ts"
import { formatBytes } from "../ui/format.ts"
import { isSafetensorsName } from "./directories.ts"
import { locate } from "./kind.ts"
import type { ModelEntry } from "./manifest.ts"
import {
	type Expectation,
	expectationOf,
	type ModelSource,
	type Offer,
	unverifiedDifference,
} from "./offer.ts"
import { openModel } from "./open.ts"
import { findTarget, makeModelDirectory, putInPlace } from "./put-in-place.ts"
import { judge } from "./verify.ts"

export type HealOptions = {
	/** The directory of models, on this machine. */
	directory: string
	entry: ModelEntry
	/** The manifest's: what lies in one of their places by its own name is not overwritten through a link. */
	models: readonly ModelEntry[]
	/** Best first. The first whose bytes prove right is taken. */
	sources: readonly ModelSource[]
	/**
	 * Where to fetch to, when that isn't the directory of models itself; must exist. What an interrupted run left there
	 * is gone on with by a run that names the same directory; no other finds it.
	 */
	tempDirectory?: string
	/** Over all connections. */
	limitBytesPerSecond?: number
	now: () => Date
	signal: AbortSignal
	report: Report
}

export type Healed = {
	/** The name of the source that it came from. */
	from: string
	sizeBytes: number
	digest: string
	/** Bytes that came from the source: fewer than the size where blocks were there already. */
	transferredBytes: number
	/** What it was held against. */
	proof: string
}

/**
 * Brings one model into its place. Until it is proven, what stands there stays; afterwards that is kept beside it.
 * @throws {OperatorError} when no source has it right: the failure of the one source, or all of them together
 */
export async function healModel(options: HealOptions): Promise<Healed> {
	const { directory, entry, sources, signal, report } = options
	const target = await findTarget(directory, entry, options.models)
	const partial = partialsOf(target.file, options.tempDirectory)
	for (const file of Object.values(partial)) await requirePlainPartial(file)
	const absent: string[] = []
	const failures: OperatorError[] = []
	for (const source of sources) {
		signal.throwIfAborted()
		try {
			const healed = await healUnchanged(source, { ...target, ...partial }, options)
			if (healed !== undefined) return healed
			absent.push(source.name)
		} catch (error) {
			if (signal.aborted) throw error
			const known = codeOf(error) === undefined ? error : systemError(error, `healing ${entry.path}`)
			// A full disk is full for every source.
			if (!(known instanceof OperatorError) || known.exitCode === exitCodes.noSpace) throw known
			failures.push(known)
			report.warn(`${source.name} is passed over: ${known.message}`)
		}
	}
	// What could still be gone on with stays only where running again may help.
	if (!failures.some(mayComeBack)) for (const file of Object.values(partial)) await removePartial(file)
	throw allFailed(entry, absent, failures)
}

/** Nothing is written through a link, and what isn't ours isn't removed. */
async function requirePlainPartial(partialFile: string): Promise<void> {
	for (const file of [partialFile, `${partialFile}.json`]) {
		const facts = await lstat(file).catch(() => undefined)
		if (facts === undefined || facts.isFile()) continue
		throw new OperatorError(`${file} is no plain file, and a model is to be fetched to that name`, {
			exitCode: exitCodes.refusedByGuard,
			hint: `ls -ld '${file}'; rm -r '${file}'`,
		})
	}
}

/** Where it is fetched to, and where it stands right before it takes its place. */
function partialsOf(file: string, tempDirectory: string | undefined): { beside: string; fetched: string } {
	const beside = join(dirname(file), `.${basename(file)}.comfyume.partial`)
	if (tempDirectory === undefined) return { beside, fetched: beside }
	const id = createHash("sha256").update(file).digest("hex").slice(0, 12)
	return { beside, fetched: join(tempDirectory, `.${id}-${basename(file)}.comfyume.partial`) }
}

type Target = Awaited<ReturnType<typeof findTarget>> & ReturnType<typeof partialsOf>

/** An object that is replaced while it is read is asked for anew, once. */
async function healUnchanged(
	source: ModelSource,
	target: Target,
	options: HealOptions,
): Promise<Healed | undefined> {
	const heal = async () => {
		const offer = await source.find(options.entry)
		return offer === undefined ? undefined : await healFrom(source, offer, target, options)
	}
	try {
		return await heal()
	} catch (error) {
		if (!(error instanceof ObjectChanged)) throw error
		options.report.note(`${error.message}: it is fetched anew`)
		return await heal()
	}
}

async function healFrom(
	source: ModelSource,
	offer: Offer,
	target: Target,
	options: HealOptions,
): Promise<Healed> {
	const { entry, now, report } = options
	const weighed = expectationOf(entry, offer)
	if ("refused" in weighed) throw new OperatorError(`${offer.bytes.place}: ${weighed.refused}`)
	const { expectation } = weighed
	await makeModelDirectory(dirname(target.file))
	const came = await (target.fetched === target.beside
		? fetchProven(offer, expectation, target.beside, target, options)
		: fetchByWayOf(offer, expectation, target, options))
	const { sizeBytes } = offer.bytes
	const keptAs = await putInPlace(target.beside, target.file, now())
	if (keptAs !== undefined) {
		const kept = await lstat(keptAs).catch(() => undefined)
		report.note(
			`what stood there is kept as ${keptAs} (${formatBytes(kept?.size ?? 0)}); when nobody needs it: rm '${keptAs}'`,
		)
	}
	const difference = unverifiedDifference(entry, { sizeBytes, digest: came.digest })
	if (difference !== undefined)
		report.warn(`the manifest's figure was never verified, and is not this file's: ${difference}`)
	if (expectation.digest === undefined)
		report.note(
			`not proven: no digest is known; its structure ${isSafetensorsName(entry.path) ? "is whole" : "can't be judged either"}`,
		)
	return { from: source.name, sizeBytes, proof: expectation.proof, ...came }
}

/** The disk that it is needed on may be slow or almost full: fetched and proven elsewhere, then copied. */
async function fetchByWayOf(
	offer: Offer,
	expectation: Expectation,
	target: Target,
	options: HealOptions,
): Promise<{ digest: string; transferredBytes: number }> {
	const { sizeBytes } = offer.bytes
	const { beside, fetched } = target
	await requireRoomFor(dirname(beside), sizeBytes, beside)
	const came = await fetchProven(offer, expectation, fetched, target, options)
	const access = { kind: "file", path: fetched } as const
	const bytes = { name: "temp-dir", place: fetched, sizeBytes, access }
	// A limit is the network's.
	const { limitBytesPerSecond: _, ...unlimited } = options
	await fetchProven({ bytes }, { ...expectation, digest: came.digest }, beside, target, unlimited)
	await removePartial(fetched)
	return came
}

/** Fills a partial file and proves it. A partial that is only not complete stays, for the next run to go on with. */
async function fetchProven(
	offer: Offer,
	expectation: Expectation,
	partialFile: string,
	target: Target,
	options: HealOptions,
): Promise<{ digest: string; transferredBytes: number }> {
	const { bytes } = offer
	const { digest, blocks } = expectation
	const { entry, limitBytesPerSecond, signal, report } = options
	await requireRoomFor(dirname(partialFile), bytes.sizeBytes, partialFile)
	// Without a digest nobody could tell that its halves come from two files.
	if (digest === undefined) await removePartial(partialFile)
	const isResumed = await stat(partialFile).then(Boolean, () => false)
	try {
		const transferred = await transfer(bytes, {
			partialFile,
			expected: {
				...(digest === undefined ? {} : { digest }),
				...(blocks === undefined ? {} : { blocks }),
			},
			...(blocks !== undefined && target.isThere ? { seedFile: target.file } : {}),
			...(limitBytesPerSecond === undefined ? {} : { limitBytesPerSecond }),
			signal,
			onProgress: ({ doneBytes }: TransferProgress) =>
				report.progress({ doneBytes, totalBytes: bytes.sizeBytes, from: bytes.name }),
		})
		// A manifest's blocks and its sha256 can contradict each other; the name is the sha256's.
		const came = transferred.digest ?? (await digestOf(partialFile, options))
		if (digest !== undefined && came !== digest) {
			await removePartial(partialFile)
			throw new OperatorError(
				`${bytes.place}: block by block it is the manifest's, and as a whole its sha256 is ${came}, not ${digest}: the manifest contradicts itself`,
				{ hint: "comfyume manifest create --models DIR   # from a trusted copy" },
			)
		}
		await requireWhole(partialFile, entry, { ...bytes, digest: came })
		return { digest: came, transferredBytes: transferred.transferredBytes }
	} catch (error) {
		// Of blocks that are known each is proven by itself: what came of one source is good for the next.
		const isProvenInParts = blocks !== undefined && !isNoSpace(error)
		if (signal.aborted || mayComeBack(error) || isProvenInParts) throw error
		await removePartial(partialFile)
		// What an older run left may be the beginning of another file.
		if (isResumed && error instanceof OperatorError && error.exitCode === exitCodes.incomplete)
			return await fetchProven(offer, expectation, partialFile, target, options)
		throw codeOf(error) === undefined ? error : systemError(error, `writing ${partialFile}`)
	}
}

async function digestOf(file: string, { signal, report }: HealOptions): Promise<string> {
	await using pool = openHashPool(1)
	const onProgress = (doneBytes: number) => report.progress({ doneBytes, from: "proving what came" })
	return (await pool.hashFile(file, { signal, onProgress })).digest
}

async function requireWhole(
	partialFile: string,
	{ path, sha256 }: ModelEntry,
	{ place, sizeBytes, digest }: Offer["bytes"] & { digest: string },
): Promise<void> {
	const located = await locate(partialFile)
	if (located.state !== "file") throw new OperatorError(`${partialFile} is gone: ${located.because}`)
	await using file = await openModel(partialFile)
	const known = sha256 === undefined ? {} : { sha256 }
	const judged = { ...located, read: file.read, sha256: () => Promise.resolve(digest) }
	const verdict = await judge(path, judged, { path, sizeBytes, ...known }, "structure")
	if (verdict.status === "ok") return
	throw new OperatorError(`${place}: what came is no whole model: ${verdict.status}: ${verdict.because}`)
}

/** Where the connection broke, or a token was missing, and not the content: the next run can go on with what came. */
const mayComeBack = (error: unknown): boolean =>
	error instanceof OperatorError &&
	(error.exitCode === exitCodes.unreachable || error.exitCode === exitCodes.refusedCredentials)

const isNoSpace = (error: unknown): boolean =>
	error instanceof OperatorError && error.exitCode === exitCodes.noSpace

async function requireRoomFor(directory: string, sizeBytes: number, partialFile: string): Promise<void> {
	const standing = await stat(partialFile).catch(() => undefined)
	const bytes = Math.ceil(sizeBytes * spaceFactor) - (standing?.blocks ?? 0) * 512
	// The partial file and its notes.
	await requireSpace(directory, { bytes, files: standing === undefined ? 2 : 0, shown: directory })
}

function allFailed(
	{ path }: ModelEntry,
	absent: readonly string[],
	failures: readonly OperatorError[],
): OperatorError {
	const reasons = [...failures.map(messageOf), ...absent.map((name) => `${name} doesn't have it`)]
	if (reasons.length === 0) return new OperatorError(`no source is in reach that could hold ${path}`)
	const codes = new Set<ExitCode>(failures.map(({ exitCode }) => exitCode))
	const [code = exitCodes.incomplete] = codes
	const hint = failures.map((failure) => failure.hint).find((one) => one !== undefined)
	return new OperatorError(`no source has it right: ${reasons.join("; ")}`, {
		exitCode: codes.size > 1 ? exitCodes.incomplete : code,
		...(failures.length === 0 ? {} : { cause: failures[0] }),
		...(hint === undefined ? {} : { hint }),
	})
}
