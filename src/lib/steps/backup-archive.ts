// One archive artifact is backed up: its newest snapshot, in every destination, holds what lies on the disk now.

import { readIndex } from "../artifacts/assemble.ts"
import type { ArchiveArtifact } from "../artifacts/catalogue.ts"
import { acquire, findCandidates, newestSidecar, type Wanted } from "../artifacts/chain.ts"
import type { Base } from "../artifacts/incremental.ts"
import { writeLineage } from "../artifacts/lineage.ts"
import type { ArchiveSidecar } from "../artifacts/snapshot.ts"
import { treeOfIndex } from "../artifacts/snapshot-index.ts"
import { type Copy, lackingPiece, type Source } from "../artifacts/source.ts"
import { readArtifact, type Taken, takeSnapshot } from "../artifacts/take.ts"
import { type Tree, treeDigest } from "../artifacts/tree.ts"
import { messageOf, OperatorError } from "../errors.ts"
import { type Finding, needed, type Report, type Step, satisfied, unknown } from "../plan/step.ts"
import { formatBytes } from "../ui/format.ts"
import { ageSeconds, clearWork, type StepContext, workDirectory } from "./context.ts"
import { once } from "./open.ts"
import { storeSnapshot, throwTogether, troubleOf } from "./store-snapshot.ts"

type Standing = { id: string; sidecar: ArchiveSidecar; copy: Copy }
type Surveyed = {
	/** Of what lies on the host; undefined when an optional artifact isn't there. */
	digest: string | undefined
	tree: Tree
	standing: readonly { destination: Source; newest: Standing | undefined }[]
}

export type BackupArchiveOptions = {
	/** Where snapshots go: the share and R2, as far as they are configured. */
	destinations: readonly Source[]
	/** Those of them that must have it after this run; what the others hold is only made use of. */
	due?: readonly Source[]
	/** Pack everything anew: an incremental snapshot that builds upon no other, files read that were remembered. */
	full?: boolean
}

