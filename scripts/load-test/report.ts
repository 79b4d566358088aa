// What a load test found, as numbers and as a table.

export type JobTimes = {
	user: string
	kind: "image" | "video"
	/** ms since the test began; undefined: it never came. */
	submittedMs: number
	claimedMs: number | undefined
	endedMs: number | undefined
	/** How often a worker got it. Nobody dies here, so once is right. */
	claims: number
	/** How often it was completed by a worker whose word counted. */
	endings: number
	finalStatus: string
}

export type Report = {
	users: number
	workers: number
	mode: string
	jobs: number
	completed: number
	lost: number
	handedOutTwice: number
	endedTwice: number
	errors: number
	seconds: number
	jobsPerSecond: number
	submitMs: { p50: number; p99: number }
	waitMs: {
		p50: number
		p99: number
		byUser: { user: string; jobs: number; meanMs: number; mostMs: number }[]
	}
	/** Jain's index over the work done per user while everybody still had jobs waiting; 1 is perfectly even. */
	fairness: number
}

/** The value below which a share of the values lies (nearest rank); 0 of none. */
export function percentile(values: readonly number[], share: number): number {
	const sorted = [...values].sort((a, b) => a - b)
	return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0
}

/** Jain's index: 1 when all have the same, 1/n when one has everything; 1 of nothing. */
export function jain(values: readonly number[]): number {
	const sum = values.reduce((total, value) => total + value, 0)
	const squares = values.reduce((total, value) => total + value * value, 0)
	return squares === 0 ? 1 : (sum * sum) / (values.length * squares)
}

/**
 * Claims per user up to the moment when the first user has nothing left to wait for: later, who has more jobs must get
 * more, and that is no unfairness. Users come in only with their first job.
 */
export function servedWhileAllWait(jobs: readonly JobTimes[]): number[] {
	const users = Map.groupBy(jobs, ({ user }) => user)
	const claimsOf = (own: readonly JobTimes[]) =>
		own.map(({ claimedMs }) => claimedMs ?? Number.POSITIVE_INFINITY)
	const begin = Math.max(...[...users.values()].map((own) => Math.min(...own.map((job) => job.submittedMs))))
	const end = Math.min(...[...users.values()].map((own) => Math.max(...claimsOf(own))))
	return [...users.values()].map(
		(own) => claimsOf(own).filter((claimedMs) => claimedMs >= begin && claimedMs <= end).length,
	)
}

/** Sums a run up. */
export function reportOf(
	jobs: readonly JobTimes[],
	run: {
		users: number
		workers: number
		mode: string
		seconds: number
		submitMs: readonly number[]
		errors: number
	},
): Report {
	const waits = jobs.flatMap(({ submittedMs, claimedMs }) =>
		claimedMs === undefined ? [] : [claimedMs - submittedMs],
	)
	const byUser = [...Map.groupBy(jobs, ({ user }) => user)].map(([user, own]) => {
		const mine = own.flatMap(({ submittedMs, claimedMs }) =>
			claimedMs === undefined ? [] : [claimedMs - submittedMs],
		)
		const meanMs = mine.reduce((sum, wait) => sum + wait, 0) / Math.max(1, mine.length)
		return { user, jobs: own.length, meanMs: Math.round(meanMs), mostMs: Math.round(Math.max(0, ...mine)) }
	})
	const completed = jobs.filter(({ finalStatus }) => finalStatus === "completed").length
	return {
		users: run.users,
		workers: run.workers,
		mode: run.mode,
		jobs: jobs.length,
		completed,
		lost: jobs.filter(({ finalStatus }) => finalStatus !== "completed").length,
		handedOutTwice: jobs.filter(({ claims }) => claims > 1).length,
		endedTwice: jobs.filter(({ endings }) => endings > 1).length,
		errors: run.errors,
		seconds: rounded(run.seconds),
		jobsPerSecond: rounded(completed / run.seconds),
		submitMs: { p50: rounded(percentile(run.submitMs, 0.5)), p99: rounded(percentile(run.submitMs, 0.99)) },
		waitMs: { p50: Math.round(percentile(waits, 0.5)), p99: Math.round(percentile(waits, 0.99)), byUser },
		fairness: rounded(jain(servedWhileAllWait(jobs)), 4),
	}
}

/** The report for people. */
export function tableOf(report: Report): string {
	const rows: [string, string][] = [
		["users, workers, mode", `${report.users}, ${report.workers}, ${report.mode}`],
		[
			"jobs completed",
			`${report.completed} of ${report.jobs} in ${report.seconds} s (${report.jobsPerSecond}/s)`,
		],
		["submit p50, p99", `${report.submitMs.p50} ms, ${report.submitMs.p99} ms`],
		["wait p50, p99", `${report.waitMs.p50} ms, ${report.waitMs.p99} ms`],
		["fairness (Jain)", `${report.fairness}`],
		["lost, errors", `${report.lost}, ${report.errors}`],
		["handed out or ended twice", `${report.handedOutTwice}, ${report.endedTwice}`],
	]
	const head = rows.map(([name, value]) => `${name.padEnd(28)}${value}`)
	const users = report.waitMs.byUser.map(
		({ user, jobs, meanMs, mostMs }) =>
			`${user.padEnd(12)}${String(jobs).padStart(6)}${String(meanMs).padStart(14)}${String(mostMs).padStart(14)}`,
	)
	const columns = `${"user".padEnd(12)}${"jobs".padStart(6)}${"mean wait ms".padStart(14)}${"most ms".padStart(14)}`
	return [...head, "", columns, ...users].join("\n")
}

const rounded = (value: number, digits = 1) => Number(value.toFixed(digits))
