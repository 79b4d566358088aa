// A drill: the newest snapshot of every artifact comes back on trial, from each destination by itself, so that a good
// copy of one doesn't hide a bad one of the other. Nothing live is touched, and nothing is healed.
import type { Artifact, SnapshotArtifact } from "../artifacts/catalogue.ts"
import {
	type DrillRecord,
	type DrillResult,
	drillsLookedAt,
	isDrillDue,
	latestResult,
	readDrills,
} from "../artifacts/drill-record.ts"
import { isStale } from "../artifacts/schedule.ts"
import { labelOf, type Source } from "../artifacts/source.ts"
import { evidenceOf, type Standing } from "../artifacts/standing.ts"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import {
	needed,
	type Plan,
	type Report,
	type Step,
	type SummaryRow,
	satisfied,
	unknown,
} from "../plan/step.ts"
import { formatBytes, formatRate } from "../ui/format.ts"
import { ageSeconds, clearWork, type StepContext } from "./context.ts"
import { isNotHere, scheduleOf } from "./destinations.ts"
import { factsOf, noteIn, type Opened, openDestinations, ownerOf, reach } from "./drill-history.ts"
import { type BroughtBack, drillArchive, drillCheckout, drillImage } from "./drill-trial.ts"

type Trial = {
	artifact: SnapshotArtifact
	opened: Opened
	step: Step
	result: () => DrillResult | undefined
	failedWith: () => number | undefined
}

/**
 * One step per artifact and destination, and one per destination that notes what was found.
 * @param options.due only what the catalogue makes due by now
 */
export async function drillPlan(
	context: StepContext,
	artifacts: readonly Artifact[],
	options: { due: boolean },
): Promise<Plan> {
	const { environment, hostConfiguration, place, spoken } = context
	const all = openDestinations(context, artifacts)
	const asked = all.flatMap((opened) =>
		opened.artifacts
			.filter((artifact) => scheduleOf(artifact, opened.destination) !== undefined)
			.map((artifact) => ({ artifact, opened })),
	)
	const chosen = options.due ? await dueAmong(context, all, asked) : asked
	const clones = new Map<string, Promise<Timed>>()
	const trials = chosen.map(({ artifact, opened }) => trial(context, artifact, opened, clones))
	const startedAt = context.now()
	let record: DrillRecord | undefined
	// Made and shown once, when every trial is over.
	const recorded = (report: Report): DrillRecord => {
		if (record === undefined) {
			record = recordOf(context, startedAt, trials)
			report.drill(factsOf(record))
		}
		return record
	}
	const used = all.filter((opened) => trials.some((one) => one.opened === opened))
	const models = artifacts.some(({ kind }) => kind === "models")
	return {
		command: "backup drill",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		steps: [
			...used.map(({ destination, holdings }) => reach(destination, holdings)),
			...trials.map(({ step }) => step),
			...used.map((opened) => noteIn(context, opened, recorded)),
			...(models && !options.due ? [modelsAreElsewhere(spoken)] : []),
		],
		summary: () => trials.map((one) => rowOf(one)),
		next: ({ dryRun, exitCode }) =>
			dryRun
				? `comfyume backup drill ${spoken}`
				: exitCode === exitCodes.done || trials.length === 0
					? undefined
					: `comfyume backup drill ${spoken} --history`,
	}
}

async function dueAmong<T extends { artifact: SnapshotArtifact; opened: Opened }>(
	context: StepContext,
	all: readonly Opened[],
	asked: readonly T[],
): Promise<readonly T[]> {
	const now = context.now()
	// One that can't be read is no reason to be silent: what is due there fails in its own step.
	const listed = await Promise.all(all.map(({ holdings }) => holdings().catch(() => undefined)))
	const readable = listed.filter((holdings) => holdings !== undefined)
	const drills = await readDrills(readable, ownerOf(context), { now, most: drillsLookedAt })
	return asked.filter(({ artifact, opened }) => {
		const { name: destination } = opened.destination
		return isDrillDue(
			artifact.drill ?? "monthly",
			latestResult(drills, { artifact: artifact.name, destination }),
			now,
		)
	})
}

