// Whether the backups are where they should be, asked of the destinations themselves: a backup job that died, or says
// that all is well, changes nothing of the answer.
import type { Artifact, SnapshotArtifact } from "../artifacts/catalogue.ts"
import { isStale, type Schedule } from "../artifacts/schedule.ts"
import { digestOf } from "../artifacts/snapshot.ts"
import { labelOf, type Source } from "../artifacts/source.ts"
import { evidenceOf, type Holdings, listHoldings, type Standing } from "../artifacts/standing.ts"
import { exitCodes, messageOf, OperatorError, systemError } from "../errors.ts"
import { type Finding, needed, type Plan, type Step, type SummaryRow, satisfied } from "../plan/step.ts"
import { formatSeconds } from "../ui/format.ts"
import { ageSeconds, type StepContext } from "./context.ts"
import { destinationsOf, isNotHere, scheduleOf } from "./destinations.ts"
import { overdueDrills } from "./drill-overdue.ts"
import { compareModels } from "./new-models.ts"

type Asked = { artifact: SnapshotArtifact; destination: Source; schedule: Schedule }
/** What is said of one artifact in one destination. `rank`: what is worst comes first. */
type Answer = { step: Step; row: SummaryRow; rank: number }

const ranks = { missing: 0, stale: 1, fresh: 2 } as const

/**
 * One step that each destination can be read, and one for each artifact in each: the newest finished snapshot against
 * its schedule. Everything is asked while the plan is made, one listing per destination, so that what is missing can
 * stand first.
 */
export async function statusPlan(context: StepContext, artifacts: readonly Artifact[]): Promise<Plan> {
	const { environment, hostConfiguration, place, spoken } = context
	const opened = await Promise.all(
		destinationsOf(context, artifacts).map(async ({ destination, artifacts }) => ({
			destination,
			artifacts,
			holdings: await openHoldings(context, destination),
		})),
	)
	const answers = (
		await Promise.all(
			opened.map(async ({ destination, artifacts, holdings }) =>
				holdings instanceof OperatorError
					? []
					: Promise.all(scheduled(artifacts, destination).map((asked) => answer(context, asked, holdings))),
			),
		)
	).flat()
	const readable = opened.flatMap(({ holdings }) => (holdings instanceof OperatorError ? [] : [holdings]))
	const models = artifacts.some(({ kind }) => kind === "models") ? [await answerForModels(context)] : []
	const sorted = [...answers, ...models].sort(
		(a, b) =>
			a.rank - b.rank || compare(a.row.artifact, b.row.artifact) || compare(b.row.source, a.row.source),
	)
	const again = `comfyume backup ${spoken}`
	return {
		command: "backup status",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		steps: [
			...opened.map(({ destination, holdings }) => reach(destination, holdings)),
			...sorted.map(({ step }) => step),
			...(readable.length === 0 ? [] : [drillsNoted(context, readable, artifacts)]),
		],
		summary: () => sorted.map(({ row }) => row),
		next: ({ exitCode }) => (exitCode === exitCodes.done ? undefined : again),
	}
}

const scheduled = (artifacts: readonly Artifact[], destination: Source): Asked[] =>
	artifacts.flatMap((artifact) => {
		const schedule = scheduleOf(artifact, destination)
		return artifact.kind === "models" || schedule === undefined ? [] : [{ artifact, destination, schedule }]
	})

/** A destination's listing, or why there is none. */
export async function openHoldings(
	context: StepContext,
	destination: Source,
): Promise<Holdings | OperatorError> {
	const { environment, hostConfiguration, now } = context
	try {
		return await listHoldings(
			destination,
			{ environment: environment.name, host: hostConfiguration.name },
			now(),
		)
	} catch (error) {
		return systemError(error, `reading ${destination.name}`)
	}
}

function reach(destination: Source, holdings: Holdings | OperatorError): Step {
	const { store } = destination
	const label = labelOf(destination)
	return {
		id: `${label}-can-be-read`,
		title: `${label} can be read`,
		check: async () => {
			if (!(holdings instanceof OperatorError)) return satisfied(store.place)
			throw new OperatorError(`nothing can be said of the backups there: ${holdings.message}`, {
				exitCode: holdings.exitCode,
				cause: holdings,
				...(holdings.hint === undefined ? {} : { hint: holdings.hint }),
			})
		},
		apply: async () => {},
	}
}

