// What of a backup is due now, found out from the destinations alone: no state file could disagree with them. One
// hourly line of cron is enough, and after downtime the next run catches up.
import type { Artifact, SnapshotArtifact } from "../artifacts/catalogue.ts"
import { isDue } from "../artifacts/schedule.ts"
import { labelOf, type Source } from "../artifacts/source.ts"
import {
	type Confirmation,
	confirmationKey,
	evidenceOf,
	type Holdings,
	listHoldings,
	renderConfirmation,
} from "../artifacts/standing.ts"
import { digestFile } from "../artifacts/tree.ts"
import { OperatorError, systemError } from "../errors.ts"
import { needed, type Step, satisfied } from "../plan/step.ts"
import { clearWork, type Held, heldKey, type StepContext, workDirectory } from "./context.ts"
import { destinationsOf, isNotHere, scheduleOf } from "./destinations.ts"
import { compareModels } from "./new-models.ts"

/** How far a record is dated on where its second is taken. */
const mostSecondsLater = 10

export type Due = {
	isDue(artifact: Artifact): boolean
	/** Where a snapshot is due. A destination that can't be asked is due: its failure must show. */
	destinationsOf(artifact: SnapshotArtifact): readonly Source[]
	/** Says what is due, and is never anything but satisfied. */
	step: Step
	/** One per destination: notes what is unchanged, after everything else. */
	confirmations(held: Held): readonly Step[]
}

/** Lists each destination once and holds it against the catalogue's schedules. */
export async function findDue(context: StepContext, artifacts: readonly Artifact[]): Promise<Due> {
	const surveyed = await Promise.all(
		destinationsOf(context, artifacts).map(async ({ destination, artifacts }) => ({
			destination,
			artifacts,
			due: await dueIn(context, destination, artifacts),
		})),
	)
	const models = artifacts.find(({ kind }) => kind === "models")
	const dueModels = models !== undefined && (await modelsAreDue(context)) ? [models.name] : []
	const dueNames = new Set([...surveyed.flatMap(({ due }) => [...due]), ...dueModels])
	return {
		isDue: ({ name }) => dueNames.has(name),
		destinationsOf: ({ name }) =>
			surveyed.filter(({ due }) => due.has(name)).map(({ destination }) => destination),
		step: {
			id: "schedule",
			title: "what is due",
			check: async () =>
				satisfied(dueNames.size === 0 ? "nothing is due" : `due: ${[...dueNames].join(", ")}`),
			apply: async () => {},
		},
		confirmations: (held) =>
			surveyed.flatMap(({ destination, artifacts, due }) => {
				const confirmable = artifacts.filter(({ name }) => due.has(name))
				return confirmable.length === 0 ? [] : [confirm(context, destination, confirmable, held)]
			}),
	}
}

async function dueIn(
	context: StepContext,
	destination: Source,
	artifacts: readonly SnapshotArtifact[],
): Promise<Set<string>> {
	const due = new Set<string>()
	let holdings: Holdings | undefined
	try {
		holdings = await list(context, destination)
	} catch (error) {
		destination.trouble ??= systemError(error, `listing ${destination.name}`)
	}
	for (const artifact of artifacts) {
		const schedule = scheduleOf(artifact, destination)
		if (schedule === undefined) continue
		// What can't be read is no evidence; the artifact's own step says what is wrong.
		const standing = await holdings?.standing(artifact.name).catch(() => undefined)
		const evidence = standing === undefined ? undefined : evidenceOf(standing)
		const neverThere = standing?.newest === undefined && standing?.passedOver.length === 0
		if (neverThere && (await isNotHere(context, artifact))) continue
		if (holdings === undefined || isDue(schedule, evidence, context.now())) due.add(artifact.name)
	}
	return due
}

/** As the models' own steps will: what can't be compared is for them to say. */
async function modelsAreDue(context: StepContext): Promise<boolean> {
	try {
		const { onShare, missing, different } = await compareModels(context)
		return onShare.length === 0 || missing.length + different.length > 0
	} catch {
		context.signal.throwIfAborted()
		return true
	}
}

const list = ({ environment, hostConfiguration, now }: StepContext, destination: Source) =>
	listHoldings(destination, { environment: environment.name, host: hostConfiguration.name }, now())

/**
 * Notes in a destination which artifacts were looked at and have not changed, or came there as an older snapshot: their
 * newest snapshot alone looks like a backup that has stopped.
 */
function confirm(
	context: StepContext,
	destination: Source,
	artifacts: readonly SnapshotArtifact[],
	held: Held,
): Step {
	const { environment, hostConfiguration, host, now, signal, comfyume } = context
	const unconfirmed = async (): Promise<Confirmation["unchanged"]> => {
		const holdings = await list(context, destination)
		const unchanged: Record<string, string> = {}
		for (const artifact of artifacts) {
			const schedule = scheduleOf(artifact, destination)
			const standing = await holdings.standing(artifact.name)
			if (standing.newest === undefined || schedule === undefined) continue
			if (held.get(heldKey(artifact, destination)) !== standing.newest.name.id) continue
			if (isDue(schedule, evidenceOf(standing), now())) unchanged[artifact.name] = standing.newest.name.id
		}
		return unchanged
	}
	return {
		id: `record/${labelOf(destination)}`,
		title: `a record of what is unchanged, on ${labelOf(destination)}`,
		check: async () => {
			// Each artifact's own step has failed by it.
			if (destination.trouble !== undefined) return satisfied(`${destination.name} can't be used`)
			const count = Object.keys(await unconfirmed()).length
			return count === 0 ? satisfied("nothing is left to note") : needed(`${count} are unchanged`)
		},
		apply: async () => {
			const owner = { environment: environment.name, host: hostConfiguration.name }
			const unchanged = await unconfirmed()
			const file = `${workDirectory}/unchanged.json`
			/** False where one of that second stands there: two of R2's places may be one bucket, and share a run's second. */
			const note = async (at: Date) => {
				const record: Confirmation = {
					...{ version: 1, kind: "unchanged", comfyume, ...owner, at: at.toISOString(), unchanged },
				}
				await host.write(file, renderConfirmation(record), { mode: 0o600 })
				const facts = await digestFile(host.path(file))
				const put = { ...facts, ifAbsent: true as const, signal }
				return (await destination.store.put(confirmationKey(owner, at), host.path(file), put)) === "stored"
			}
			try {
				await host.files.makeDirectory(workDirectory, 0o700)
				const first = now()
				for (let seconds = 0; !(await note(new Date(first.getTime() + seconds * 1000))); seconds++)
					if (seconds === mostSecondsLater)
						throw new OperatorError(
							`${confirmationKey(owner, first)} stands on ${destination.name} already`,
							{
								hint: "date -u   # a clock that was set back?",
							},
						)
			} finally {
				await clearWork(host)
			}
		},
	}
}
