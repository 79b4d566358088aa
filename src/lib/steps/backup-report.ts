// Gathers what the report on backups says. It asks the destinations as `backup status` does, and writes nothing.
import type { Artifact, SnapshotArtifact } from "../artifacts/catalogue.ts"
import { readDrills } from "../artifacts/drill-record.ts"
import {
	type ReportedArtifact,
	type ReportedDestination,
	type ReportFacts,
	renderReport,
} from "../artifacts/report.ts"
import { retain } from "../artifacts/retention.ts"
import { digestOf } from "../artifacts/snapshot.ts"
import { type Copy, labelOf, type Source, unfinishedArchives } from "../artifacts/source.ts"
import type { Holdings } from "../artifacts/standing.ts"
import { messageOf, OperatorError } from "../errors.ts"
import { needed, type Plan, satisfied } from "../plan/step.ts"
import { answerForModels, judgeArtifact, openHoldings } from "./backup-status.ts"
import type { StepContext } from "./context.ts"
import { destinationsOf, scheduleIn } from "./destinations.ts"
import { overdueDrills } from "./drill-overdue.ts"

const recentMs = 30 * 24 * 60 * 60 * 1000
const shownDrills = 6
const shownUnfinished = 20

/** One step that gathers the facts and says them as one document; not satisfied when something is missing. */
export function reportPlan(context: StepContext, artifacts: readonly Artifact[]): Plan {
	const { environment, hostConfiguration, place, spoken } = context
	return {
		command: "backup report",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		steps: [
			{
				id: "report",
				title: "the report",
				check: async (report) => {
					const facts = await gather(context, artifacts)
					report.document(renderReport(facts))
					const { destinations, models } = facts
					const count =
						facts.artifacts.filter(({ ok }) => !ok).length +
						destinations.filter(({ trouble }) => trouble !== undefined).length +
						(models?.ok === false ? 1 : 0)
					return count === 0
						? satisfied("nothing is missing")
						: needed(`it begins with what is missing: ${count}`, `comfyume backup status ${spoken}`)
				},
				apply: async () => {},
			},
		],
	}
}

async function gather(context: StepContext, artifacts: readonly Artifact[]): Promise<ReportFacts> {
	const { environment, hostConfiguration, now, comfyume } = context
	const opened = await Promise.all(
		destinationsOf(context, artifacts).map(async ({ destination }) => ({
			source: destination,
			holdings: await openHoldings(context, destination),
		})),
	)
	const readable = opened.flatMap(({ holdings }) => (holdings instanceof OperatorError ? [] : [holdings]))
	const owner = { environment: environment.name, host: hostConfiguration.name }
	const models = artifacts.some(({ kind }) => kind === "models") ? await answerForModels(context) : undefined
	const overdue = await overdueDrills(context, readable, artifacts)
	return {
		...owner,
		at: now(),
		comfyume,
		artifacts: await artifactsIn(context, readable, artifacts),
		destinations: await Promise.all(
			opened.map(({ source, holdings }) => destinationFacts(context, source, holdings, artifacts)),
		),
		...(models === undefined ? {} : { models: { ok: models.row.ok, because: models.row.verified } }),
		drills: await readDrills(readable, owner, { now: now(), most: shownDrills }),
		...(overdue === undefined ? {} : { overdueDrills: overdue }),
	}
}

/** Of each artifact its destinations, side by side. */
function artifactsIn(
	context: StepContext,
	readable: readonly Holdings[],
	artifacts: readonly Artifact[],
): Promise<ReportedArtifact[]> {
	return Promise.all(
		artifacts.flatMap((artifact) =>
			readable.flatMap((holdings) => {
				const { destination } = holdings
				const schedule = scheduleIn(context, artifact, destination)
				return artifact.kind === "models" || schedule === undefined
					? []
					: [artifactFacts(context, holdings, { artifact, destination, schedule })]
			}),
		),
	)
}

async function artifactFacts(
	context: StepContext,
	holdings: Holdings,
	asked: Parameters<typeof judgeArtifact>[1],
): Promise<ReportedArtifact> {
	const { artifact, destination, schedule } = asked
	const { state, because, newest, passedOver, ageSeconds } = await judgeArtifact(context, asked, holdings)
	const copies = holdings.copies(artifact.name).filter(({ sidecar }) => sidecar !== undefined)
	const sidecar = newest?.sidecar
	const oldest = copies.at(-1)?.name.takenAt
	return {
		artifact: artifact.name,
		destination: destination.name,
		schedule: schedule.text,
		ok: state === "fresh" && passedOver.length === 0,
		because,
		...(newest === undefined || sidecar === undefined
			? {}
			: {
					newest: {
						id: newest.name.id,
						takenAt: newest.name.takenAt,
						digest: digestOf(sidecar),
						...(sidecar.kind === "commit" ? {} : { sizeBytes: sidecar.sizeBytes }),
					},
				}),
		...(ageSeconds === undefined ? {} : { ageSeconds }),
		snapshots: {
			count: copies.length,
			...classesOf(artifact, copies),
			...(oldest === undefined ? {} : { oldest }),
		},
		...(destination.name === "r2" && artifact.retention !== undefined
			? { eligible: eligibleOf(retain(copies, artifact.retention).go) }
			: {}),
	}
}

function classesOf({ retention }: SnapshotArtifact, copies: readonly Copy[]) {
	const keep = retention === undefined ? [] : retain(copies, retention).keep
	const count = (name: string) => keep.filter(({ because }) => because.includes(name)).length
	return { daily: count("daily"), weekly: count("weekly"), monthly: count("monthly") }
}

const eligibleOf = (go: readonly Copy[]) => ({
	count: go.length,
	sizeBytes: go.reduce(
		(sum, { archive, sidecar }) => sum + (archive?.sizeBytes ?? 0) + (sidecar?.sizeBytes ?? 0),
		0,
	),
})

async function destinationFacts(
	{ environment, now }: StepContext,
	source: Source,
	holdings: Holdings | OperatorError,
	artifacts: readonly Artifact[],
): Promise<ReportedDestination> {
	const { store } = source
	const nothing = {
		name: labelOf(source),
		place: store.place,
		objects: 0,
		sizeBytes: 0,
		recentBytes: 0,
		unfinished: [],
	}
	if (holdings instanceof OperatorError) return { ...nothing, trouble: messageOf(holdings) }
	const { heads } = holdings
	const sizeOf = (some: typeof heads) => some.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
	const freeBytes = (await store.room?.())?.freeBytes
	const unfinished: { what: string; since: Date }[] = []
	for await (const { key, startedAt } of store.listUnfinished?.(`${environment.name}/`) ?? [])
		unfinished.push({ what: `the upload of ${key}`, since: startedAt })
	for (const { key, storedAt } of unfinishedArchives(holdings.copies, artifacts))
		unfinished.push({ what: `${key} has no sidecar`, since: storedAt })
	return {
		...nothing,
		objects: heads.length,
		sizeBytes: sizeOf(heads),
		recentBytes: sizeOf(heads.filter(({ storedAt }) => now().getTime() - storedAt.getTime() <= recentMs)),
		unfinished: unfinished.slice(0, shownUnfinished),
		...(freeBytes === undefined ? {} : { freeBytes }),
	}
}
