// One container image is backed up: its newest snapshot, in every destination, is the image that Docker has now.
import type { ImageArtifact } from "../artifacts/catalogue.ts"
import { findCandidates, newestSidecar, type Wanted } from "../artifacts/chain.ts"
import { acquireImage, short, takeImage } from "../artifacts/image.ts"
import type { ImageSidecar } from "../artifacts/snapshot.ts"
import { lackingPiece, type Source } from "../artifacts/source.ts"
import { messageOf, OperatorError } from "../errors.ts"
import { type Finding, needed, type Report, type Step, satisfied, unknown } from "../plan/step.ts"
import { type FoundImage, imageStore } from "../stack/image-store.ts"
import { formatBytes } from "../ui/format.ts"
import { ageSeconds, clearWork, type Held, heldKey, type StepContext, workDirectory } from "./context.ts"
import { storeSnapshot, throwTogether, troubleOf } from "./store-snapshot.ts"

type Snapshot = { id: string; sidecar: ImageSidecar }
/** `lacks`: why the newest snapshot isn't the one that must stand there; undefined when it is. */
type Stood = { destination: Source; newest: Snapshot | undefined; lacks: string | undefined }

export type BackupImageOptions = {
	/** Where snapshots go: the share and R2, as far as they are configured. */
	destinations: readonly Source[]
	/** Those of them that must have it after this run. */
	due: readonly Source[]
	/** Save it anew, also when it has not changed. */
	full: boolean
	/** Where it notes which of them hold it now. */
	held: Held
}

/**
 * An image that isn't on the host is no fault: it was not built yet, or the host runs without Docker. A Docker that
 * gives no answer is one.
 */
