// What drills have found, kept where the backups are: one small object per drill and destination, never replaced.
import { z } from "zod"
import { drillResultSchema } from "../plan/events.ts"
import { clockToleranceMs } from "./schedule.ts"
import { stamp } from "./snapshot.ts"
import { type Holdings, type Owner, readRecord, timeOf } from "./standing.ts"

export type DrillResult = z.infer<typeof drillResultSchema>

const recordSchema = z.object({
	version: z.literal(1),
	kind: z.literal("drill"),
	comfyume: z.string(),
	environment: z.string(),
	host: z.string(),
	at: z.iso.datetime(),
	exitCode: z.number(),
	results: z.array(drillResultSchema),
})

export type DrillRecord = z.infer<typeof recordSchema>

/** Where a host's drills are noted in every store. Ends with a slash. */
export const drillPrefix = ({ environment, host }: Owner) => `${environment}/records/drills/${host}/`

export const drillKey = (owner: Owner, at: Date) => `${drillPrefix(owner)}${stamp(at)}.json`

export const renderDrill = (record: DrillRecord) => `${JSON.stringify(record, null, "\t")}\n`

/**
 * The drills of a host, newest first, out of all destinations' records. What can't be read, is another host's or is
 * dated in the future is passed over: it proves nothing.
 * @param holdings each destination as it was listed
 * @param most how many are read at most
 */
export async function readDrills(
	holdings: readonly Pick<Holdings, "destination" | "heads">[],
	owner: Owner,
	{ now, most }: { now: Date; most: number },
): Promise<DrillRecord[]> {
	const prefix = drillPrefix(owner)
	const keys = new Map<string, Pick<Holdings, "destination">[]>()
	for (const holding of holdings)
		for (const { key } of holding.heads)
			if (key.startsWith(prefix)) keys.set(key, [...(keys.get(key) ?? []), holding])
	const newest = [...keys.keys()]
		.filter((key) => (timeOf(key)?.getTime() ?? Number.POSITIVE_INFINITY) <= now.getTime() + clockToleranceMs)
		.sort()
		.reverse()
		.slice(0, most)
	const found = await Promise.all(
		newest.map(async (key) => {
			for (const { destination } of keys.get(key) ?? []) {
				// One that can't be read may stand whole on the other destination.
				const record = await readRecord(destination.store, key, recordSchema).catch(() => undefined)
				if (record?.environment === owner.environment && record.host === owner.host) return record
			}
			return undefined
		}),
	)
	return found.filter((record) => record !== undefined)
}

/** How many are read to find each artifact's latest: more than a year of monthly ones, with repetitions. */
export const drillsLookedAt = 40

/** The newest result of an artifact in a destination; undefined when it was never on trial. */
export function latestResult(
	drills: readonly DrillRecord[],
	{ artifact, destination, good }: { artifact: string; destination: string; good?: boolean },
): { at: Date; ok: boolean } | undefined {
	for (const { at, results } of drills) {
		const result = results.find((one) => one.artifact === artifact && one.destination === destination)
		if (result !== undefined && (good !== true || (result.ok && result.opened !== false)))
			return { at: new Date(at), ok: result.ok }
	}
	return undefined
}

const dayMs = 24 * 60 * 60 * 1000
const everyDays = { weekly: 7, monthly: 30 } as const
const day = (at: Date) => at.toISOString().slice(0, 10)

/**
 * True when an artifact is to be drilled by now: it never was, its last good drill is a week or a month old, or its last
 * one failed, on an earlier day (UTC) than today.
 */
export function isDrillDue(
	every: keyof typeof everyDays,
	latest: { at: Date; ok: boolean } | undefined,
	now: Date,
): boolean {
	if (latest === undefined) return true
	if (!latest.ok) return day(latest.at) !== day(now)
	return now.getTime() - latest.at.getTime() >= everyDays[every] * dayMs
}