export function backupArchive(
	context: StepContext,
	artifact: ArchiveArtifact,
	{ destinations, due = destinations, full = false }: BackupArchiveOptions,
): Step {
	const { environment, hostConfiguration, host, spoken, now, signal, summary } = context
	const ownership = !host.standIn
	const wanted: Wanted = {
		environment: environment.name,
		host: hostConfiguration.name,
		spoken,
		allowUnverified: false,
	}
	const digests = once(() => context.openDigests(artifact.name))

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

	const survey = async (): Promise<Surveyed> => {
		const cache = full ? undefined : await digests()
		const tree = await readArtifact({ host, artifact, now, signal, ...(cache && { digests: cache }) })
		await cache?.save(new Set(tree.entries.map(({ path }) => `/${path}`)))
		const standing = await Promise.all(
			destinations.map(async (destination) => ({ destination, newest: await newestIn(destination) })),
		)
		const digest = tree.entries.length === 0 ? undefined : treeDigest(tree, { ownership })
		return { tree, digest, standing }
	}

	const lackingOf = (standing: Surveyed["standing"], digest: string) =>
		standing.filter(
			({ destination, newest }) => due.includes(destination) && newest?.sidecar.treeDigest !== digest,
		)

	let surveyed: Surveyed | undefined
	// What this run has stored. A server in use may have changed again by the second check, and is backed up all the same.
	let taken: Taken | undefined

	return {
		id: artifact.name,
		title: artifact.name,
		check: async (report) => {
			surveyed = await survey()
			const { tree, standing } = surveyed
			if (surveyed.digest === undefined) return absent(standing)
			const digest = taken?.sidecar.treeDigest ?? surveyed.digest
			if (digest !== surveyed.digest) report.note("it has changed again since; the next backup takes that")
			for (const { path, because, missed } of tree.leftOut)
				report[missed ? "warn" : "note"](`${path} is left out: ${because}`)
			const current = standing.filter(({ newest }) => newest?.sidecar.treeDigest === digest)
			const lacking = lackingOf(standing, digest)
			const [first] = current
			noteSummary(current, lacking)
			if (full && taken === undefined) return needed("it was asked to be packed anew")
			if (lacking.length === 0 && first?.newest !== undefined)
				return satisfied(`${first.newest.id} holds it; ${describePlaces(current)}`)
			const unusable = lacking.some(({ destination }) => destination.trouble !== undefined)
			return (unusable ? unknown : needed)(
				lacking
					.map(({ destination, newest }) => {
						if (destination.trouble !== undefined)
							return `${destination.name}: ${destination.trouble.message}`
						return newest === undefined
							? `${destination.name} has no snapshot`
							: `changed since ${newest.id} on ${destination.name}`
					})
					.join("; "),
				lacking.map(({ destination }) => destination.trouble?.hint).find((hint) => hint !== undefined),
			)
		},
		apply: async (report) => {
			const { digest, standing } = surveyed ?? (await survey())
			if (digest === undefined) throw lost(standing)
			const lacking = full
				? standing.filter(({ destination }) => due.includes(destination))
				: lackingOf(standing, digest)
			const usable = lacking.filter(({ destination }) => destination.trouble === undefined)
			if (usable.length === 0) throw troubleOf(lacking.map(({ destination }) => destination))
			try {
				taken = (full ? undefined : await reuse(standing, digest, report)) ?? (await take(standing, report))
				// Before it is stored: a run that ends in between must not leave files that don't know what they descend from.
				await writeLineage(host, artifact.name, {
					environment: environment.name,
					host: hostConfiguration.name,
					snapshot: taken.id,
					treeDigest: taken.sidecar.treeDigest,
				})
				await storeInAll(lacking, taken, report)
			} finally {
				await clearWork(host)
			}
		},
	}

	/** It isn't on the host: no fault, unless there was one to back up before. */
	function absent(standing: Surveyed["standing"]): Finding {
		if (standing.some(({ newest }) => newest !== undefined)) throw lost(standing)
		summary.set(artifact.name, {
			artifact: artifact.name,
			source: "nowhere",
			snapshot: "none",
			verified: "not on this host",
			ok: true,
		})
		return satisfied("it is not on this host, and never was")
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
		if (failures.length > 0) await noteStanding(snapshot)
		throwTogether(failures)
	}

	/** The table must show what is stored although something failed. */
	async function noteStanding({ sidecar }: Taken): Promise<void> {
		const { standing } = await survey()
		const isCurrent = ({ newest }: { newest: Standing | undefined }) =>
			newest?.sidecar.treeDigest === sidecar.treeDigest
		noteSummary(standing.filter(isCurrent), lackingOf(standing, sidecar.treeDigest))
	}

	/** What one destination has already is copied to those that lack it: same name, same bytes everywhere. */
	async function reuse(
		standing: Surveyed["standing"],
		digest: string,
		report: Report,
	): Promise<Taken | undefined> {
		const having = standing.filter(({ newest }) => newest?.sidecar.treeDigest === digest)
		const sources = having.map(({ destination }) => destination)
		const newest = having[0]?.newest
		if (newest === undefined) return undefined
		const { id, sidecar } = newest
		// Its pieces are fetched one by one as they are missed, each held against its digest.
		if (sidecar.incremental !== undefined) return { id, sidecar }
		const candidates = (await findCandidates(sources, artifact, wanted)).filter(({ name }) => name.id === id)
		try {
			const verified = await acquire({
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
			if (verified.sidecar === undefined) return undefined
			return { id, sidecar: verified.sidecar, archiveFile: verified.parts[0].archiveFile }
		} catch (error) {
			if (signal.aborted) throw error
			report.warn(`${id} can't be copied and is taken anew: ${messageOf(error)}`)
			return undefined
		}
	}

	async function take(standing: Surveyed["standing"], report: Report): Promise<Taken> {
		const predecessor = standing
			.flatMap(({ newest }) => newest ?? [])
			.sort((a, b) => (a.id < b.id ? 1 : -1))[0]
		const base = full ? undefined : await baseOf(predecessor, report)
		const taken = await takeSnapshot({
			host,
			artifact,
			origin: { comfyume: context.comfyume, environment: environment.name, host: hostConfiguration.name },
			predecessor: predecessor?.sidecar,
			workDirectory,
			...(base === undefined ? {} : { base }),
			now,
			signal,
		})
		const { shrunkFromBytes, unpackedBytes, changedWhileRead } = taken.sidecar
		if (shrunkFromBytes !== undefined)
			report.warn(
				`it shrank from ${shrunkFromBytes} to ${unpackedBytes} bytes since ${predecessor?.id}: ` +
					"both snapshots are kept; look whether something is missing on the server",
			)
		for (const said of changedWhileRead) report.note(`while it was read: ${said}`)
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

const describeContent = (sidecar: ArchiveSidecar | undefined) =>
	sidecar === undefined
		? "nothing"
		: `${sidecar.members} ${sidecar.members === 1 ? "member" : "members"}, ${formatBytes(sidecar.unpackedBytes)}`

const describePlaces = (standing: readonly { destination: Source }[]) =>
	`it stands on ${standing.map(({ destination }) => destination.name).join(" and ")}`
