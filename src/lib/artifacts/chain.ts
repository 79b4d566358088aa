// The source chain: local, share, R2. The newest snapshot whose bytes prove right is taken, from the nearest place
// that holds it; a bad copy is named, passed over, and healed from the good one where the place allows it.
import { readdir } from "node:fs/promises"
import { join } from "node:path"
import { exitCodes, messageOf, OperatorError, systemError } from "../errors.ts"
import type { LocalHost } from "../host/local.ts"
import type { Report } from "../plan/step.ts"
import type { Secret } from "../secret.ts"
import { inspectArchive, testCompression } from "./archive.ts"
import { assemble, type Part } from "./assemble.ts"
import type { ArchiveArtifact, SnapshotArtifact } from "./catalogue.ts"
import {
	checkEncrypted,
	IdentityError,
	type Key,
	openArchive,
	openTreeDigest,
	requireIdentity,
} from "./encryption.ts"
import { floorProblems, withDemandedModes } from "./floor.ts"
import { heal } from "./heal.ts"
import type { ArchiveSidecar, Sidecar, SnapshotName, StoredSidecar } from "./snapshot.ts"
import { type Copy, fetchArchive, listCopies, listOlderCopies, readSidecar, type Source } from "./source.ts"
import { type Tree, treeDigest } from "./tree.ts"

/** What is looked for, and for whom. */
export type Wanted = {
	environment: string
	host: string
	/** The options that name the environment, for commands to type next. */
	spoken: string
	/** Only what was taken at this time or before; the newest of all without it. */
	at?: Date
	/** Take the backups of the scripts that came before, which have no sidecar. */
	allowUnverified: boolean
}

/** A snapshot with all its copies, nearest first. */
export type Candidate = { name: SnapshotName; copies: readonly Copy[]; older: boolean }

/**
 * All snapshots of an artifact, newest first by the date in their names. Nothing is read but listings.
 * A source that fails is troubled from then on, and passed over.
 * @throws {OperatorError} when not one source can be listed; with the sources' own exit code if they agree
 */
export async function findCandidates(
	sources: readonly Source[],
	artifact: SnapshotArtifact,
	wanted: Wanted,
): Promise<Candidate[]> {
	const listed = await Promise.all(
		sources.map(async (source) => {
			if (source.trouble !== undefined) return []
			try {
				const copies = await listCopies(source, wanted.environment, artifact.name)
				const takesOlder = wanted.allowUnverified && artifact.kind === "archive"
				return takesOlder ? [...copies, ...(await listOlderCopies(source, artifact.olderNames))] : copies
			} catch (error) {
				// It answered a moment ago. The others still may.
				source.trouble = systemError(error, `listing ${artifact.name} on ${source.name}`)
				return []
			}
		}),
	)
	if (sources.every(({ trouble }) => trouble !== undefined)) throw noSource(sources)
	const byId = Map.groupBy(listed.flat(), ({ name }) => name.id)
	return [...byId.values()]
		.flatMap((group) => {
			const [first] = group
			return first === undefined
				? []
				: [{ name: first.name, copies: group, older: first.olderKey !== undefined }]
		})
		.filter(({ name }) => wanted.at === undefined || name.takenAt <= wanted.at)
		.sort((a, b) => b.name.takenAt.getTime() - a.name.takenAt.getTime() || (a.name.id < b.name.id ? 1 : -1))
}

/**
 * The newest candidate with a sidecar that can be read and belongs to this host. Bytes of archives aren't looked at.
 * `unreadable` names the newer ones whose sidecars are damaged wherever they stand.
 * @throws {OperatorError} (8) when there is none, and a sidecar says that its snapshot is another environment's
 */
export async function newestSidecar(
	candidates: readonly Candidate[],
	artifact: SnapshotArtifact,
	wanted: Wanted,
): Promise<{ candidate: Candidate; sidecar: Sidecar; unreadable: readonly SnapshotName[] } | undefined> {
	let foreign: unknown
	const unreadable: SnapshotName[] = []
	for (const candidate of candidates) {
		let damaged = false
		for (const copy of candidate.copies) {
			if (copy.olderKey !== undefined || copy.sidecar === undefined) continue
			try {
				const sidecar = await readSidecar(copy)
				rejectForeign(sidecar, artifact, wanted, copy)
				damaged = false
				if (sidecar.host === wanted.host) return { candidate, sidecar, unreadable }
				break
			} catch (error) {
				if (isGuard(error)) foreign ??= error
				damaged = true
			}
		}
		if (damaged) unreadable.push(candidate.name)
	}
	if (foreign !== undefined) throw foreign
	return undefined
}

