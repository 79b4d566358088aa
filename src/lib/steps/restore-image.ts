// One container image comes back: found, proven layer by layer, loaded, and asked for by its id.
import type { ImageArtifact } from "../artifacts/catalogue.ts"
import {
	anyConcerns,
	type Candidate,
	findCandidates,
	newestSidecar,
	type Wanted,
} from "../artifacts/chain.ts"
import { acquireImage, short } from "../artifacts/image.ts"
import type { ImageSidecar, SnapshotName } from "../artifacts/snapshot.ts"
import { placesAsked, sourcesOf } from "../artifacts/source.ts"
import { OperatorError } from "../errors.ts"
import { command } from "../host/command.ts"
import { requireSpaceOn, spaceFactor } from "../host/disk.ts"
import { type Finding, needed, type Step, satisfied, unknown } from "../plan/step.ts"
import { type FoundImage, imageStore } from "../stack/image-store.ts"
import { ageSeconds, clearWork, type StepContext, workDirectory } from "./context.ts"
import { requireImageRoom } from "./stack-images.ts"

type Newest = { name: SnapshotName; sidecar: ImageSidecar }

/**
 * Loads an image that the host's Docker doesn't have from the newest snapshot that proves right. One that it has is left
 * as it is, unless a date was asked for.
 */
export function restoreImage(
	context: StepContext,
	artifact: ImageArtifact,
	{ requires, at }: { requires: readonly string[]; at?: Date },
): Step {
	const { environment, hostConfiguration, host, spoken, now, signal, summary } = context
	const docker = imageStore(host)
	const sources = sourcesOf(context, artifact)
	const wanted: Wanted = {
		environment: environment.name,
		host: hostConfiguration.name,
		spoken,
		allowUnverified: false,
		...(at === undefined ? {} : { at }),
	}
	// What this run has loaded: the second check is held against it.
	let loaded: { name: SnapshotName; ids: readonly string[] } | undefined

	const newestOf = async (candidates: readonly Candidate[]): Promise<Newest | undefined> => {
		const newest = await newestSidecar(candidates, artifact, wanted)
		return newest?.sidecar.kind === "image"
			? { name: newest.candidate.name, sidecar: newest.sidecar }
			: undefined
	}

	return {
		id: artifact.name,
		title: artifact.name,
		requires,
		check: async (report) => {
			const found = await docker.find(artifact.image)
			if (loaded !== undefined) {
				const { name, ids } = loaded
				if (found !== undefined && ids.includes(found.id))
					return satisfied(`${artifact.image} is ${short(found.id)}, as in ${name.id}`)
				// The table must not say that it is right.
				summary.delete(artifact.name)
				return needed(
					`${artifact.image} is ${found === undefined ? "not there" : short(found.id)}, and ${name.id} was just loaded`,
				)
			}
			const candidates = await findCandidates(sources, artifact, wanted)
			const newest = await newestOf(candidates)
			const hasSnapshots = newest !== undefined || (await anyConcerns(hostConfiguration.name, candidates))
			if (hasSnapshots && found === undefined && !(await docker.isThere()))
				throw new OperatorError(`docker is not installed on ${host.name}, and there are snapshots of it`, {
					hint: `https://docs.docker.com/engine/install/   # then: comfyume restore ${spoken} --only ${artifact.name}`,
				})
			const asked = placesAsked(sources).length > 0
			const finding = decide(artifact, {
				found,
				newest,
				hasSnapshots,
				asked,
				exact: at !== undefined,
			})
			if (finding.state === "satisfied") {
				const inPlace = found === undefined ? "nowhere" : "in place"
				// The snapshot has a column of its own.
				const verified = finding.because.replace(`, as in ${newest?.name.id}`, "")
				noteSummary(inPlace, found === undefined ? undefined : newest, verified)
			} else if (found !== undefined) {
				report.note(
					`${short(found.id)}, which has the name now, stays in Docker without one; containers that run go on ` +
						`with it until comfyume start ${spoken} makes them anew`,
				)
			}
			return finding
		},
		apply: async (report) => {
			try {
				const candidates = await findCandidates(sources, artifact, wanted)
				const newest = await newestOf(candidates)
				if (newest !== undefined) await makeRoom(newest.sidecar)
				const work = { host, sources, artifact, wanted, candidates, workDirectory, now, signal, report }
				const { copy, sidecar, storedFile, ids } = await acquireImage(work)
				const tarFile = `${workDirectory}/${artifact.name}.tar`
				const files = ["-o", host.path(tarFile), host.path(storedFile)]
				await host.execute(command("zstd", "--quiet", "--decompress", "--force", ...files))
				await docker.load(host.path(tarFile))
				loaded = { name: copy.name, ids }
				noteSummary(copy.source.name, { name: copy.name, sidecar }, "every layer")
			} finally {
				await clearWork(host)
			}
		},
	}

	/** The archive and what it unpacks to, and as much again where Docker keeps it: as a rule on the same disk. */
	async function makeRoom({ sizeBytes, unpackedBytes }: ImageSidecar): Promise<void> {
		await host.files.makeDirectory(workDirectory, 0o700)
		const bytes = Math.ceil((sizeBytes + 2 * unpackedBytes) * spaceFactor)
		await requireSpaceOn(host, workDirectory, { bytes })
		await requireImageRoom(host, unpackedBytes, artifact.image)
	}

	function noteSummary(source: string, newest: Newest | undefined, verified: string): void {
		summary.set(artifact.name, {
			artifact: artifact.name,
			source,
			snapshot: newest?.name.id ?? "none",
			verified,
			ok: true,
			...(newest === undefined
				? {}
				: {
						digest: newest.sidecar.digest.slice(0, 12),
						ageSeconds: ageSeconds(context, newest.name.takenAt),
					}),
		})
	}
}

function decide(
	{ image }: ImageArtifact,
	facts: {
		found: FoundImage | undefined
		newest: Newest | undefined
		/** Of this host, or of which nobody can tell whose they are. */
		hasSnapshots: boolean
		/** True when a place beside this machine has answered. */
		asked: boolean
		/** True when a date was asked for. */
		exact: boolean
	},
): Finding {
	const { found, newest, hasSnapshots, asked, exact } = facts
	if (found === undefined) {
		if (hasSnapshots) return needed(`${image} is not there`)
		return asked
			? satisfied("there is no snapshot of it; comfyume start --build makes it")
			: unknown("no source that answers has a snapshot")
	}
	if (newest === undefined)
		return exact && hasSnapshots
			? needed("no snapshot has a sidecar that can be read")
			: satisfied(`it is ${short(found.id)}, and no snapshot says anything of it`)
	const { id } = newest.name
	if (newest.sidecar.imageId === found.id && newest.sidecar.image === image)
		return satisfied(`it is ${short(found.id)}, as in ${id}`)
	return exact
		? needed(`it is ${short(found.id)}, and ${id} is ${short(newest.sidecar.imageId)}`)
		: satisfied(`it is ${short(found.id)}, another than that of ${id}; --at puts a snapshot back`)
}
