// What is kept of the snapshots. On the share what no class keeps is removed; in the object store nothing ever is, and
// this only says what could be.
import type { Artifact, RetentionClasses, SnapshotArtifact } from "../artifacts/catalogue.ts"
import { type Retained, retain } from "../artifacts/retention.ts"
import { clockToleranceMs } from "../artifacts/schedule.ts"
import { archiveKey, incrementalOf, indexKey, snapshotPrefix } from "../artifacts/snapshot.ts"
import {
	alone,
	type Copy,
	digestOfObject,
	listCopies,
	readSidecar,
	type Source,
	sourcesOf,
} from "../artifacts/source.ts"
import {
	confirmationPrefix,
	type Finished,
	type Holdings,
	judge,
	listHoldings,
} from "../artifacts/standing.ts"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import { quoteForShell } from "../host/command.ts"
import { needed, type Plan, type Step, type SummaryRow, satisfied } from "../plan/step.ts"
import type { ObjectHead } from "../storage/object-store.ts"
import type { ShareRemover } from "../storage/share-remover.ts"
import { formatBytes } from "../ui/format.ts"
import type { StepContext } from "./context.ts"

const shareStep = "share"
/** Records of unchanged artifacts are kept this long before the newest; `backup status` reads those of a few days. */
const recordsKeptMs = 31 * 24 * 60 * 60 * 1000

/** An archive of an incremental snapshot is there before what counts on it is. */
const unusedKeptMs = 24 * 60 * 60 * 1000

type Shrinkable = Finished & { shrunk: boolean }
type Kept = { artifact: SnapshotArtifact; classes: RetentionClasses }

const withClasses = (artifacts: readonly Artifact[]): Kept[] =>
	artifacts.flatMap((artifact) =>
		artifact.kind === "models" || artifact.retention === undefined
			? []
			: [{ artifact, classes: artifact.retention }],
	)

/**
 * One step per artifact that removes from the share what no class keeps, and one for old records. Nothing goes of an
 * artifact whose newest snapshot hasn't just been read and found whole, or when the object store, where there is one,
 * doesn't hold a finished snapshot at least as new.
 * @throws {OperatorError} (2) when no share is configured
 */
export function retentionPlan(context: StepContext, artifacts: readonly Artifact[]): Plan {
	const { environment, hostConfiguration, place, sources, shareRemover: remover, spoken, summary } = context
	const share = sources.find(({ name }) => name === "share")
	if (share === undefined || remover === undefined)
		throw new OperatorError(`${environment.name} has no share, and nothing is removed anywhere else`, {
			exitCode: exitCodes.usage,
			hint: "comfyume config check",
		})
	const offSite = offSiteHoldings(context)
	const chosen = withClasses(artifacts)
	const inReach: Step = {
		id: shareStep,
		title: "the share is there",
		check: async () => {
			if (share.trouble !== undefined) throw share.trouble
			await share.store.probe()
			return satisfied(share.store.place)
		},
		apply: async () => {},
	}
	const again = `comfyume backup retention ${spoken}`
	const tools = { context, share, remover, offSite, again }
	return {
		command: "backup retention",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		steps: [inReach, ...chosen.map((kept) => retentionStep(tools, kept)), recordsStep(tools)],
		summary: () => chosen.flatMap(({ artifact }) => summary.get(artifact.name) ?? []),
		next: ({ dryRun, exitCode }) => (dryRun || exitCode !== exitCodes.done ? again : undefined),
	}
}

type Tools = {
	context: StepContext
	share: Source
	remover: ShareRemover
	/** The command to type next. */
	again: string
	/** What R2 holds of an artifact; undefined where there is no R2. */
	offSite: (artifact: SnapshotArtifact) => Promise<Holdings | undefined>
}

/** Each bucket is listed once, when the first of its artifacts is asked for. */
function offSiteHoldings(
	context: StepContext,
): (artifact: SnapshotArtifact) => Promise<Holdings | undefined> {
	const listed = new Map<Source, Promise<Holdings>>()
	return async (artifact) => {
		const r2 = sourcesOf(context, artifact).find(({ name }) => name === "r2")
		if (r2 === undefined) return undefined
		const listing = listed.get(r2) ?? holdingsOf(context, r2)
		listed.set(r2, listing)
		return listing
	}
}