/** Whether a finished one is this host's, or has a sidecar that can't be read. */
export async function anyConcerns(host: string, candidates: readonly Candidate[]): Promise<boolean> {
	for (const copy of candidates.flatMap(({ copies }) => copies)) {
		if (copy.sidecar === undefined) continue
		const sidecar = await readSidecar(copy).catch(() => undefined)
		if (sidecar === undefined || sidecar.host === host) return true
	}
	return false
}

/** AGE_IDENTITY, as far as it is there, and what to type once it is. */
export const keyFor = (
	{ spoken }: Wanted,
	{ name }: SnapshotArtifact,
	identity: Secret | undefined,
): Key => ({ identity, again: `comfyume restore ${spoken} --only ${name}` })

/**
 * Makes sure that one of a snapshot's copies can be opened, as far as their sidecars tell.
 * @throws {IdentityError} as `requireIdentity`
 */
export async function requireKey({ copies }: Candidate, key: Key): Promise<void> {
	let refused: unknown
	for (const copy of copies) {
		try {
			const sidecar = await readSidecar(copy)
			if (sidecar.kind === "archive") await requireIdentity(sidecar, key)
			return
		} catch (error) {
			// What else is wrong with a copy is for whoever fetches it to say.
			if (error instanceof IdentityError) refused ??= error
		}
	}
	if (refused !== undefined) throw refused
}

/** A snapshot that lies on this machine as it is stored, and is what its sidecar says. */
export type Fetched = {
	/** On the host. */
	storedFile: string
	copy: Copy
	/** Undefined for an older backup. */
	sidecar: StoredSidecar | undefined
	digest: string
	/** Of an incremental snapshot: the archives that hold it, the newest first. */
	assembled?: Awaited<ReturnType<typeof assemble>>
	/** The newest of those that were tried before and were bad everywhere. */
	passedOver?: SnapshotName
}

/** A snapshot that has passed every check there is, in the clear. */
export type Verified = Fetched & {
	sidecar: ArchiveSidecar | undefined
	/** On the host; the archives that hold it, the newest first. One but for an incremental snapshot. */
	parts: readonly [Part, ...Part[]]
	/** What unpacking gives, modes as the catalogue demands them. */
	tree: Tree
	/** Of what it holds; what the sidecar says, where there is one. */
	treeDigest: string
}

export type Acquiring<Of = ArchiveArtifact> = {
	host: LocalHost
	sources: readonly Source[]
	artifact: Of
	wanted: Wanted
	candidates: readonly Candidate[]
	/** Of an incremental snapshot only what these paths, relative to `/`, lie in is fetched. */
	isWanted?: (path: string) => boolean
	/** A directory on the host for what is fetched. */
	workDirectory: string
	now: () => Date
	signal: AbortSignal
	report: Report
}

/**
 * Fetches the newest snapshot that proves right, trying each copy nearest first, then older snapshots. Bad copies nearer
 * by are healed from the good one.
 * @param identity opens those that are encrypted; AGE_IDENTITY, as far as it is there
 * @throws {OperatorError} (3) when nothing proves right: every copy that was tried is named with what is wrong with it;
 *   (8) when a copy is another environment's, and no other is good
 * @throws {IdentityError} (6) when the newest is encrypted, and the identity isn't there or is another's: an older one
 *   in its place would be a restore of the wrong state
 */
export const acquire = (work: Acquiring, identity: Secret | undefined): Promise<Verified> =>
	firstGood(work, (copy) => verifyCopy(work, copy, identity))

/** The same for a copy of what is stored, which needs no key: of an encrypted archive the digest is proof enough. */
export const acquireStored = (work: Acquiring): Promise<ArchiveFetched> =>
	firstGood(work, (copy) =>
		copy.encrypted === true ? fetchCopy(work, copy) : verifyCopy(work, copy, undefined),
	)

/**
 * The newest candidate of which a copy passes, bad ones nearer by healed from it.
 * @param verify gives undefined for a copy that isn't this host's business; throws what is wrong with it
 * @throws as `acquire`
 */
