// One archive artifact is backed up: its newest snapshot, in every destination, holds what lies on the disk now.

import { readIndex } from "../artifacts/assemble.ts"
import type { ArchiveArtifact } from "../artifacts/catalogue.ts"
import { acquireStored, findCandidates, newestSidecar, type Wanted } from "../artifacts/chain.ts"
import type { Base } from "../artifacts/incremental.ts"
import { type Lineage, readLineage, treeDigestOf, writeLineage } from "../artifacts/lineage.ts"
import type { ArchiveSidecar } from "../artifacts/snapshot.ts"
import { treeOfIndex } from "../artifacts/snapshot-index.ts"
import { type Copy, lackingPiece, readSidecar, type Source } from "../artifacts/source.ts"
import { readArtifact, type Taken, takeSnapshot, type Unread } from "../artifacts/take.ts"
import { type Tree, treeDigest } from "../artifacts/tree.ts"
import { messageOf, OperatorError } from "../errors.ts"
import { type Finding, needed, type Report, type Step, satisfied, unknown } from "../plan/step.ts"
import { formatBytes } from "../ui/format.ts"
import { ageSeconds, clearWork, type Held, heldKey, type StepContext, workDirectory } from "./context.ts"
import { once } from "./open.ts"
import { storeSnapshot, throwTogether, troubleOf } from "./store-snapshot.ts"

type Standing = { id: string; sidecar: ArchiveSidecar; copy: Copy }
/** `lacks`: why the newest snapshot isn't the one that must stand there; undefined when it is. */
type Stood = { destination: Source; newest: Standing | undefined; lacks: string | undefined }
type Surveyed = {
	/** Of what lies on the host; undefined when an optional artifact isn't there. */
	digest: string | undefined
	tree: Tree
	standing: readonly Stood[]
}

export type BackupArchiveOptions = {
	/** Where snapshots go: the share and R2, as far as they are configured. */
	destinations: readonly Source[]
	/** Those of them that must have it after this run; what the others hold is only made use of. */
	due?: readonly Source[]
	/** Pack everything anew: an incremental snapshot that builds upon no other, files read that were remembered. */
	full?: boolean
	/** Where it notes which of them hold it now. */
	held?: Held
}