const holdingsOf = ({ environment, hostConfiguration, now }: StepContext, destination: Source) =>
	listHoldings(destination, { environment: environment.name, host: hostConfiguration.name }, now())

function retentionStep(
	{ context, share, remover, offSite, again }: Tools,
	{ artifact, classes }: Kept,
): Step {
	const { environment, hostConfiguration, now, spoken, signal, summary } = context
	const owner = { environment: environment.name, host: hostConfiguration.name, artifact: artifact.name }
	const prefix = snapshotPrefix(environment.name, artifact.name)
	const read = new Map<string, Promise<void>>()
	let removed = 0
	let going: readonly Shrinkable[] = []

	/** The snapshot that everything else stands back for must be whole, byte for byte; read once a run. */
	const requireWhole = (newest: Finished) => {
		const etag = newest.copy.archive?.etag ?? ""
		const reading = read.get(etag) ?? verifyBytes(context, newest)
		read.set(etag, reading)
		return reading
	}

	const survey = async (note: (text: string) => void) => {
		const copies = await listCopies(share, environment.name, artifact.name)
		rejectFuture(copies, now(), artifact.name)
		const finished: Shrinkable[] = []
		const held = new Map(copies.map((copy) => [copy.name.id, copy]))
		const inUse = await builtUpon(copies)
		let bad = 0
		for (const copy of copies) {
			signal.throwIfAborted()
			// Its snapshot is gone, and later ones need its archive.
			if (copy.sidecar === undefined && inUse?.has(copy.name.id) === true) continue
			const judged = await judge(copy, owner, held)
			if (judged.foreign) continue
			if (judged.finished === undefined) {
				bad++
				note(`left alone: ${copy.name.id}: ${judged.because}`)
				continue
			}
			const { sidecar } = judged.finished
			const shrunk = sidecar.kind === "archive" && sidecar.shrunkFromBytes !== undefined
			finished.push({ ...judged.finished, shrunk })
		}
		if (finished.length === 0 && bad > 0)
			throw new OperatorError(
				`none of the ${bad} snapshots of ${artifact.name} on the share can count: nothing goes`,
				{
					hint: `comfyume backup ${spoken} --only ${artifact.name}`,
				},
			)
		const retained = retain(finished, classes)
		return { retained, waiting: await heldBack(retained) }
	}

	/** What the object store doesn't have as new as, finished: it stays until it does. */
	const heldBack = async ({ go }: Retained<Shrinkable>): Promise<ReadonlySet<Shrinkable>> => {
		if (go.length === 0 || artifact.schedule?.r2 === undefined) return new Set()
		const holdings = await offSite(artifact)
		if (holdings === undefined) return new Set()
		const { newest } = await holdings.standing(artifact.name)
		return new Set(go.filter(({ name }) => newest === undefined || newest.name.takenAt < name.takenAt))
	}

	/** The archives that snapshots need, whoever's they are; undefined when one can't be read, which may need any. */
	const builtUpon = async (copies: readonly Copy[]): Promise<ReadonlySet<string> | undefined> => {
		const used = new Set<string>()
		if (artifact.kind !== "archive" || !artifact.incremental) return used
		for (const copy of copies) {
			if (copy.sidecar === undefined) continue
			const sidecar = await readSidecar(copy).catch(() => undefined)
			if (sidecar?.kind !== "archive") return undefined
			for (const { id } of [copy.name, ...(sidecar.incremental?.archives ?? [])]) used.add(id)
		}
		return used
	}

	/** Archives of incremental snapshots that are gone, and that none builds upon any more. */
	const unused = async (): Promise<ObjectHead[]> => {
		if (artifact.kind !== "archive" || !artifact.incremental) return []
		const copies = await listCopies(share, environment.name, artifact.name)
		const used = await builtUpon(copies)
		if (used === undefined) return []
		const oldMs = now().getTime() - unusedKeptMs
		return copies.flatMap(({ name, archive }) =>
			archive !== undefined && !used.has(name.id) && name.takenAt.getTime() < oldMs ? [archive] : [],
		)
	}

	/** A step that failed has no row that says ok. */
	const orSaid = async <T>(work: () => Promise<T>): Promise<T> => {
		try {
			return await work()
		} catch (error) {
			const verified = removed === 0 ? messageOf(error) : `${removed} removed, then: ${messageOf(error)}`
			const row = { artifact: artifact.name, source: "share", snapshot: "none" }
			summary.set(artifact.name, { ...row, ...summary.get(artifact.name), verified, ok: false })
			throw error
		}
	}

	const check: Step["check"] = async (report) => {
		const said = new Set<string>()
		const { retained, waiting } = await survey((text) => said.add(text))
		if (removed === 0) for (const text of said) report.note(text)
		const [newest] = retained.keep
		going = retained.go.filter((snapshot) => !waiting.has(snapshot))
		const begun = await remover.unfinished(prefix)
		const orphans = going.length === 0 ? await unused() : []
		const held = waiting.size === 0 ? "" : `; ${waiting.size} more wait until r2 has one as new`
		summary.set(artifact.name, {
			artifact: artifact.name,
			source: "share",
			snapshot: newest?.snapshot.name.id ?? "none",
			verified: `${retained.keep.length} kept, ${removed === 0 ? `${going.length} to go` : `${removed} removed`}${held}`,
			ok: true,
		})
		if (going.length === 0 && begun.length === 0 && orphans.length === 0)
			return satisfied(`${retained.keep.length} are kept (${describe(classes)})${held}`)
		if (newest !== undefined && going.length > 0) await requireWhole(newest.snapshot)
		const kept = retained.keep.map(({ snapshot, because }) => `${snapshot.name.id} (${because.join(", ")})`)
		return needed(
			[
				...(going.length === 0
					? []
					: [
							`no class keeps ${going.length} of ${retained.keep.length + retained.go.length}: ${shorten(going.map(({ name }) => name.id))}`,
							`kept: ${kept.join(", ")}`,
						]),
				...(orphans.length === 0 ? [] : [`${orphans.length} archives that no snapshot builds upon`]),
				...(begun.length === 0 ? [] : [`${begun.length} whose removal was begun`]),
			].join("; ") + held,
		)
	}

	const apply: Step["apply"] = ({ note }) =>
		alone(share, { purpose: `retention of ${artifact.name}`, again, note }, async (lease) => {
			for (const key of await remover.unfinished(prefix)) await remover.finish(key)
			// Another host may have been at it while this one waited.
			const { retained } = await survey(() => {})
			const still = new Set(retained.go.map(({ name }) => name.id))
			for (const { copy, name } of going) {
				signal.throwIfAborted()
				if (copy.sidecar === undefined || !still.has(name.id)) continue
				await lease.require()
				await remover.remove(copy.sidecar, copy.index ?? copy.archive)
				removed++
			}
			for (const head of await unused()) {
				await lease.require()
				await remover.remove(head, undefined)
			}
		})

	return {
		id: artifact.name,
		title: artifact.name,
		requires: [shareStep],
		check: (report) => orSaid(() => check(report)),
		apply: (report) => orSaid(() => apply(report)),
	}
}

