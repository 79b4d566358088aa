// One archive artifact is backed up: its newest snapshot, in every destination, holds what lies on the disk now.

import type { ArchiveArtifact } from "../artifacts/catalogue.ts"
import { acquire, findCandidates, newestSidecar, type Wanted } from "../artifacts/chain.ts"
import { writeLineage } from "../artifacts/lineage.ts"
import { type ArchiveSidecar, archiveKey, renderSidecar, sidecarKey } from "../artifacts/snapshot.ts"
import { canHeal, type Source } from "../artifacts/source.ts"
import { readArtifact, spaceFactor, type Taken, takeSnapshot } from "../artifacts/take.ts"
import { digestFile, treeDigest } from "../artifacts/tree.ts"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import { needed, type Report, type Step, satisfied, unknown } from "../plan/step.ts"
import { formatBytes } from "../ui/format.ts"
import { ageSeconds, clearWork, type StepContext, workDirectory } from "./context.ts"

type Standing = { id: string; sidecar: ArchiveSidecar }

/**
 * @param destinations where snapshots go: the share and R2, as far as they are configured
 * @param due those of them that must have it after this run; what the others hold is only made use of
 */
export function backupArchive(
	context: StepContext,
	artifact: ArchiveArtifact,
	destinations: readonly Source[],
	due: readonly Source[] = destinations,
): Step {
	const { environment, hostConfiguration, host, spoken, now, signal, summary } = context
	const ownership = !host.standIn
	const wanted: Wanted = {
		environment: environment.name,
		host: hostConfiguration.name,
		spoken,
		allowUnverified: false,
	}

	/** The newest snapshot in one destination whose archive is there in its right size. */
	const newestIn = async (destination: Source): Promise<Standing | undefined> => {
		if (destination.trouble !== undefined) return undefined
		const candidates = await findCandidates([destination], artifact, wanted).catch((error) => {
			// What fails here keeps the artifact from being stored there, and from nowhere else.
			if (destination.trouble === undefined) throw error
			return []
		})
		const newest = await newestSidecar(candidates, artifact, wanted)
		if (newest?.sidecar.kind !== "archive") return undefined
		const archive = newest.candidate.copies.find(({ archive }) => archive !== undefined)?.archive
		if (archive?.sizeBytes !== newest.sidecar.sizeBytes) return undefined
		return { id: newest.candidate.name.id, sidecar: newest.sidecar }
	}

	const survey = async () => {
		const tree = await readArtifact(host, artifact, signal)
		const digest = treeDigest(tree, { ownership })
		const standing = await Promise.all(
			destinations.map(async (destination) => ({ destination, newest: await newestIn(destination) })),
		)
		return { tree, digest, standing }
	}

	const lackingOf = <T extends { destination: Source; newest: Standing | undefined }>(
		standing: readonly T[],
		digest: string,
	): T[] =>
		standing.filter(
			({ destination, newest }) => due.includes(destination) && newest?.sidecar.treeDigest !== digest,
		)

	let surveyed: Awaited<ReturnType<typeof survey>> | undefined
	// What this run has stored. A server in use may have changed again by the second check, and is backed up all the same.
	let taken: Taken | undefined

	return {
		id: artifact.name,
		title: artifact.name,
		check: async (report) => {
			surveyed = await survey()
			const { tree, standing } = surveyed
			const digest = taken?.sidecar.treeDigest ?? surveyed.digest
			if (digest !== surveyed.digest) report.note("it has changed again since; the next backup takes that")
			for (const { path, because, missed } of tree.leftOut)
				report[missed ? "warn" : "note"](`${path} is left out: ${because}`)
			const current = standing.filter(({ newest }) => newest?.sidecar.treeDigest === digest)
			const lacking = lackingOf(standing, digest)
			const [first] = current
			noteSummary(current, lacking)
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
			const lacking = lackingOf(standing, digest)
			const usable = lacking.filter(({ destination }) => destination.trouble === undefined)
			if (usable.length === 0) throw troubleOf(lacking.map(({ destination }) => destination))
			try {
				taken = (await reuse(standing, digest, report)) ?? (await take(standing, report))
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
				await store(destination, snapshot, report)
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
		standing: Awaited<ReturnType<typeof survey>>["standing"],
		digest: string,
		report: Report,
	): Promise<Taken | undefined> {
		const having = standing.filter(({ newest }) => newest?.sidecar.treeDigest === digest)
		const sources = having.map(({ destination }) => destination)
		const id = having[0]?.newest?.id
		if (id === undefined) return undefined
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
			return { id, sidecar: verified.sidecar, archiveFile: verified.archiveFile }
		} catch (error) {
			if (signal.aborted) throw error
			report.warn(`${id} can't be copied and is taken anew: ${messageOf(error)}`)
			return undefined
		}
	}

	async function take(
		standing: Awaited<ReturnType<typeof survey>>["standing"],
		report: Report,
	): Promise<Taken> {
		const predecessor = standing
			.flatMap(({ newest }) => newest ?? [])
			.sort((a, b) => (a.id < b.id ? 1 : -1))[0]
		const taken = await takeSnapshot({
			host,
			artifact,
			origin: { comfyume: context.comfyume, environment: environment.name, host: hostConfiguration.name },
			predecessor: predecessor?.sidecar,
			workDirectory,
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

	async function store(
		destination: Source,
		{ id, sidecar, archiveFile }: Taken,
		report: Report,
	): Promise<void> {
		const free = await destination.store.freeBytes?.()
		const needBytes = Math.ceil(sidecar.sizeBytes * spaceFactor)
		if (free !== undefined && free < needBytes)
			throw new OperatorError(
				`${destination.name} has ${free} bytes free, ${needBytes} are needed for ${artifact.name}`,
				{ exitCode: exitCodes.noSpace, hint: `df -h ${destination.store.place}` },
			)
		const { sizeBytes, digest } = sidecar
		await putWhole(destination, archiveKey(environment.name, artifact.name, id), archiveFile, {
			sizeBytes,
			digest,
			onProgress: (doneBytes) =>
				report.progress({ doneBytes, totalBytes: sizeBytes, from: `to ${destination.name}` }),
		})
		const sidecarFile = `${archiveFile}.json`
		await host.write(sidecarFile, renderSidecar(sidecar), { mode: 0o600 })
		const facts = await digestFile(host.path(sidecarFile))
		await putWhole(
			destination,
			sidecarKey(environment.name, artifact.name, id, "archive"),
			sidecarFile,
			facts,
		)
	}

	/** What stands there already counts only in its right size: a run that was cut off, or a disk, may have damaged it. */
	async function putWhole(
		{ name, store: target }: Source,
		key: string,
		file: string,
		facts: { sizeBytes: number; digest: string; onProgress?: (doneBytes: number) => void },
	): Promise<void> {
		const put = () => target.put(key, host.path(file), { ...facts, ifAbsent: true, signal })
		if ((await put()) === "stored") return
		if ((await target.head(key))?.sizeBytes === facts.sizeBytes) return
		if (!canHeal(target))
			throw new OperatorError(`${key} stands damaged on ${name}, where nothing is replaced`, {
				hint: `comfyume backup ${spoken} --only ${artifact.name}   # once the server's files have changed`,
			})
		await target.setAside(key, now())
		await put()
	}

	function noteSummary(
		current: readonly { destination: Source; newest: Standing | undefined }[],
		lacking: readonly { destination: Source; newest: Standing | undefined }[],
	): void {
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