export function backupImage(
	context: StepContext,
	artifact: ImageArtifact,
	{ destinations, due, full, held }: BackupImageOptions,
): Step {
	const { environment, hostConfiguration, host, spoken, now, signal, summary } = context
	const docker = imageStore(host)
	const owner = { environment: environment.name, host: hostConfiguration.name }
	const wanted: Wanted = { ...owner, spoken, allowUnverified: false }
	// What this run has stored. Built anew meanwhile, the image is backed up all the same.
	let taken: string | undefined

	/** The newest snapshot in one destination whose archive is there in its right size. */
	const newestIn = async (destination: Source): Promise<Snapshot | undefined> => {
		if (destination.trouble !== undefined) return undefined
		const candidates = await findCandidates([destination], artifact, wanted).catch((error) => {
			// What fails here keeps the image from being stored there, and from nowhere else.
			if (destination.trouble === undefined) throw error
			return []
		})
		const newest = await newestSidecar(candidates, artifact, wanted)
		if (newest?.sidecar.kind !== "image") return undefined
		const { sidecar, candidate } = newest
		const copy = candidate.copies.find((one) => one.sidecar !== undefined)
		if (copy === undefined || lackingPiece(copy, sidecar, new Map()) !== undefined) return undefined
		return { id: candidate.name.id, sidecar }
	}

	/** @param imageId undefined where there is none, of which nothing is lacking */
	const survey = (imageId: string | undefined): Promise<Stood[]> =>
		Promise.all(
			destinations.map(async (destination) => {
				const newest = await newestIn(destination)
				const lacks = whatLacks(artifact, destination, newest, imageId)
				if (newest !== undefined && (imageId === undefined || lacks === undefined))
					held.set(heldKey(artifact, destination), newest.id)
				else held.delete(heldKey(artifact, destination))
				return { destination, newest, lacks }
			}),
		)
	const lackingIn = (standing: readonly Stood[]) =>
		standing.filter(
			({ destination, lacks }) =>
				due.includes(destination) && (lacks !== undefined || (full && taken === undefined)),
		)

	return {
		id: artifact.name,
		title: artifact.name,
		check: async (report) => {
			const found = await docker.find(artifact.image)
			const standing = await survey(taken ?? found?.id)
			if (found === undefined) return absent(standing, report)
			if (taken !== undefined && taken !== found.id)
				report.note("it was built anew since; the next backup takes that")
			const lacking = lackingIn(standing)
			const current = standing.filter(({ lacks }) => lacks === undefined)
			noteSummary(current, lacking)
			const [first] = current
			if (lacking.length === 0 && first !== undefined)
				return satisfied(
					`${first.newest?.id} is ${short(taken ?? found.id)}; it stands on ${namesOf(current, " and ")}`,
				)
			const troubles = lacking.flatMap(({ destination: { name, trouble } }) =>
				trouble === undefined ? [] : [{ name, trouble }],
			)
			return (troubles.length > 0 ? unknown : needed)(
				lacking
					.map(
						({ destination: { name, trouble }, lacks }) =>
							lacks ?? (trouble === undefined ? "it was asked for anew" : `${name}: ${trouble.message}`),
					)
					.join("; "),
				troubles[0]?.trouble.hint,
			)
		},
		apply: async (report) => {
			const found = await docker.find(artifact.image)
			if (found === undefined)
				throw new OperatorError(`${artifact.image} is gone from ${host.name} since it was looked at`)
			const standing = await survey(found.id)
			const lacking = lackingIn(standing)
			if (lacking.every(({ destination }) => destination.trouble !== undefined))
				throw troubleOf(lacking.map(({ destination }) => destination))
			try {
				const snapshot = (full ? undefined : await reuse(standing, report)) ?? (await take(found, standing))
				taken = found.id
				await storeInAll(lacking, snapshot, report)
			} finally {
				await clearWork(host)
			}
		},
	}

	function absent(standing: readonly Stood[], report: Report): Finding {
		const newest = newestOf(standing)
		summary.set(artifact.name, {
			artifact: artifact.name,
			source: newest === undefined ? "nowhere" : namesOf(standing.filter((one) => one.newest !== undefined)),
			snapshot: newest?.id ?? "none",
			verified: "not on this host",
			ok: true,
		})
		if (newest === undefined) return satisfied(`${artifact.image} is not on this host, and never was`)
		report.note(
			`${artifact.image} is not on this host: comfyume start --build makes it, and ${newest.id} holds one`,
		)
		return satisfied(`there is nothing that ${newest.id} doesn't hold`)
	}

	/** What one destination has already is copied to the others: same name, same bytes everywhere. */
	async function reuse(standing: readonly Stood[], report: Report) {
		const having = standing.filter(({ lacks }) => lacks === undefined)
		const id = having[0]?.newest?.id
		if (id === undefined) return undefined
		const sources = having.map(({ destination }) => destination)
		const all = await findCandidates(sources, artifact, wanted)
		const candidates = all.filter(({ name }) => name.id === id)
		const work = { host, sources, artifact, wanted, candidates, workDirectory, now, signal, report }
		try {
			const { sidecar, storedFile } = await acquireImage(work)
			return { id, sidecar, archiveFile: storedFile }
		} catch (error) {
			if (signal.aborted) throw error
			report.warn(`${id} can't be copied, and the image is saved anew: ${messageOf(error)}`)
			return undefined
		}
	}

	function take(found: FoundImage, standing: readonly Stood[]) {
		const newest = newestOf(standing)
		return takeImage({
			host,
			artifact,
			origin: { comfyume: context.comfyume, ...owner },
			predecessor: newest && new Date(newest.sidecar.takenAt),
			found,
			save: (file) => docker.save(artifact.image, file),
			workDirectory,
			now,
			signal,
		})
	}

	/** A destination that fails doesn't keep the others from getting it. */
	async function storeInAll(
		lacking: readonly Stood[],
		snapshot: Parameters<typeof storeSnapshot>[2],
		report: Report,
	): Promise<void> {
		const failures: unknown[] = []
		for (const { destination } of lacking) {
			try {
				if (destination.trouble !== undefined) throw destination.trouble
				await storeSnapshot({ context, artifact, others: [] }, destination, snapshot, report)
			} catch (error) {
				if (signal.aborted) throw error
				failures.push(error)
			}
		}
		if (failures.length > 0) {
			// The table must show what is stored although something failed.
			const standing = await survey(taken)
			noteSummary(
				standing.filter(({ lacks }) => lacks === undefined),
				lackingIn(standing),
			)
		}
		throwTogether(failures)
	}

	function noteSummary(current: readonly Stood[], lacking: readonly Stood[]): void {
		const newest = current[0]?.newest
		summary.set(artifact.name, {
			artifact: artifact.name,
			source: namesOf(current) || "nowhere",
			snapshot: newest?.id ?? "none",
			verified:
				lacking.length > 0
					? `missing: ${namesOf(lacking)}`
					: `every layer, ${formatBytes(newest?.sidecar.unpackedBytes ?? 0)}`,
			ok: lacking.length === 0,
			...(newest === undefined
				? {}
				: {
						digest: newest.sidecar.digest.slice(0, 12),
						ageSeconds: ageSeconds(context, new Date(newest.sidecar.takenAt)),
					}),
		})
	}
}

const namesOf = (standing: readonly Stood[], between = ", ") =>
	standing.map(({ destination }) => destination.name).join(between)

const newestOf = (standing: readonly Stood[]): Snapshot | undefined =>
	standing.flatMap(({ newest }) => newest ?? []).sort((a, b) => (a.id < b.id ? 1 : -1))[0]

function whatLacks(
	{ image }: ImageArtifact,
	{ name, trouble }: Source,
	newest: Snapshot | undefined,
	imageId: string | undefined,
): string | undefined {
	if (newest === undefined)
		return trouble === undefined ? `${name} has no snapshot` : `${name}: ${trouble.message}`
	const { id, sidecar } = newest
	// The same image under another name: loading the snapshot would give it the old one.
	if (sidecar.image !== image) return `${id} on ${name} is ${sidecar.image}, and ${image} is wanted now`
	return sidecar.imageId === imageId ? undefined : `${image} is another than that of ${id} on ${name}`
}