export function backupArchive(
	context: StepContext,
	artifact: ArchiveArtifact,
	{ destinations, due = destinations, full = false, held = new Map() }: BackupArchiveOptions,
): Step {
	const { environment, hostConfiguration, host, spoken, now, signal, summary } = context
	const ownership = !host.standIn
	const recipients = artifact.secret ? environment.backups.recipients : []
	const owner = { environment: environment.name, host: hostConfiguration.name }
	const wanted: Wanted = {
		environment: environment.name,
		host: hostConfiguration.name,
		spoken,
		allowUnverified: false,
	}
	const digests = once(() => context.openDigests(artifact.name))
	const unread: Unread = new Map()

	/** The newest snapshot in one destination all of whose pieces are there in their right size. */
	const newestIn = async (destination: Source): Promise<Standing | undefined> => {
		if (destination.trouble !== undefined) return undefined
		const candidates = await findCandidates([destination], artifact, wanted).catch((error) => {
			// What fails here keeps the artifact from being stored there, and from nowhere else.
			if (destination.trouble === undefined) throw error
			return []
		})
		const newest = await newestSidecar(candidates, artifact, wanted)
		if (newest?.sidecar.kind !== "archive") return undefined
		const { sidecar, candidate } = newest
		const copy = candidate.copies.find(({ sidecar }) => sidecar !== undefined)
		const held = new Map(candidates.flatMap(({ copies }) => copies.map((each) => [each.name.id, each])))
		if (copy === undefined || lackingPiece(copy, sidecar, held) !== undefined) return undefined
		return { id: candidate.name.id, sidecar, copy }
	}

	const survey = async (report: Report): Promise<Surveyed> => {
		const found = await Promise.all(
			destinations.map(async (destination) => ({ destination, newest: await newestIn(destination) })),
		)
		const cache = full ? undefined : await digests()
		const tree = await readArtifact({
			...{ host, artifact, workDirectory, now, signal, unread },
			...(cache && { digests: cache }),
			earlier: once(() => baseOf(newestOf(found), report)),
		})
		await cache?.save(new Set(tree.entries.map(({ path }) => `/${path}`)))
		const digest = tree.entries.length === 0 ? undefined : treeDigest(tree, { ownership })
		const standing = await compare(found, digest)
		for (const { destination, newest, lacks } of standing) {
			if (newest !== undefined && lacks === undefined) held.set(heldKey(artifact, destination), newest.id)
			else held.delete(heldKey(artifact, destination))
		}
		return { tree, digest, standing }
	}

	/** Holds what stands in each destination against a state of the host. */
	const compare = async (
		found: readonly Omit<Stood, "lacks">[],
		digest: string | undefined,
	): Promise<Stood[]> => {
		const lineage = await readLineage(host, artifact.name, owner)
		return found.map(({ destination, newest }) => {
			const lacks = whatLacks(destination, newest, { recipients, digest, lineage })
			return { destination, newest, lacks }
		})
	}

	const isCurrent = ({ lacks }: Stood) => lacks === undefined
	const isLacking = ({ destination, lacks }: Stood) => due.includes(destination) && lacks !== undefined

	let surveyed: Surveyed | undefined
	// What this run has stored. A server in use may have changed again by the second check, and is backed up all the same.
	let taken: Taken | undefined

	return {
		id: artifact.name,
		title: artifact.name,
		check: async (report) => {
			surveyed = await survey(report)
			const { tree } = surveyed
			if (surveyed.digest === undefined) return absent(surveyed.standing)
			const digest = taken?.treeDigest ?? surveyed.digest
			const standing = await compare(surveyed.standing, digest)
			if (digest !== surveyed.digest) report.note("it has changed again since; the next backup takes that")
			for (const { path, because, missed, earlier } of tree.leftOut)
				report[missed ? "warn" : "note"](
					earlier === undefined
						? `${path} is left out: ${because}`
						: `${path} stays as ${earlier} has it: ${because}`,
				)
			const current = standing.filter(isCurrent)
			const lacking = standing.filter(isLacking)
			const [first] = current
			noteSummary(current, lacking)
			if (full && taken === undefined) return needed("it was asked to be packed anew")
			if (lacking.length === 0 && first?.newest !== undefined)
				return satisfied(`${first.newest.id} holds it; ${describePlaces(current)}`)
			const unusable = lacking.some(({ destination }) => destination.trouble !== undefined)
			return (unusable ? unknown : needed)(
				lacking
					.map(({ destination, lacks }) =>
						destination.trouble === undefined ? lacks : `${destination.name}: ${destination.trouble.message}`,
					)
					.join("; "),
				lacking.map(({ destination }) => destination.trouble?.hint).find((hint) => hint !== undefined),
			)
		},
		apply: async (report) => {
			const { digest, standing } = surveyed ?? (await survey(report))
			if (digest === undefined) throw lost(standing)
			const lacking = full
				? standing.filter(({ destination }) => due.includes(destination))
				: standing.filter(isLacking)
			const usable = lacking.filter(({ destination }) => destination.trouble === undefined)
			if (usable.length === 0) throw troubleOf(lacking.map(({ destination }) => destination))
			try {
				taken = (full ? undefined : await reuse(standing, digest, report)) ?? (await take(standing, report))
				// Before it is stored: a run that ends in between must not leave files that don't know what they descend from.
				const { treeDigest } = taken
				await writeLineage(host, artifact.name, {
					...owner,
					snapshot: taken.id,
					treeDigest,
					holds: treeDigest,
				})
				await storeInAll(lacking, taken, report)
			} finally {
				await clearWork(host)
			}
		},
	}

	/**
	 * It isn't on the host: no fault, unless there was one to back up before. That is told by any sidecar of it, also one
	 * whose snapshot isn't whole, and by the host's own note; and never by places that can't be asked.
	 */
	async function absent(standing: Surveyed["standing"]): Promise<Finding> {
		const usable = destinations.filter(({ trouble }) => trouble === undefined)
		const candidates = usable.length === 0 ? [] : await findCandidates(usable, artifact, wanted)
		const copies = candidates.flatMap((candidate) => candidate.copies)
		const seen = await anyIsOwn(copies.filter(({ sidecar }) => sidecar !== undefined))
		const noted = (await readLineage(host, artifact.name, owner)) !== undefined
		if (seen || noted) throw lost(standing)
		if (usable.length === 0)
			return unknown(`it is not on ${host.name}, and no place can be asked whether it ever was`)
		summary.set(artifact.name, {
			artifact: artifact.name,
			source: "nowhere",
			snapshot: "none",
			verified: "not on this host",
			ok: true,
		})
		return satisfied("it is not on this host, and never was")
	}

	/** Of this host, or of which nobody can tell whose it is. */
	async function anyIsOwn(copies: readonly Copy[]): Promise<boolean> {
		for (const copy of copies) {
			const sidecar = await readSidecar(copy).catch(() => undefined)
			if (sidecar === undefined || sidecar.host === hostConfiguration.name) return true
		}
		return false
	}

	function lost(standing: Surveyed["standing"]): OperatorError {
		const id = standing.map(({ newest }) => newest?.id).find((known) => known !== undefined)
		return new OperatorError(
			`${artifact.name} is gone from ${host.name}: there is nothing at ${artifact.paths.join(", ")}, and ${id ?? "a snapshot"} holds it`,
			{
				hint: `comfyume restore ${spoken} --only ${artifact.name}   # or, where it is meant to be gone, name it under backups.without in comfyume.yaml`,
			},
		)
	}

	/** A destination that fails doesn't keep the others from getting it. */
	async function storeInAll(
		lacking: readonly { destination: Source }[],
		snapshot: Taken,
		report: Report,
	): Promise<void> {
		const failures: unknown[] = []
		for (const { destination } of lacking) {
			try {
				if (destination.trouble !== undefined) throw destination.trouble
				await storeSnapshot(
					{ context, artifact, others: destinations.filter((other) => other !== destination) },
					destination,
					snapshot,
					report,
				)
			} catch (error) {
				if (signal.aborted) throw error
				failures.push(error)
			}
		}
		if (failures.length > 0) await noteStanding(snapshot, report)
		throwTogether(failures)
	}

	/** The table must show what is stored although something failed. */
	async function noteStanding({ treeDigest }: Taken, report: Report): Promise<void> {
		const standing = await compare((await survey(report)).standing, treeDigest)
		noteSummary(standing.filter(isCurrent), standing.filter(isLacking))
	}

	/** What one destination has already is copied to those that lack it: same name, same bytes everywhere. */
	async function reuse(
		standing: Surveyed["standing"],
		digest: string,
		report: Report,
	): Promise<Taken | undefined> {
		const having = standing.filter(isCurrent)
		const sources = having.map(({ destination }) => destination)
		const newest = having[0]?.newest
		if (newest === undefined) return undefined
		const { id, sidecar } = newest
		// Its pieces are fetched one by one as they are missed, each held against its digest.
		const facts = { id, treeDigest: digest, changedWhileRead: [] }
		if (sidecar.incremental !== undefined) return { ...facts, sidecar }
		const candidates = (await findCandidates(sources, artifact, wanted)).filter(({ name }) => name.id === id)
		try {
			const fetched = await acquireStored({
				host,
				sources,
				artifact,
				wanted,
				candidates,
				workDirectory,
				now,
				signal,
				report,
			})
			if (fetched.sidecar === undefined) return undefined
			return { ...facts, sidecar: fetched.sidecar, archiveFile: fetched.storedFile }
		} catch (error) {
			if (signal.aborted) throw error
			report.warn(`${id} can't be copied and is taken anew: ${messageOf(error)}`)
			return undefined
		}
	}

	async function take(standing: Surveyed["standing"], report: Report): Promise<Taken> {
		const predecessor = newestOf(standing)
		const cache = full ? undefined : await digests()
		// What can't be read is only there.
		const isCarrying = surveyed?.tree.leftOut.some(({ earlier }) => earlier !== undefined) === true
		const base = full && !isCarrying ? undefined : await baseOf(predecessor, report)
		const taken = await takeSnapshot({
			host,
			artifact,
			origin: { comfyume: context.comfyume, ...owner },
			predecessor: predecessor?.sidecar,
			recipients,
			workDirectory,
			...(base && { base }),
			...{ full, unread },
			...(cache && { digests: cache }),
			now,
			signal,
		})
		const { shrunkFromBytes, unpackedBytes } = taken.sidecar
		if (shrunkFromBytes !== undefined)
			report.warn(
				`it shrank from ${shrunkFromBytes} to ${unpackedBytes} bytes since ${predecessor?.id}: ` +
					"both snapshots are kept; look whether something is missing on the server",
			)
		for (const said of taken.changedWhileRead) report.note(`while it was read: ${said}`)
		return taken
	}

	async function baseOf(predecessor: Standing | undefined, report: Report): Promise<Base | undefined> {
		const incremental = predecessor?.sidecar.incremental
		if (!artifact.incremental || predecessor === undefined || incremental === undefined) return undefined
		try {
			const { entries } = await readIndex(predecessor.copy, predecessor.sidecar)
			const { id, sidecar } = predecessor
			const own = treeOfIndex(entries.filter(({ archive }) => archive === id)).sizeBytes
			const { digest, sizeBytes } = sidecar
			return { entries, archives: [{ id, digest, sizeBytes, unpackedBytes: own }, ...incremental.archives] }
		} catch (error) {
			if (signal.aborted) throw error
			report.warn(`${predecessor.id} can't be built upon, everything is packed anew: ${messageOf(error)}`)
			return undefined
		}
	}

	function noteSummary(current: Surveyed["standing"], lacking: Surveyed["standing"]): void {
		const newest = current[0]?.newest
		const missing = lacking.map(
			({ destination, newest: other }) =>
				`${destination.name} ${destination.trouble === undefined ? (other === undefined ? "has none" : "has an older one") : "can't be used"}`,
		)
		summary.set(artifact.name, {
			artifact: artifact.name,
			source: current.map(({ destination }) => destination.name).join(", ") || "nowhere",
			snapshot: newest?.id ?? "none",
			verified: missing.length > 0 ? `missing: ${missing.join("; ")}` : describeContent(newest?.sidecar),
			ok: missing.length === 0,
			...(newest === undefined
				? {}
				: {
						digest: newest.sidecar.digest.slice(0, 12),
						ageSeconds: ageSeconds(context, new Date(newest.sidecar.takenAt)),
					}),
		})
	}
}