function trial(
	context: StepContext,
	artifact: SnapshotArtifact,
	opened: Opened,
	clones: Map<string, Promise<Timed>>,
): Trial {
	const { destination } = opened
	const { host, signal, spoken } = context
	const again = (what = "") => `comfyume backup ${spoken} --only ${artifact.name}${what}`
	let result: DrillResult | undefined
	let failedWith: number | undefined

	const survey = async () => {
		const standing = await (await opened.holdings()).standing(artifact.name)
		return { standing, problems: problemsOf(context, artifact, destination, standing) }
	}

	/** Brought back although something is wrong already: how much is wrong decides what the operator does. */
	const bringBack = async ({ newest }: Standing, report: Report): Promise<Timed | undefined> => {
		if (newest === undefined) return undefined
		try {
			if (artifact.kind === "archive")
				return await timed(context, () => drillArchive(context, artifact, newest, report))
			if (artifact.kind === "image")
				return await timed(context, () => drillImage(context, artifact, newest, report))
			const { sidecar } = newest
			// What both destinations note alike is cloned once: it comes from the same remote.
			const key =
				sidecar.kind === "commit" ? `${sidecar.commit} ${sidecar.branch} ${sidecar.remote}` : newest.name.id
			const cloning = clones.get(key) ?? timed(context, () => drillCheckout(context, artifact, newest))
			clones.set(key, cloning)
			return await cloning
		} finally {
			await clearWork(host)
		}
	}

	return {
		artifact,
		opened,
		result: () => result,
		failedWith: () => failedWith,
		step: {
			id: `${artifact.name}/${destination.name}`,
			title: `${artifact.name} from ${destination.name}`,
			requires: [`${labelOf(destination)}-can-be-read`],
			check: async () => {
				if (result !== undefined) return satisfied(result.because)
				const { standing, problems } = await survey()
				if (standing.newest === undefined && problems.length === 1 && (await isNotHere(context, artifact))) {
					const because = "not on this host, and there is no snapshot of it"
					result = { artifact: artifact.name, destination: destination.name, ok: true, because }
					return satisfied(because)
				}
				const [problem] = problems
				if (problem !== undefined)
					return unknown(problems.map(({ says }) => says).join("; "), problem.hint ?? again())
				return needed(`${standing.newest?.name.id} is to come back on trial`)
			},
			apply: async (report) => {
				const { standing, problems } = await survey()
				const { newest } = standing
				const evidence = evidenceOf(standing)
				const facts = {
					artifact: artifact.name,
					destination: destination.name,
					...(newest === undefined ? {} : { snapshot: newest.name.id }),
					...(evidence === undefined ? {} : { ageSeconds: ageSeconds(context, evidence) }),
				}
				let back: Timed | undefined
				let trouble: unknown
				try {
					back = await bringBack(standing, report)
				} catch (error) {
					if (signal.aborted) throw error
					trouble = error
				}
				const wrong = [
					...(trouble === undefined ? [] : [`${newest?.name.id}: ${messageOf(trouble)}`]),
					...problems.map(({ says }) => says),
				]
				result = {
					...facts,
					ok: wrong.length === 0,
					because: back !== undefined && wrong.length === 0 ? says(back) : wrong.join("; "),
					...(back === undefined ? {} : { tookSeconds: back.tookSeconds }),
					...(back?.sizeBytes === undefined ? {} : { sizeBytes: back.sizeBytes }),
					...(back?.opened === undefined ? {} : { opened: back.opened }),
				}
				if (wrong.length === 0) return
				const damaged = trouble instanceof OperatorError ? trouble : undefined
				const exitCode = damaged?.exitCode ?? exitCodes.incomplete
				failedWith = exitCode
				throw new OperatorError(result.because, {
					exitCode,
					cause: trouble,
					hint:
						trouble === undefined
							? (problems[0]?.hint ?? again())
							: (damaged?.hint ?? again(" --full   # another snapshot, though nothing has changed")),
				})
			},
		},
	}
}

type Timed = BroughtBack & { tookSeconds: number }

