// Which snapshots stay. Pure, and without a clock: of the days, weeks and months that have snapshots the latest ones
// count, so neither a clock that jumps nor backups that stopped for a year make anything go.
import type { RetentionClasses } from "./catalogue.ts"
import type { SnapshotName } from "./snapshot.ts"

export type Retained<T> = {
	/** With why each stays, newest first. */
	keep: readonly { snapshot: T; because: readonly string[] }[]
	/** Oldest first. */
	go: readonly T[]
}

type Candidate = {
	name: SnapshotName
	/** Set where it lost more than 30 % against the one before it. */
	shrunk?: boolean
}

const dayMs = 24 * 60 * 60 * 1000
/** How long after a shrinking both it and the one before it stay: somebody is to look which of them is right. */
const shrinkKeptMs = 14 * dayMs

const day = (at: Date) => at.toISOString().slice(0, 10)
const month = (at: Date) => at.toISOString().slice(0, 7)
/** Weeks begin on Monday; 1970-01-01 was a Thursday. */
const week = (at: Date) => `week ${Math.floor((Math.floor(at.getTime() / dayMs) + 3) / 7)}`

/**
 * Keeps the newest snapshot, the newest one of each of the last so many days, weeks and months (UTC) that have one, and
 * for two weeks both sides of a shrinking.
 */
export function retain<T extends Candidate>(
	candidates: readonly T[],
	classes: RetentionClasses,
): Retained<T> {
	const newestFirst = [...candidates].sort((a, b) => (a.name.id < b.name.id ? 1 : -1))
	const [newest] = newestFirst
	const reasons = new Map<T, string[]>()
	const keep = (snapshot: T, because: string) =>
		reasons.set(snapshot, [...(reasons.get(snapshot) ?? []), because])
	if (newest !== undefined) keep(newest, "newest")
	const tables = [
		{ says: "daily", most: classes.daily, of: day },
		{ says: "weekly", most: classes.weekly, of: week },
		{ says: "monthly", most: classes.monthly, of: month },
	]
	for (const { says, most, of } of tables) {
		const seen = new Set<string>()
		for (const snapshot of newestFirst) {
			const span = of(snapshot.name.takenAt)
			if (seen.has(span)) continue
			if (seen.size === most) break
			seen.add(span)
			keep(snapshot, says)
		}
	}
	for (const [index, snapshot] of newestFirst.entries()) {
		const before = newestFirst[index + 1]
		if (snapshot.shrunk !== true || before === undefined || newest === undefined) continue
		if (newest.name.takenAt.getTime() - snapshot.name.takenAt.getTime() > shrinkKeptMs) continue
		keep(snapshot, "it shrank")
		keep(before, "before it shrank")
	}
	return {
		keep: newestFirst.flatMap((snapshot) => {
			const because = reasons.get(snapshot)
			return because === undefined ? [] : [{ snapshot, because }]
		}),
		go: newestFirst.filter((snapshot) => !reasons.has(snapshot)).reverse(),
	}
}