/** Undefined when the newest snapshot holds what lies on the host, for those who are to open it. */
function whatLacks(
	{ name }: Source,
	newest: Standing | undefined,
	wanted: { recipients: readonly string[]; digest: string | undefined; lineage: Lineage | undefined },
): string | undefined {
	if (newest === undefined) return `${name} has no snapshot`
	const { id, sidecar } = newest
	const { recipients } = wanted
	if (recipients.length > 0 && sidecar.encryption === undefined) return `${id} lies in the clear on ${name}`
	if (recipients.length > 0 && !isSameSet(recipients, sidecar.encryption?.recipients ?? []))
		return `${id} on ${name} is encrypted for others than are configured now`
	const holds = treeDigestOf(newest, wanted.lineage)
	if (holds === undefined) return `${id} on ${name} is encrypted, and this host has no note of what is in it`
	return holds === wanted.digest ? undefined : `changed since ${id} on ${name}`
}

const newestOf = (standing: readonly { newest: Standing | undefined }[]): Standing | undefined =>
	standing.flatMap(({ newest }) => newest ?? []).sort((a, b) => (a.id < b.id ? 1 : -1))[0]

const isSameSet = (some: readonly string[], others: readonly string[]) =>
	some.every((one) => others.includes(one)) && others.every((one) => some.includes(one))

const describeContent = (sidecar: ArchiveSidecar | undefined) =>
	sidecar === undefined
		? "nothing"
		: `${sidecar.members} ${sidecar.members === 1 ? "member" : "members"}, ${formatBytes(sidecar.unpackedBytes)}` +
			(sidecar.encryption === undefined ? "" : ", encrypted")

const describePlaces = (standing: readonly { destination: Source }[]) =>
	`it stands on ${standing.map(({ destination }) => destination.name).join(" and ")}`