const describe = ({ daily, weekly, monthly }: RetentionClasses) =>
	`${daily} daily, ${weekly} weekly, ${monthly} monthly`

const shorten = (ids: readonly string[]) =>
	ids.length <= 6 ? ids.join(", ") : `${ids.slice(0, 3).join(", ")}, … ${ids.slice(-2).join(", ")}`

/** One of the clocks is wrong, and which snapshot is the newest can't be told. */
function rejectFuture(copies: readonly Copy[], now: Date, artifact: string): void {
	const late = copies.find(({ name }) => name.takenAt.getTime() > now.getTime() + clockToleranceMs)
	if (late === undefined) return
	throw new OperatorError(
		`${late.name.id} of ${artifact} is dated after now, ${now.toISOString()}: nothing goes while a clock is wrong`,
		{
			exitCode: exitCodes.refusedByGuard,
			hint: "timedatectl   # when this clock is right, move the snapshot with the wrong date out of the way by hand",
		},
	)
}

async function verifyBytes(
	{ signal, spoken }: StepContext,
	{ copy, name, sidecar }: Finished,
): Promise<void> {
	if (sidecar.kind === "commit" || copy.archive === undefined) return
	const { store } = copy.source
	const { environment, artifact } = sidecar
	const incremental = incrementalOf(sidecar)
	const pieces = [
		{ key: copy.archive.key, digest: sidecar.digest },
		...(incremental === undefined
			? []
			: [{ key: indexKey(environment, artifact, name.id), digest: incremental.index.digest }]),
		...(incremental?.archives ?? []).map(({ id, digest }) => ({
			key: archiveKey(sidecar, id),
			digest,
		})),
	]
	for (const { key, digest } of pieces) {
		if ((await digestOfObject(store, key, signal)) === digest) continue
		throw new OperatorError(
			`the newest snapshot ${name.id} on the share is damaged, ${key} doesn't have its sidecar's digest: nothing goes`,
			{
				hint: `mv ${quoteForShell(`${store.place}/${key}`)}{,.bad}   # then: comfyume backup ${spoken} --only ${artifact}`,
			},
		)
	}
}

