// When an artifact is to be backed up, and whether it was. All times are UTC: there is no hour that comes twice a year.
import { z } from "zod"

export type Schedule = {
	/** As the catalogue says it. */
	text: string
	/** Hours of the day at which a slot begins, ascending; none for `new files`, which are due when there are some. */
	hours: readonly number[]
}

const hourMs = 60 * 60 * 1000
const dayMs = 24 * hourMs
const everyHour = Array.from({ length: 24 }, (_, hour) => hour)

/** How long after its slot a backup may still be under way before it counts as missing: the timer's minute and the run. */
const graceMs = 90 * 60 * 1000

/** Clocks of two machines may differ by this much. What is dated later than that has a wrong date. */
export const clockToleranceMs = 5 * 60 * 1000

/** `hourly`, `daily at 03`, `daily at 02, 06, 14, 18`, `new files`; undefined for anything else. */
export function parseSchedule(text: string): Schedule | undefined {
	if (text === "hourly") return { text, hours: everyHour }
	if (text === "new files") return { text, hours: [] }
	const [, list] = /^daily at (\d{2}(?:, \d{2})*)$/.exec(text) ?? []
	if (list === undefined) return undefined
	const hours = list.split(", ").map(Number)
	const ascending = hours.every((hour, index) => index === 0 || hour > (hours[index - 1] ?? 0))
	return ascending && hours.every((hour) => hour < 24) ? { text, hours } : undefined
}

export const scheduleSchema = z.string().transform((text, context) => {
	const schedule = parseSchedule(text)
	if (schedule !== undefined) return schedule
	context.addIssue({
		code: "custom",
		message: "a schedule: `hourly`, `daily at 02, 06, 14, 18` (UTC, ascending) or `new files`",
	})
	return z.NEVER
})

/** The beginning of the newest slot at or before a time; undefined for a schedule without slots. */
export function slotBefore({ hours }: Schedule, at: Date): Date | undefined {
	const midnight = Math.floor(at.getTime() / dayMs) * dayMs
	const slots = [midnight - dayMs, midnight].flatMap((day) => hours.map((hour) => day + hour * hourMs))
	const last = slots.findLast((slot) => slot <= at.getTime())
	return last === undefined ? undefined : new Date(last)
}

/**
 * True when the newest slot has nothing yet. After any downtime one backup catches up: only the newest slot is asked.
 * @param evidence when it was last known that the destination holds the newest state; undefined: never
 */
export function isDue(schedule: Schedule, evidence: Date | undefined, now: Date): boolean {
	const slot = slotBefore(schedule, now)
	return slot !== undefined && (evidence === undefined || evidence < slot)
}

/** True when a slot that began longer ago than the grace has nothing yet: the backups have stopped, or fail. */
export function isStale(schedule: Schedule, evidence: Date | undefined, now: Date): boolean {
	return isDue(schedule, evidence, new Date(now.getTime() - graceMs))
}
