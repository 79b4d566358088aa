// The records of drills: noted on every destination, and shown.
import type { Artifact, SnapshotArtifact } from "../artifacts/catalogue.ts"
import { type DrillRecord, drillKey, readDrills, renderDrill } from "../artifacts/drill-record.ts"
import { labelOf, type Source } from "../artifacts/source.ts"
import { type Holdings, listHoldings } from "../artifacts/standing.ts"
import { digestFile } from "../artifacts/tree.ts"
import { OperatorError, systemError } from "../errors.ts"
import type { DrillFacts } from "../plan/events.ts"
import { needed, type Plan, type Report, type Step, satisfied } from "../plan/step.ts"
import { formatSeconds } from "../ui/format.ts"
import { ageSeconds, clearWork, drillDirectory, type StepContext } from "./context.ts"
import { destinationsOf } from "./destinations.ts"
import { once } from "./open.ts"

export type Opened = {
	destination: Source
	/** Those whose snapshots lie there. */
	artifacts: readonly SnapshotArtifact[]
	holdings: () => Promise<Holdings>
}

/**
 * The last drills, newest first, as the destinations of these artifacts hold them. Checks only.
 * @param most how many are shown
 */
export function drillHistory(context: StepContext, artifacts: readonly Artifact[], most: number): Plan {
	const { environment, hostConfiguration, place, now, spoken } = context
	const all = openDestinations(context, artifacts)
	return {
		command: "backup drill --history",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		steps: [
			...all.map(({ destination, holdings }) => reach(destination, holdings)),
			{
				id: "drills",
				title: "the last drills",
				check: async (report) => {
					const readable = (
						await Promise.all(all.map(({ holdings }) => holdings().catch(() => undefined)))
					).filter((holdings) => holdings !== undefined)
					const drills = await readDrills(readable, ownerOf(context), { now: now(), most })
					for (const drill of drills) report.drill(factsOf(drill))
					return drills.length === 0
						? needed("there never was one", `comfyume backup drill ${spoken}`)
						: satisfied(
								`${drills.length}, the last one ${formatSeconds(ageSeconds(context, at(drills[0])))} ago`,
							)
				},
				apply: async () => {},
			},
		],
	}
}

export const ownerOf = ({ environment, hostConfiguration }: StepContext) => ({
	environment: environment.name,
	host: hostConfiguration.name,
})

const at = (drill: DrillRecord | undefined) => new Date(drill?.at ?? 0)

/** Each destination is listed once, when it is first asked for. */
export function openDestinations(context: StepContext, artifacts: readonly Artifact[]): Opened[] {
	return destinationsOf(context, artifacts).map(({ destination, artifacts: those }) => ({
		destination,
		artifacts: those,
		holdings: once(() => listHoldings(destination, ownerOf(context), context.now())),
	}))
}

export function reach(destination: Source, holdings: () => Promise<Holdings>): Step {
	return {
		id: `${labelOf(destination)}-can-be-read`,
		title: `${labelOf(destination)} can be read`,
		check: async () => {
			await holdings()
			return satisfied(destination.store.place)
		},
		apply: async () => {},
	}
}

export const factsOf = ({ comfyume, at: drilledAt, exitCode, results }: DrillRecord): DrillFacts => ({
	comfyume,
	drilledAt,
	exitCode,
	results,
})

/** The record goes to every destination: the one that burns must not take the history with it. */
export function noteIn(
	context: StepContext,
	{ destination }: Opened,
	record: (report: Report) => DrillRecord,
): Step {
	const { host, signal } = context
	let noted = false
	return {
		id: `record/${labelOf(destination)}`,
		title: `a record of the drill, on ${labelOf(destination)}`,
		check: async () => {
			if (destination.trouble !== undefined) return satisfied(`${destination.name} can't be used`)
			return noted ? satisfied("noted") : needed("not noted yet")
		},
		apply: async (report) => {
			const whole = record(report)
			const file = `${drillDirectory}/record.json`
			try {
				await host.files.makeDirectory(drillDirectory, 0o700)
				await host.write(file, renderDrill(whole), { mode: 0o600 })
				const facts = await digestFile(host.path(file))
				const key = drillKey(ownerOf(context), at(whole))
				const put = { ...facts, ifAbsent: true as const, signal }
				if ((await destination.store.put(key, host.path(file), put)) === "already-there")
					throw new OperatorError(`${key} stands on ${destination.name} already`, {
						hint: "date -u   # two runs within one second, or a clock that was set back",
					})
				noted = (await destination.store.head(key))?.sizeBytes === facts.sizeBytes
			} catch (error) {
				throw systemError(error, `noting the drill on ${destination.name}`)
			} finally {
				await clearWork(host)
			}
		},
	}
}