export async function firstGood<Good extends Fetched>(
	work: Acquiring<SnapshotArtifact>,
	verify: (copy: Copy) => Promise<Good | undefined>,
): Promise<Good> {
	const { candidates, report, signal } = work
	const tried: string[] = []
	let foreign: unknown
	let passedOver: SnapshotName | undefined
	for (const candidate of candidates) {
		const bad: Copy[] = []
		let locked: IdentityError | undefined
		for (const copy of candidate.copies) {
			signal.throwIfAborted()
			if (isLetGo(work, candidate, copy)) continue
			try {
				const verified = await verify(copy)
				if (verified === undefined) continue
				noteShrunk(candidate, verified.sidecar, report)
				for (const damaged of bad) await heal(work, damaged, verified)
				if (passedOver === undefined) return verified
				report.warn(
					`${passedOver.id} is bad everywhere: taken is the older ${candidate.name.id}, and what came in between is missing`,
				)
				return { ...verified, passedOver }
			} catch (error) {
				if (signal.aborted || isNoSpace(error)) throw error
				bad.push(copy)
				if (error instanceof IdentityError) {
					// A sidecar may have been damaged: another copy's may name others.
					locked ??= error
					continue
				}
				if (isGuard(error)) foreign ??= error
				const said = `${copy.source.name}: ${candidate.name.id}: ${messageOf(error)}`
				tried.push(said)
				report.note(`skipped ${said}`)
			}
		}
		if (locked !== undefined) throw locked
		// An archive without a sidecar was never finished: nobody has counted on it.
		if (bad.some(({ sidecar, olderKey }) => sidecar !== undefined || olderKey !== undefined))
			passedOver ??= candidate.name
	}
	throw foreign ?? nothingGood(work, tried)
}

/**
 * Retention takes a snapshot from the share by its sidecar, and leaves an archive that later ones build upon. That isn't
 * damage, and is not to be healed. The newest is never taken: without its sidecar it was never finished.
 */
function isLetGo(
	{ candidates, wanted }: Acquiring<SnapshotArtifact>,
	candidate: Candidate,
	{ sidecar, olderKey }: Copy,
): boolean {
	if (sidecar !== undefined || olderKey !== undefined) return false
	if (wanted.at === undefined && candidate === candidates[0]) return false
	return candidate.copies.some((other) => other.sidecar !== undefined)
}

function noteShrunk({ name }: Candidate, sidecar: StoredSidecar | undefined, report: Report): void {
	if (sidecar?.kind !== "archive" || sidecar.shrunkFromBytes === undefined) return
	report.note(
		`${name.id} is much smaller than the snapshot before it ` +
			`(${sidecar.unpackedBytes} of ${sidecar.shrunkFromBytes} bytes)`,
	)
}

type ArchiveFetched = Fetched & { sidecar: ArchiveSidecar | undefined }

/** What it takes to look at one copy: no others are asked. */
export type OneCopy<Of = ArchiveArtifact> = Omit<Acquiring<Of>, "sources" | "candidates">

/**
 * A copy whose bytes are what its sidecar says, on this machine's disk.
 * @param before is given the sidecar before anything is fetched
 * @returns undefined for a snapshot of another host, which is passed over in silence
 */
export async function fetchCopy(
	work: OneCopy,
	copy: Copy,
	before: (sidecar: ArchiveSidecar) => Promise<unknown> = async () => {},
): Promise<ArchiveFetched | undefined> {
	const { host, artifact, signal, report, workDirectory } = work
	const read = copy.olderKey === undefined ? await readOwnSidecar(work, copy, "archive") : undefined
	if (read === "foreign") return undefined
	const sidecar = read
	if (sidecar !== undefined) await before(sidecar)
	if (sidecar?.incremental !== undefined) {
		await host.files.makeDirectory(workDirectory, 0o700)
		await clear(host, workDirectory)
		const assembled = await assemble(copy, sidecar, {
			host,
			files: (id) => `${workDirectory}/${artifact.name}.${id}.tar.zst`,
			...(work.isWanted === undefined ? {} : { isWanted: work.isWanted }),
			limits: limitsOf(artifact),
			signal,
			onProgress: (doneBytes, totalBytes) =>
				report.progress({ doneBytes, totalBytes, from: copy.source.name }),
		})
		const storedFile = assembled.parts[0]?.archiveFile
		if (storedFile === undefined) throw new OperatorError("it has no archive")
		return { storedFile, copy, sidecar, digest: sidecar.digest, assembled }
	}
	const ending =
		copy.olderKey !== undefined ? ".tar.gz" : copy.encrypted === true ? ".tar.zst.age" : ".tar.zst"
	const fetched = await fetchWhole(work, copy, { sidecar, ending })
	if (sidecar?.encryption !== undefined)
		await checkEncrypted(
			host.path(fetched.storedFile),
			sidecar.sizeBytes,
			sidecar.encryption.recipients.length,
		)
	return { ...fetched, copy, sidecar }
}

