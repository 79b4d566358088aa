// Puts a snapshot into a destination, piece by piece, the sidecar last: with it, it counts.
import {
	archiveKey,
	aSecondLater,
	incrementalOf,
	indexKey,
	renderSidecar,
	type StoredSidecar,
	sidecarKey,
} from "../artifacts/snapshot.ts"
import {
	alone,
	canHeal,
	digestOfObject,
	fetchArchive,
	isAnothers,
	labelOf,
	type Source,
} from "../artifacts/source.ts"
import { digestFile } from "../artifacts/tree.ts"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import { requireRoom, requireSpaceOn, spaceFactor } from "../host/disk.ts"
import type { Report } from "../plan/step.ts"
import type { Lease } from "../storage/share-lock.ts"
import { type StepContext, workDirectory } from "./context.ts"

type Facts = { sizeBytes: number; digest: string }
/**
 * `file`, a path on the host, is undefined for what lies in another destination only. `isSmall`: what stands there already
 * is read before it counts.
 */
type Piece = Facts & { key: string; file?: string; isSmall?: boolean }

export type Storing = {
	context: StepContext
	artifact: { name: string }
	/** Destinations that a piece can be copied from when this run hasn't made it. */
	others: readonly Source[]
}

/** A snapshot on this host. Paths are the host's; undefined of what has not been fetched: some destination has it. */
export type Stored = { id: string; sidecar: StoredSidecar; archiveFile?: string; indexFile?: string }

/**
 * While no other host writes there. A name that is another host's, taken in the same second of the same bytes, is left
 * to it, and this one is dated a second later.
 * @throws {OperatorError} when the destination doesn't take it; what stands there then doesn't count
 */
export async function storeSnapshot(
	storing: Storing,
	destination: Source,
	snapshot: Stored,
	report: Report,
): Promise<void> {
	const { context, artifact } = storing
	const purpose = `backup of ${artifact.name}`
	const again = `comfyume backup ${context.spoken} --only ${artifact.name}`
	await alone(destination, { purpose, again, note: report.note }, async (lease) => {
		for (let dated = snapshot; ; dated = { ...dated, ...aSecondLater(dated.sidecar) }) {
			if (await storeAs(storing, destination, dated, { lease, report })) return
			const taken = `${dated.id} is another host's on ${labelOf(destination)}`
			// Its index names it in every line.
			if (incrementalOf(dated.sidecar) !== undefined) throw new OperatorError(taken, { hint: again })
			report.note(`${taken}: dated a second later`)
		}
	})
}

/** False when the name is another host's. */
async function storeAs(
	storing: Storing,
	destination: Source,
	{ id, sidecar, archiveFile, indexFile }: Stored,
	{ lease, report }: { lease: Lease; report: Report },
): Promise<boolean> {
	const { context, artifact } = storing
	const { host } = context
	const { digest, sizeBytes } = sidecar
	const incremental = incrementalOf(sidecar)
	const key = (archive: string) => archiveKey(sidecar, archive)
	const pieces: Piece[] = [
		...(incremental?.archives ?? []).map((each) => ({
			key: key(each.id),
			digest: each.digest,
			sizeBytes: each.sizeBytes,
		})),
		{ key: key(id), digest, sizeBytes, ...(archiveFile === undefined ? {} : { file: archiveFile }) },
		...(incremental === undefined
			? []
			: [
					{
						key: indexKey(sidecar.environment, sidecar.artifact, id),
						...incremental.index,
						isSmall: true,
						...(indexFile === undefined ? {} : { file: indexFile }),
					},
				]),
	]
	const isTaken = () => isAnothers(destination, { id, sidecar })
	// What stands under its name is whole, and must not be taken for a damaged piece of this one.
	if (incremental !== undefined && (await isTaken())) return false
	for (const piece of pieces) await putPiece(storing, destination, piece, report)
	const file = `${workDirectory}/${artifact.name}.sidecar.json`
	await host.write(file, renderSidecar(sidecar), { mode: 0o600 })
	const facts = await digestFile(host.path(file))
	// From here on it counts.
	await lease.require()
	return putWhole(storing, destination, {
		key: sidecarKey(sidecar, id),
		file,
		...facts,
		isSmall: true,
		isTaken,
	})
}

