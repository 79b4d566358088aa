// The load test's numbers: a report that can't say "bad" is worth nothing.
import { expect, test } from "vitest"
import {
	type JobTimes,
	jain,
	percentile,
	reportOf,
	servedWhileAllWait,
} from "../../../scripts/load-test/report.ts"

const job = (user: string, claimedMs: number, over: Partial<JobTimes> = {}): JobTimes => ({
	...{ user, kind: "image", submittedMs: 0, claimedMs, endedMs: claimedMs + 1, claims: 1, endings: 1 },
	finalStatus: "completed",
	...over,
})
const run = { users: 2, workers: 1, mode: "fifo", seconds: 2, submitMs: [1, 2, 3], errors: 0 }

test("the index is 1 when all have the same, and 1/n when one has everything", () => {
	expect(jain([3, 3, 3])).toBe(1)
	expect(jain([9, 0, 0])).toBeCloseTo(1 / 3)
	expect(jain([0, 0])).toBe(1)
})

test("percentiles are by nearest rank", () => {
	expect([0.5, 0.99].map((share) => percentile([4, 1, 3, 2], share))).toEqual([2, 4])
	expect(percentile([], 0.5)).toBe(0)
})

test("fairness is measured while everybody waits: who has more jobs may have the rest of the time", () => {
	const jobs = [job("a", 1), job("b", 2), job("a", 3), job("b", 4), ...[5, 6, 7, 8].map((at) => job("a", at))]
	expect(servedWhileAllWait(jobs)).toEqual([2, 2])
	const greedy = [...[1, 2, 3, 4].map((at) => job("a", at)), job("b", 5)]
	expect(servedWhileAllWait(greedy)).toEqual([4, 0])
})

test("lost jobs and those that were handed out or ended twice are counted, each as what it is", () => {
	const jobs = [
		job("a", 1),
		job("a", 2, { finalStatus: "running" }),
		job("b", 3, { endings: 2 }),
		job("b", 4, { claims: 2 }),
	]
	expect(reportOf(jobs, run)).toMatchObject({
		jobs: 4,
		completed: 3,
		lost: 1,
		endedTwice: 1,
		handedOutTwice: 1,
		jobsPerSecond: 1.5,
		submitMs: { p50: 2, p99: 3 },
	})
})