/**
 * The sidecar of a copy, held against what was looked for and what the listing says.
 * @returns foreign for a snapshot of another host, whose business it is
 * @throws {OperatorError} (8) when it is another environment's; (3) when it is damaged or of something else
 */
export async function readOwnSidecar<Kind extends StoredSidecar["kind"]>(
	{ artifact, wanted }: OneCopy<SnapshotArtifact>,
	copy: Copy,
	kind: Kind,
): Promise<Extract<StoredSidecar, { kind: Kind }> | "foreign"> {
	const sidecar = await readSidecar(copy)
	rejectForeign(sidecar, artifact, wanted, copy)
	if (sidecar.host !== wanted.host) return "foreign"
	if (sidecar.kind === "commit" || sidecar.kind !== kind)
		throw new OperatorError(`its sidecar is that of a ${sidecar.kind}, not of an ${kind}`)
	if (copy.archive !== undefined && copy.archive.sizeBytes !== sidecar.sizeBytes)
		throw new OperatorError(
			`its archive has ${copy.archive.sizeBytes} bytes, its sidecar says ${sidecar.sizeBytes}`,
		)
	return sidecar as Extract<StoredSidecar, { kind: Kind }>
}

/**
 * Brings a copy's archive to the work directory, held against its sidecar's digest where it has one.
 * @throws {OperatorError} (3) when it is another
 */
export async function fetchWhole(
	{ host, artifact, signal, report, workDirectory }: OneCopy<SnapshotArtifact>,
	copy: Copy,
	{ sidecar, ending }: { sidecar: StoredSidecar | undefined; ending: string },
): Promise<{ storedFile: string; digest: string }> {
	await host.files.makeDirectory(workDirectory, 0o700)
	const storedFile = `${workDirectory}/${artifact.name}${ending}`
	await host.files.remove(storedFile)
	const { digest } = await fetchArchive(copy, host.path(storedFile), {
		signal,
		onProgress: (doneBytes) =>
			report.progress({
				doneBytes,
				from: copy.source.name,
				...(copy.archive === undefined ? {} : { totalBytes: copy.archive.sizeBytes }),
			}),
	})
	if (sidecar !== undefined && digest !== sidecar.digest)
		throw new OperatorError(
			`its digest is ${digest.slice(0, 12)}…, its sidecar says ${sidecar.digest.slice(0, 12)}…`,
		)
	return { storedFile, digest }
}

const limitsOf = ({ paths, mostBytes }: ArchiveArtifact) => ({
	roots: paths.map((path) => path.slice(1)),
	mostBytes,
	mostMembers: 1_000_000,
})

/**
 * Fetches one copy, opens it, and holds it against its sidecar, the limits and the artifact's floor: all that can be said
 * of an archive before it is unpacked. Nothing is healed and no other copy is tried.
 * @returns undefined for a snapshot of another host
 * @throws {OperatorError} saying what is wrong with it; {IdentityError} when it is encrypted for others
 */
export async function verifyCopy(
	work: OneCopy,
	copy: Copy,
	identity: Secret | undefined,
): Promise<Verified | undefined> {
	const { host, artifact, wanted, signal } = work
	const key = keyFor(wanted, artifact, identity)
	const fetched = await fetchCopy(work, copy, (sidecar) => requireIdentity(sidecar, key))
	if (fetched === undefined) return undefined
	const { sidecar, assembled } = fetched
	if (assembled !== undefined) return judged(work, fetched, key, assembled)
	const archiveFile = await inTheClear(work, fetched, key)
	if (sidecar === undefined) await testCompression(host, archiveFile)
	const tree = await inspectArchive(host.path(archiveFile), limitsOf(artifact), signal)
	return judged(work, fetched, key, { tree, parts: [{ archiveFile }] })
}

/** Where the archive lies that tar can read: opened beside the encrypted one, which a bad copy may be healed from. */
async function inTheClear(
	{ host, artifact, signal, workDirectory }: OneCopy,
	{ storedFile, sidecar }: ArchiveFetched,
	key: Key,
): Promise<string> {
	if (sidecar?.encryption === undefined) return storedFile
	const archiveFile = `${workDirectory}/${artifact.name}.tar.zst`
	await host.files.remove(archiveFile)
	await openArchive(sidecar, key, { from: host.path(storedFile), to: host.path(archiveFile), signal })
	return archiveFile
}