/** A note and no failure: backups that nobody has brought back of late may still be good. */
function drillsNoted(
	context: StepContext,
	holdings: readonly Holdings[],
	artifacts: readonly Artifact[],
): Step {
	return {
		id: "drills",
		title: "drills",
		check: async (report) => {
			const overdue = await overdueDrills(context, holdings, artifacts)
			if (overdue !== undefined) report.note(overdue)
			return satisfied(overdue === undefined ? "none is older than five weeks" : "some are overdue")
		},
		apply: async () => {},
	}
}

/** How an artifact stands in a destination, and why it is said so. */
export async function judgeArtifact(
	context: StepContext,
	{ artifact, schedule }: Asked,
	holdings: Holdings,
): Promise<{ state: keyof typeof ranks; because: string; ageSeconds?: number } & Standing> {
	const standing = await holdings
		.standing(artifact.name)
		.catch((error): Standing => ({ passedOver: [messageOf(error)], foreign: [] }))
	const evidence = evidenceOf(standing)
	const stale = isStale(schedule, evidence, context.now())
	const absent =
		standing.newest === undefined && standing.passedOver.length === 0 && (await isNotHere(context, artifact))
	const state = absent ? "fresh" : standing.newest === undefined ? "missing" : stale ? "stale" : "fresh"
	const age = evidence === undefined ? "" : formatSeconds(ageSeconds(context, evidence))
	const fresh = standing.confirmedAt === undefined ? `taken ${age} ago` : `found unchanged ${age} ago`
	const says = {
		missing: `no snapshot of this host; it is due ${schedule.text}`,
		stale: `${fresh}, and it is due ${schedule.text}`,
		fresh: `${fresh}; due ${schedule.text}`,
	}[state]
	return {
		...standing,
		state,
		because: absent ? "not on this host" : [says, ...standing.passedOver].join("; "),
		...(evidence === undefined ? {} : { ageSeconds: ageSeconds(context, evidence) }),
	}
}

async function answer(context: StepContext, asked: Asked, holdings: Holdings): Promise<Answer> {
	const { artifact, destination } = asked
	const { state, because, newest, passedOver } = await judgeArtifact(context, asked, holdings)
	const again = `comfyume backup ${context.spoken} --only ${artifact.name}`
	const finding: Finding = state === "fresh" ? satisfied(because) : needed(because, again)
	const digest = newest && digestOf(newest.sidecar)
	return {
		rank: ranks[state],
		row: {
			artifact: artifact.name,
			source: destination.name,
			snapshot: newest?.name.id ?? "none",
			verified: because,
			ok: state === "fresh",
			...(newest === undefined ? {} : { ageSeconds: ageSeconds(context, newest.name.takenAt) }),
			...(digest === undefined ? {} : { digest: digest.slice(0, 12) }),
		},
		step: {
			id: `${artifact.name}/${destination.name}`,
			title: `${artifact.name} on ${destination.name}`,
			check: async (report) => {
				// What can't count is said although an older one, or a confirmation, is fresh: somebody should look.
				if (state === "fresh") for (const text of passedOver) report.warn(text)
				return finding
			},
			apply: async () => {},
		},
	}
}

/** The share's models against their bucket. */
export async function answerForModels(context: StepContext): Promise<Answer> {
	const step = (check: Step["check"]): Step => ({
		id: "models/r2",
		title: "models on r2",
		check,
		apply: async () => {},
	})
	const row = { artifact: "models", source: "r2", snapshot: "" }
	try {
		const { onShare, missing, different } = await compareModels(context)
		const [first = ""] = [...missing, ...different]
		const ok = missing.length + different.length === 0 && onShare.length > 0
		const because =
			onShare.length === 0
				? "there is no model on the share"
				: ok
					? `new files: all ${onShare.length} of the share, by name and size`
					: `of ${onShare.length} on the share ${missing.length} are missing and ${different.length} have another size, as ${first}`
		return {
			rank: ok ? ranks.fresh : ranks.missing,
			row: { ...row, verified: because, ok },
			step: step(async () =>
				ok ? satisfied(because) : needed(because, `comfyume backup ${context.spoken} --only models`),
			),
		}
	} catch (error) {
		const trouble = systemError(error, "comparing the share's models with their bucket")
		return {
			rank: ranks.missing,
			row: { ...row, verified: trouble.message, ok: false },
			step: step(async () => {
				throw trouble
			}),
		}
	}
}

const compare = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0)