async function timed({ now }: StepContext, work: () => Promise<BroughtBack>): Promise<Timed> {
	const startedMs = now().getTime()
	const back = await work()
	return { ...back, tookSeconds: (now().getTime() - startedMs) / 1000 }
}

const says = ({ proof, tookSeconds, sizeBytes }: Timed) =>
	[
		proof,
		`back in ${tookSeconds.toFixed(1)} s`,
		...(sizeBytes === undefined || tookSeconds === 0
			? []
			: [`${formatBytes(sizeBytes)} at ${formatRate(sizeBytes / tookSeconds)}`]),
	].join("; ")

/** What is wrong before a byte of an archive is read. */
function problemsOf(
	{ environment, now, spoken }: StepContext,
	artifact: SnapshotArtifact,
	destination: Source,
	standing: Standing,
): { says: string; hint?: string }[] {
	const { newest, passedOver, foreign } = standing
	const schedule = scheduleOf(artifact, destination)
	const hosts = environment.hosts.map(({ name }) => name)
	// Hosts of this environment keep their snapshots side by side. Anybody else's has no business there.
	const strangers = foreign.filter(({ host }) => !hosts.includes(host))
	return [
		...(newest === undefined
			? [{ says: `${artifact.name} has no snapshot of this host on ${destination.name}` }]
			: []),
		...passedOver.map((text) => ({
			says: `passed over: ${text}`,
			...(text.endsWith("in the future")
				? {
						hint: "timedatectl   # when this clock is right, move the snapshot with the wrong date out of the way by hand",
					}
				: { hint: `comfyume backup ${spoken} --only ${artifact.name} --full` }),
		})),
		...strangers.map(({ name, host }) => ({
			says: `passed over: ${name.id} was taken from ${host}, which is no host of ${environment.name}`,
			hint: `comfyume backup ${spoken} --only ${artifact.name} --full`,
		})),
		...(newest !== undefined &&
		schedule !== undefined &&
		!artifact.byRequest &&
		isStale(schedule, evidenceOf(standing), now())
			? [{ says: `${newest.name.id} is older than its schedule allows (${schedule.text})` }]
			: []),
	]
}

function rowOf({ artifact, opened, result: find }: Trial): SummaryRow {
	const result = find()
	return {
		artifact: artifact.name,
		source: opened.destination.name,
		snapshot: result?.snapshot ?? "none",
		verified: result?.because ?? "not tried; the reason stands above",
		ok: result?.ok === true,
		...(result?.ageSeconds === undefined ? {} : { ageSeconds: result.ageSeconds }),
		...(result?.snapshot === undefined ? {} : { digest: result.snapshot.slice(-12) }),
	}
}

/** What was not tried has failed too: a destination that can't be read brings nothing back. */
function recordOf(context: StepContext, startedAt: Date, trials: readonly Trial[]): DrillRecord {
	const results = trials.map(
		({ artifact, opened, result }): DrillResult =>
			result() ?? {
				artifact: artifact.name,
				destination: opened.destination.name,
				ok: false,
				because: messageOf(opened.destination.trouble ?? "it was not tried"),
			},
	)
	return {
		version: 1,
		kind: "drill",
		comfyume: context.comfyume,
		...ownerOf(context),
		at: startedAt.toISOString(),
		exitCode: exitCodeOf(trials),
		results,
	}
}

/** As the runner will have it: the failures' own where they agree. */
function exitCodeOf(trials: readonly Trial[]): number {
	const codes = new Set(
		trials.flatMap(({ result, failedWith, opened }) =>
			result()?.ok === true
				? []
				: [failedWith() ?? opened.destination.trouble?.exitCode ?? exitCodes.incomplete],
		),
	)
	const [code] = codes
	return code === undefined ? exitCodes.done : codes.size === 1 ? code : exitCodes.incomplete
}

function modelsAreElsewhere(spoken: string): Step {
	return {
		id: "models",
		title: "models",
		check: async () =>
			satisfied(`not part of a drill: comfyume verify-models ${spoken} --deep reads them where they lie`),
		apply: async () => {},
	}
}