function recordsStep({ context, share, remover, again }: Tools): Step {
	const { environment, hostConfiguration } = context
	const prefix = confirmationPrefix({ environment: environment.name, host: hostConfiguration.name })
	const old = async (): Promise<ObjectHead[]> => {
		const heads: ObjectHead[] = []
		for await (const head of share.store.list(prefix)) if (head.key.endsWith("Z.json")) heads.push(head)
		const newestMs = Math.max(0, ...heads.map(({ storedAt }) => storedAt.getTime()))
		return heads.filter(({ storedAt }) => newestMs - storedAt.getTime() > recordsKeptMs)
	}
	return {
		id: "records",
		title: "records of unchanged artifacts",
		requires: [shareStep],
		check: async () => {
			const count = (await old()).length + (await remover.unfinished(prefix)).length
			return count === 0 ? satisfied("none is older than a month") : needed(`${count} are older than a month`)
		},
		apply: ({ note }) =>
			alone(share, { purpose: "retention of records", again, note }, async (lease) => {
				for (const key of await remover.unfinished(prefix)) await remover.finish(key)
				for (const head of await old()) {
					await lease.require()
					await remover.remove(head, undefined)
				}
			}),
	}
}

/**
 * What the same classes would keep of what the object store holds. Checks only: nothing is deleted there.
 * @throws {OperatorError} (2) when there is no object store
 */
export function retentionReport(context: StepContext, artifacts: readonly Artifact[]): Plan {
	const { environment, hostConfiguration, place, sources } = context
	if (!sources.some(({ name }) => name === "r2"))
		throw new OperatorError(`${environment.name} has no object store to report on`, {
			exitCode: exitCodes.usage,
			hint: "comfyume config check",
		})
	const rows: SummaryRow[] = []
	const offSite = offSiteHoldings(context)
	return {
		command: "backup retention --report",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		steps: withClasses(artifacts).map(
			({ artifact, classes }): Step => ({
				id: artifact.name,
				title: artifact.name,
				check: async () => {
					const copies = (await offSite(artifact))?.copies(artifact.name) ?? []
					const all = copies.filter(({ sidecar }) => sidecar !== undefined)
					const { keep, go } = retain(all, classes)
					const sizeBytes = go.reduce(
						(sum, { archive, sidecar }) => sum + (archive?.sizeBytes ?? 0) + (sidecar?.sizeBytes ?? 0),
						0,
					)
					const because = `${go.length} of ${all.length} snapshots, ${formatBytes(sizeBytes)}, would be eligible; nothing is deleted there`
					const newest = keep[0]?.snapshot.name.id ?? "none"
					rows.push({ artifact: artifact.name, source: "r2", snapshot: newest, verified: because, ok: true })
					return satisfied(because)
				},
				apply: async () => {},
			}),
		),
		summary: () => rows,
	}
}
