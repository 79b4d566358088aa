// One archive artifact comes back: found, proven, unpacked, swapped in, and looked at once more.

import type { ArchiveArtifact } from "../artifacts/catalogue.ts"
import {
	acquire,
	type Candidate,
	findCandidates,
	keyFor,
	newestSidecar,
	requireKey,
	type Wanted,
} from "../artifacts/chain.ts"
import { floorProblems } from "../artifacts/floor.ts"
import { type Lineage, readLineage, treeDigestOf, writeLineage } from "../artifacts/lineage.ts"
import { type Replaced, replaceWith, withoutExcluded } from "../artifacts/replace.ts"
import type { ArchiveSidecar, SnapshotName } from "../artifacts/snapshot.ts"
import { type Copy, placesAsked, sourcesOf } from "../artifacts/source.ts"
import { differences, readTree, type Tree, treeDigest } from "../artifacts/tree.ts"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import { command } from "../host/command.ts"
import { requireSpaceOn, spaceFactor } from "../host/disk.ts"
import { type Finding, needed, type Report, type Step, satisfied, unknown } from "../plan/step.ts"
import { ageSeconds, clearWork, type StepContext, workDirectory } from "./context.ts"

export type RestoreArchiveOptions = {
	requires: readonly string[]
	/** The operator asked for the state at a date: what has changed since is put back too. */
	at?: Date
	allowUnverified: boolean
	/** An answer from the running system that settles it; undefined when it can't tell. */
	alive?: () => Promise<Finding | undefined>
	/** What is wrong with the live files besides their floor. */
	problems?: () => Promise<string[]>
	/** Before the files are swapped: stops what uses them. */
	before?: () => Promise<void>
	/** With the files in place: throws when they don't work, and the old ones return. */
	validate?: () => Promise<void>
}

