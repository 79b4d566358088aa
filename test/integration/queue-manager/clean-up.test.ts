// What attempts left on the share: removed when nobody can want it any more, and nothing else.
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, utimesSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { expect, test } from "vitest"
import type { JobRecord } from "../../../src/queue-manager/job.ts"
import { type CleanUpOptions, openCleanUp } from "../../../src/queue-manager/outputs/clean-up.ts"
import { openFilePool } from "../../../src/queue-manager/outputs/file-pool.ts"

const hour = 3_600_000
const nowMs = Date.UTC(2026, 10, 27)

function world(options: Partial<CleanUpOptions> = {}) {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-clean-up-"))
	const share = join(directory, "share")
	const pool = openFilePool({ name: "the share" })
	const records = new Map<string, Pick<JobRecord, "status" | "completedMs" | "attempt">>()
	mkdirSync(share)
	const turn = openCleanUp({
		...{ files: pool.files, shareRoot: share, nowMs: () => nowMs },
		find: async (ids) =>
			ids.flatMap((id) => {
				const known = records.get(id)
				return known === undefined ? [] : [{ record: { ...known, id } as JobRecord }]
			}),
		...options,
	})
	return {
		...{ directory, share, records, pool },
		/** Makes a file, and makes its directory look as old as that. */
		file(path: string, agoHours = 0) {
			mkdirSync(join(share, dirname(path)), { recursive: true })
			writeFileSync(join(share, path), "x")
			const at = new Date(nowMs - agoHours * hour)
			utimesSync(join(share, dirname(path)), at, at)
		},
		has: (path: string) => existsSync(join(share, path)),
		/** @returns what a turn removed */
		async turn(): Promise<readonly string[]> {
			const { removed, failed } = await turn()
			expect(failed).toEqual([])
			return removed
		},
		async [Symbol.asyncDispose]() {
			await pool[Symbol.asyncDispose]()
			rmSync(directory, { recursive: true, force: true })
		},
	}
}

const ended = (status: JobRecord["status"], agoHours: number, attempt = 1) => ({
	...{ status, attempt },
	completedMs: nowMs - agoHours * hour,
})

test("directories of jobs that ended a day ago go, whatever became of the jobs, and the empty ones above with them", async () => {
	await using place = world()
	for (const status of ["failed", "cancelled", "completed"] as const) {
		place.records.set(status, ended(status, 25, 2))
		for (const attempt of ["a1", "a1-2", "a2"]) place.file(`cq/20261120/${status}/${attempt}/9~x.png`)
	}
	expect((await place.turn()).length).toBe(9)
	expect(place.has("cq/20261120/failed")).toBe(false)
	// The day goes when it is met again.
	await place.turn()
	expect([place.has("cq/20261120"), place.has("cq")]).toEqual([false, true])
})

test.each<[string, string, ReturnType<typeof ended> | undefined, number]>([
	["a job that runs", "a1", { status: "running", completedMs: null, attempt: 1 } as never, 900],
	[
		"a job that waits to be tried again",
		"a1",
		{ status: "pending", completedMs: nowMs, attempt: 1 } as never,
		900,
	],
	["a job that ended an hour ago", "a1", ended("failed", 1), 900],
	["an attempt that is newer than what is known", "a2", ended("failed", 900), 900],
	["a job that nobody knows, as another queue manager's on this share, for a week", "a1", undefined, 7 * 24],
	["what is called otherwise", "keep", ended("failed", 900), 900],
])("%s keeps its directory", async (_, attempt, record, agoHours) => {
	await using place = world()
	if (record !== undefined) place.records.set("job", record)
	place.file(`cq/20261101/job/${attempt}/9~x.png`, agoHours)
	expect(await place.turn()).toEqual([])
	expect(place.has(`cq/20261101/job/${attempt}/9~x.png`)).toBe(true)
})

test("a job whose record is gone loses its directory when that is older than any record", async () => {
	await using place = world()
	place.file("cq/20261101/forgotten/a1/9~x.png", 9 * 24)
	expect(await place.turn()).toEqual(["cq/20261101/forgotten/a1"])
})

test("nothing outside is touched: links, other directories, what was put aside", async () => {
	await using place = world()
	mkdirSync(join(place.directory, "outside/a1"), { recursive: true })
	writeFileSync(join(place.directory, "outside/a1/precious"), "x")
	for (const job of ["linked", "inner", "20261101"]) place.records.set(job, ended("failed", 900))
	place.file("cq/quarantine/job-a1/9~x.png", 900)
	place.file("ComfyUI_00001_.png", 900)
	place.file("mine/20261101/inner/a1/x", 900)
	mkdirSync(join(place.share, "cq/20261101"), { recursive: true })
	symlinkSync(join(place.directory, "outside"), join(place.share, "cq/20261101/linked"))
	place.file("cq/20261101/inner/a1/deep/9~x.png", 900)
	symlinkSync(join(place.directory, "outside"), join(place.share, "cq/20261101/inner/a1/deep/out"))
	symlinkSync(join(place.directory, "outside/a1"), join(place.share, "cq/20261101/inner/a2"))
	symlinkSync(join(place.directory, "outside"), join(place.share, "cq/20261102"))
	expect(await place.turn()).toEqual(["cq/20261101/inner/a1"])
	expect(existsSync(join(place.directory, "outside/a1/precious"))).toBe(true)
	for (const path of ["cq/quarantine/job-a1/9~x.png", "ComfyUI_00001_.png", "mine/20261101/inner/a1/x"])
		expect(place.has(path), path).toBe(true)
})

test("one that can't be removed is named, and the others go", async () => {
	await using place = world()
	place.records.set("deep", ended("failed", 900)).set("other", ended("failed", 900))
	place.file(`cq/20261101/deep/a1/${"d/".repeat(40)}x`)
	place.file("cq/20261101/other/a1/x")
	const turn = openCleanUp({
		...{ files: place.pool.files, shareRoot: place.share, nowMs: () => nowMs },
		find: async (ids) => ids.map((id) => ({ record: { ...ended("failed", 900), id } as JobRecord })),
	})
	expect(await turn()).toEqual({
		removed: ["cq/20261101/other/a1"],
		failed: [{ directory: "cq/20261101/deep/a1", because: expect.stringContaining("deeper than 32") }],
	})
})

test("a turn does so much and no more, and the next goes on; two at once do no harm", async () => {
	await using place = world({ mostJobs: 4, mostRemoved: 3 })
	for (let job = 0; job < 10; job++) {
		place.records.set(`job-${job}`, ended("failed", 900))
		place.file(`cq/20261101/job-${job}/a1/9~x.png`)
	}
	expect((await place.turn()).length).toBe(3)
	const other = openCleanUp({
		...{ files: place.pool.files, shareRoot: place.share, nowMs: () => nowMs },
		find: async (ids) => ids.map((id) => ({ record: { ...place.records.get(id), id } as JobRecord })),
	})
	const [first, second] = await Promise.all([place.turn(), other()])
	expect([first.length, second.failed]).toEqual([3, []])
	for (let turn = 0; turn < 4; turn++) await place.turn()
	expect(place.has("cq/20261101/job-9")).toBe(false)
	expect(place.has("cq/20261101")).toBe(false)
})