/** Held to the floor, and to what the sidecar says of the whole. */
async function judged(
	{ host, artifact }: OneCopy,
	fetched: ArchiveFetched,
	key: Key,
	{ tree: inspected, parts }: { tree: Tree; parts: readonly Part[] },
): Promise<Verified> {
	const { sidecar } = fetched
	const problems = floorProblems(artifact, inspected)
	if (problems.length > 0) throw new OperatorError(`it holds too little: ${problems.join("; ")}`)
	const ownership = sidecar?.ownership ?? !host.standIn
	const tree = withDemandedModes(artifact, inspected, { ownership })
	const digest = treeDigest(tree, { ownership })
	if (sidecar !== undefined && digest !== (await openTreeDigest(sidecar, key)))
		throw new OperatorError("its content is not what its sidecar says")
	const [first, ...more] = parts
	if (first === undefined) throw new OperatorError("it has no archive")
	return { ...fetched, parts: [first, ...more], tree, treeDigest: digest }
}

/** Archives of a copy that was tried before must not lie in the way of the next one's. */
async function clear(host: LocalHost, directory: string): Promise<void> {
	for (const name of await readdir(host.path(directory))) await host.files.remove(join(directory, name))
}

function rejectForeign(sidecar: Sidecar, artifact: SnapshotArtifact, wanted: Wanted, copy: Copy): void {
	if (sidecar.environment !== wanted.environment)
		throw new OperatorError(
			`${copy.source.name}: ${copy.name.id} of ${artifact.name} was taken from ${sidecar.environment}, ` +
				`and this is ${wanted.environment}`,
			{
				exitCode: exitCodes.refusedByGuard,
				hint: `move it out of ${copy.source.store.place}/${wanted.environment}/${artifact.name}, or restore --env ${sidecar.environment}`,
			},
		)
	if (sidecar.artifact !== artifact.name)
		throw new OperatorError(`its sidecar is that of ${sidecar.artifact}, not of ${artifact.name}`)
}

const isGuard = (error: unknown) =>
	error instanceof OperatorError && error.exitCode === exitCodes.refusedByGuard
const isNoSpace = (error: unknown) => error instanceof OperatorError && error.exitCode === exitCodes.noSpace

function nothingGood(
	{ sources, artifact, wanted, candidates }: Acquiring<SnapshotArtifact>,
	tried: readonly string[],
): OperatorError {
	const unreachable = sources.flatMap(({ name, trouble }) =>
		trouble === undefined ? [] : [`${name}: ${trouble.message}`],
	)
	const found =
		tried.length === 0
			? `there is no snapshot of ${artifact.name}${wanted.at === undefined ? "" : ` from before ${wanted.at.toISOString()}`}`
			: `no copy of ${artifact.name} is good: ${tried.join("; ")}`
	const again = `comfyume restore ${wanted.spoken} --only ${artifact.name}`
	const oldest = candidates.at(-1)
	return new OperatorError([found, ...unreachable].join("; "), {
		hint:
			tried.length === 0 && artifact.kind === "archive"
				? `${again} --allow-unverified   # also takes backups without a sidecar`
				: tried.length === 0 || oldest === undefined
					? `comfyume backup status ${wanted.spoken} --only ${artifact.name}`
					: `${again} --at ${dayBefore(oldest.name.takenAt)}   # what is older, where a place has it`,
	})
}

/** The last day that begins before a time, as `--at` takes it: the state at its beginning. */
const dayBefore = (time: Date) => new Date(time.getTime() - 1).toISOString().slice(0, 10)

function noSource(sources: readonly Source[]): OperatorError {
	const troubles = sources.flatMap(({ name, trouble }) => (trouble === undefined ? [] : [{ name, trouble }]))
	const codes = new Set(troubles.map(({ trouble }) => trouble.exitCode))
	const [only] = codes
	const hint = troubles.map(({ trouble }) => trouble.hint).find((text) => text !== undefined)
	return new OperatorError(
		troubles.length === 0
			? "no source is configured: neither a share nor an object store"
			: `no source can be used: ${troubles.map(({ name, trouble }) => `${name}: ${trouble.message}`).join("; ")}`,
		{
			exitCode: troubles.length === 0 ? exitCodes.usage : codes.size === 1 && only !== undefined ? only : 3,
			...(hint === undefined ? {} : { hint }),
		},
	)
}