/** Brings one artifact back from the newest snapshot that proves right. */
export function restoreArchive(
	context: StepContext,
	artifact: ArchiveArtifact,
	options: RestoreArchiveOptions,
): Step {
	const { environment, hostConfiguration, host, spoken, now, signal, summary } = context
	const sources = sourcesOf(context, artifact)
	const ownership = !host.standIn
	const wanted: Wanted = {
		environment: environment.name,
		host: hostConfiguration.name,
		spoken,
		allowUnverified: options.allowUnverified,
		...(options.at === undefined ? {} : { at: options.at }),
	}
	// What this run has put in place: the second check is held against it, and not against what the sources say.
	let restored:
		| { name: SnapshotName; tree: Tree; holds: string; passedOver: SnapshotName | undefined }
		| undefined
	const owner = { environment: environment.name, host: hostConfiguration.name }
	const key = keyFor(wanted, artifact, context.ageIdentity)

	return {
		id: artifact.name,
		title: artifact.name,
		requires: options.requires,
		check: async (report) => {
			const live = await readTree(host, artifact, "/", signal)
			const liveDigest = treeDigest(live, { ownership })
			if (restored !== undefined) {
				const { name, tree, holds, passedOver } = restored
				const wrong = differences(tree, artifact.replace === "tree" ? live : only(live, tree), {
					ownership,
					limit: 5,
				})
				if (wrong.length > 0) {
					// The table must not say that it is right.
					summary.delete(artifact.name)
					return needed(`it is not ${name.id}, which was just put there: ${wrong.join("; ")}`)
				}
				await writeLineage(host, artifact.name, {
					...owner,
					snapshot: name.id,
					treeDigest: liveDigest,
					holds,
					...(passedOver === undefined ? {} : { passedOver: passedOver.id }),
				})
				return satisfied(`it is byte for byte ${name.id}`)
			}
			const alive = options.at === undefined ? await options.alive?.() : undefined
			if (alive?.state === "satisfied") {
				noteSummary("in place", undefined, alive.because)
				return alive
			}
			const candidates = await findCandidates(sources, artifact, wanted)
			const newest = await newestSidecar(candidates, artifact, wanted)
			const lineage = await readLineage(host, artifact.name, owner)
			const known = lineage?.passedOver?.id ?? ""
			for (const { id } of newest?.unreadable ?? [])
				if (id > known) report.warn(`${id} can't be judged: its sidecar is damaged wherever it stands`)
			const asked = placesAsked(sources)
			if (artifact.optional && candidates.length === 0 && asked.length > 0) {
				noteSummary("nowhere", undefined, "never backed up")
				const places = asked.map(({ name }) => name).join(" and ")
				return satisfied(`there is no snapshot of it (${places}), and a server can do without`)
			}
			const standing =
				newest?.sidecar.kind === "archive" ? { ...newest.candidate.name, sidecar: newest.sidecar } : undefined
			const finding = decide({
				live,
				liveDigest,
				problems: [...floorProblems(artifact, live), ...((await options.problems?.()) ?? [])],
				newest: standing && { name: standing, treeDigest: treeDigestOf(standing, lineage) },
				lineage,
				exact: options.at !== undefined,
				candidates: candidates.length,
			})
			if (finding.state === "satisfied")
				noteSummary(
					"in place",
					newest && { name: newest.candidate.name, sidecar: newest.sidecar as ArchiveSidecar },
					// The snapshot has a column of its own.
					finding.because.replace(`it is byte for byte ${newest?.candidate.name.id}`, "byte for byte"),
				)
			else if (newest !== undefined) await requireKey(newest.candidate, key)
			return finding
		},
		apply: async (report) => {
			try {
				const candidates = await findCandidates(sources, artifact, wanted)
				await makeRoom(candidates)
				const verified = await acquire(
					{ host, sources, artifact, wanted, candidates, workDirectory, now, signal, report },
					key.identity,
				)
				const { name, source } = verified.copy
				noteLonely(verified.copy, candidates, report)
				await options.before?.()
				const replaced = await replaceWith(host, artifact, verified, now())
				await validate(replaced, report)
				if (replaced.keptIn !== undefined) report.note(`what stood there is kept in ${replaced.keptIn}`)
				await reload(report)
				restored = {
					name,
					tree: withoutExcluded(artifact, verified.tree),
					holds: verified.treeDigest,
					passedOver: verified.passedOver,
				}
				noteSummary(
					source.name,
					{ name, sidecar: verified.sidecar, digest: verified.digest },
					verified.sidecar === undefined ? "UNVERIFIED: no sidecar" : "byte for byte",
				)
			} finally {
				await clearWork(host)
			}
		},
	}

	/** Every backup goes everywhere: one that a place in reach doesn't know was cut off, or didn't come from a backup. */
	function noteLonely({ name, source }: Copy, candidates: readonly Candidate[], report: Report): void {
		const copies = candidates.find((candidate) => candidate.name.id === name.id)?.copies ?? []
		const without = sources.filter(
			(other) =>
				other.name !== "local" &&
				other.trouble === undefined &&
				!copies.some((copy) => copy.source.name === other.name),
		)
		if (without.length > 0)
			report.note(
				`${name.id} stands only on ${source.name}: ${without.map((other) => other.name).join(", ")} doesn't know it`,
			)
	}

	/** The archive and its content, both at once, before the first byte is fetched. */
	async function makeRoom(candidates: readonly Candidate[]): Promise<void> {
		const newest = await newestSidecar(candidates, artifact, wanted)
		if (newest?.sidecar.kind !== "archive") return
		await host.files.makeDirectory(workDirectory, 0o700)
		const { sizeBytes, unpackedBytes, encryption } = newest.sidecar
		const archives = encryption === undefined ? sizeBytes : 2 * sizeBytes
		await requireSpaceOn(host, workDirectory, { bytes: Math.ceil((archives + unpackedBytes) * spaceFactor) })
	}

	async function validate(replaced: Replaced, report: Report): Promise<void> {
		try {
			const [program, ...args] = artifact.validate ?? []
			if (program !== undefined) await host.capture(command(program, ...args))
			await options.validate?.()
		} catch (error) {
			report.note(`the restored files don't work: ${messageOf(error)}; the old ones are put back`)
			try {
				await replaced.undo()
			} catch (undoError) {
				throw new OperatorError(
					`${messageOf(error)}; and the old files could not be put back: ${messageOf(undoError)}`,
					{
						exitCode: exitCodes.rollbackFailed,
						hint: `ls -la ${replaced.keptIn ?? ""}`,
						cause: undoError,
					},
				)
			}
			if (error instanceof OperatorError && error.exitCode === exitCodes.refusedByGuard) throw error
			throw new OperatorError(`${artifact.name} was put back as it was: ${messageOf(error)}`, {
				exitCode: exitCodes.rolledBack,
				cause: error,
			})
		}
	}

	async function reload(report: Report): Promise<void> {
		if (artifact.reload === undefined) return
		const { unit, command: words } = artifact.reload
		const [program, ...args] = words
		if (program === undefined) return
		if (await host.test(command("systemctl", "is-active", "--quiet", unit)))
			await host.execute(command(program, ...args))
		else report.note(`${unit} is not running: the restored files take effect when it starts`)
	}

	function noteSummary(
		source: string,
		snapshot: { name: SnapshotName; sidecar: ArchiveSidecar | undefined; digest?: string } | undefined,
		verified: string,
	): void {
		const digest = snapshot?.sidecar?.digest ?? snapshot?.digest
		summary.set(artifact.name, {
			artifact: artifact.name,
			source,
			snapshot: snapshot?.name.id ?? "none",
			verified,
			ok: true,
			...(digest === undefined ? {} : { digest: digest.slice(0, 12) }),
			...(snapshot === undefined ? {} : { ageSeconds: ageSeconds(context, snapshot.name.takenAt) }),
		})
	}
}