async function putPiece(storing: Storing, destination: Source, piece: Piece, report: Report): Promise<void> {
	const { store } = destination
	if (piece.file === undefined && (await stands(store, piece))) return
	requireRoom(await store.room?.(), {
		bytes: Math.ceil(piece.sizeBytes * spaceFactor),
		// The piece, its sidecar, and directories on the way.
		files: 4,
		shown: destination.name,
		forWhat: storing.artifact.name,
		directory: store.place,
	})
	if (piece.file !== undefined) {
		await putWhole(storing, destination, { ...piece, file: piece.file }, report)
		return
	}
	const { host } = storing.context
	const file = await fetchPiece(storing, piece, report)
	try {
		await putWhole(storing, destination, { ...piece, file }, report)
	} finally {
		await host.files.remove(file)
	}
}

/** From the first of the others whose bytes are what they should be. */
async function fetchPiece(
	{ context, artifact, others }: Storing,
	piece: Piece,
	report: Report,
): Promise<string> {
	const { host, signal } = context
	const file = `${workDirectory}/piece`
	const tried: string[] = []
	await host.files.makeDirectory(workDirectory, 0o700)
	await requireSpaceOn(host, workDirectory, { bytes: Math.ceil(piece.sizeBytes * spaceFactor) })
	for (const source of others) {
		if (source.trouble !== undefined) continue
		try {
			const archive = await source.store.head(piece.key)
			if (archive === undefined) continue
			await host.files.remove(file)
			const fetched = await fetchArchive({ source, archive }, host.path(file), {
				signal,
				onProgress: (doneBytes) =>
					report.progress({ doneBytes, totalBytes: piece.sizeBytes, from: source.name }),
			})
			if (fetched.digest === piece.digest) return file
			tried.push(`${labelOf(source)}: its digest is ${fetched.digest.slice(0, 12)}…`)
		} catch (error) {
			if (signal.aborted) throw error
			tried.push(`${labelOf(source)}: ${messageOf(error)}`)
		}
	}
	throw new OperatorError(
		`${piece.key}, a part of the snapshot, is nowhere as it should be${tried.length > 0 ? `: ${tried.join("; ")}` : ""}`,
		{ hint: `comfyume backup ${context.spoken} --only ${artifact.name} --full   # packs it anew` },
	)
}

/**
 * What stands there already counts only in its right size: a run that was cut off, or a disk, may have damaged it. What
 * is small is read: a damaged sidecar of the right size would otherwise never be put right while nothing else changes.
 */
async function stands(store: Source["store"], { key, sizeBytes, digest, isSmall }: Piece): Promise<boolean> {
	if ((await store.head(key))?.sizeBytes !== sizeBytes) return false
	return isSmall !== true || (await digestOfObject(store, key)) === digest
}

/**
 * Puts a piece where it isn't, and sets aside what stands there damaged.
 * False when `isTaken` says that it is somebody else's.
 */
async function putWhole(
	{ context, artifact }: Storing,
	{ name, store }: Source,
	{
		key,
		file,
		sizeBytes,
		digest,
		isSmall = false,
		isTaken,
	}: Piece & { file: string; isTaken?: () => Promise<boolean> },
	report?: Report,
): Promise<boolean> {
	const { host, signal, now, spoken } = context
	const onProgress = (doneBytes: number) =>
		report?.progress({ doneBytes, totalBytes: sizeBytes, from: `to ${name}` })
	const put = () => store.put(key, host.path(file), { sizeBytes, digest, ifAbsent: true, signal, onProgress })
	if ((await put()) === "stored") return true
	if ((await isTaken?.()) === true) return false
	if (await stands(store, { key, sizeBytes, digest, isSmall })) return true
	if (!canHeal(store))
		throw new OperatorError(`${key} stands damaged on ${name}, where nothing is replaced`, {
			hint: `comfyume backup ${spoken} --only ${artifact.name} --full   # packs it anew, under another name`,
		})
	await store.setAside(key, now())
	await put()
	return true
}

/** Several destinations failed: one error says all of it. */
export function throwTogether(failures: readonly unknown[]): void {
	const [first] = failures
	if (failures.length === 0) return
	if (failures.length === 1) throw first
	const codes = new Set(
		failures.map((error) => (error instanceof OperatorError ? error.exitCode : undefined)),
	)
	const [code] = codes
	throw new OperatorError(failures.map(messageOf).join("; "), {
		exitCode: codes.size === 1 && code !== undefined ? code : exitCodes.incomplete,
		cause: first,
	})
}

export function troubleOf(destinations: readonly Source[]): OperatorError {
	const troubles = destinations.flatMap(({ trouble }) => trouble ?? [])
	try {
		throwTogether(troubles)
	} catch (error) {
		if (error instanceof OperatorError) return error
	}
	return new OperatorError(
		"there is nowhere to back up to: neither a share nor an object store is configured",
		{
			exitCode: exitCodes.usage,
			hint: "comfyume config check",
		},
	)
}