/**
 * Whether an artifact has to be restored. Files in use are never thrown back to an older state unless a date was asked
 * for: a server that has worked since the snapshot has the newer data.
 */
export function decide(facts: {
	live: Tree
	liveDigest: string
	/** What is wrong with the live files; empty when they reach their floor. */
	problems: readonly string[]
	/** The tree digest is undefined of an encrypted one of which this host has noted nothing. */
	newest: { name: SnapshotName; treeDigest: string | undefined } | undefined
	lineage: Lineage | undefined
	/** True when a date was asked for. */
	exact: boolean
	candidates: number
}): Finding {
	const { live, liveDigest, problems, newest, lineage, exact, candidates } = facts
	// Nothing may be promised of it, not even by a dry run.
	if (candidates === 0) return unknown("no source has a snapshot")
	if (live.entries.length === 0) return needed("it is not there")
	if (problems.length > 0) return needed(`it is not right: ${problems.join("; ")}`)
	if (newest !== undefined && liveDigest === newest.treeDigest) {
		const { id } = newest.name
		if (lineage !== undefined && lineage.snapshot.id >= id) return satisfied(`it is byte for byte ${id}`)
		// A run that ended between the files and the note has neither tried nor reloaded them.
		return needed(`it is byte for byte ${id}, and no run has finished with it`)
	}
	const inUse = (id: string) =>
		satisfied(`it comes from ${id} and has been in use since; --at puts a snapshot back`)
	if (newest === undefined)
		return lineage !== undefined && !exact
			? inUse(lineage.snapshot.id)
			: needed("no snapshot has a sidecar that can be read")
	const covers = [lineage?.snapshot, lineage?.passedOver].some(
		(name) => name !== undefined && name.takenAt >= newest.name.takenAt,
	)
	if (lineage !== undefined && covers) {
		const { id } = lineage.snapshot
		if (liveDigest === lineage.treeDigest && id === newest.name.id)
			return satisfied(`it is as it was restored from ${id}`)
		if (!exact) return inUse(id)
	}
	if (newest.treeDigest === undefined)
		return needed(`nothing on this host says that it is ${newest.name.id}, which is encrypted`)
	return needed(`it differs from ${newest.name.id}`)
}

/** Only those entries of a tree that the other one has too: what else lies there is left alone by `replace: files`. */
function only(tree: Tree, other: Tree): Tree {
	const paths = new Set(other.entries.map(({ path }) => path))
	return { ...tree, entries: tree.entries.filter(({ path }) => paths.has(path)) }
}
