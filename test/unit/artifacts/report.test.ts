// The report on backups as it is sent on: facts in, Markdown out.
import { expect, test } from "vitest"
import { type ReportFacts, renderReport } from "../../../src/lib/artifacts/report.ts"

const taken = (day: number, hour: number) => new Date(Date.UTC(2026, 10, day, hour, 17))
const result = (artifact: string, destination: string, ok: boolean) => ({
	...{ artifact, destination, ok, because: ok ? "" : "its digest is another", snapshot: "x" },
	...{ ageSeconds: 3600 * (ok ? 1 : 30), tookSeconds: 1.5, sizeBytes: 4096 },
})

const facts: ReportFacts = {
	environment: "production",
	host: "app-1",
	at: new Date("2026-11-21T07:05:00Z"),
	comfyume: "0.1.0",
	artifacts: [
		{
			...{
				artifact: "home",
				destination: "share",
				schedule: "hourly",
				ok: true,
				because: "taken 48 min ago",
			},
			newest: { id: "x", takenAt: taken(21, 6), digest: "0123456789abcdef".repeat(4), sizeBytes: 1_234_567 },
			ageSeconds: 2880,
			snapshots: { count: 9, daily: 5, weekly: 3, monthly: 2, oldest: taken(1, 2) },
		},
		{
			...{ artifact: "home", destination: "r2", schedule: "daily at 02, 14", ok: false },
			because:
				"taken 2 d ago, and it is due daily at 02, 14; 20261121T061700Z-aaaaaaaaaaaa: its archive is not there",
			newest: { id: "x", takenAt: taken(19, 6), digest: "fedcba9876543210".repeat(4), sizeBytes: 1_200_000 },
			ageSeconds: 175_680,
			snapshots: { count: 400, daily: 5, weekly: 3, monthly: 3, oldest: taken(1, 2) },
			eligible: { count: 390, sizeBytes: 468_000_000 },
		},
		{
			...{ artifact: "project", destination: "share", schedule: "hourly", ok: false },
			because: "no snapshot of this host; it is due hourly",
			snapshots: { count: 0, daily: 0, weekly: 0, monthly: 0 },
		},
	],
	destinations: [
		{
			...{
				name: "share",
				place: "/mnt/sfs/cache/backups",
				objects: 18,
				sizeBytes: 11_111_103,
				recentBytes: 512,
			},
			freeBytes: 80 * 1024 ** 3,
			unfinished: [
				{ what: "production/home/20261120T061700Z-bbbbbbbbbbbb.tar.zst has no sidecar", since: taken(20, 6) },
			],
		},
		{
			...{ name: "r2", place: "https://r2.example.test/cache_backups", objects: 800, sizeBytes: 480_000_000 },
			...{ recentBytes: 36_000_000, unfinished: [] },
		},
	],
	models: { ok: true, because: "new files: all 28 of the share, by name and size" },
	drills: [
		{
			...{ version: 1, kind: "drill", comfyume: "0.1.0", environment: "production", host: "app-1" },
			...{ at: taken(20, 5).toISOString(), exitCode: 3 },
			results: [result("home", "share", true), result("home", "r2", false)],
		},
	],
	overdueDrills: "no good drill in the last five weeks of home on r2: comfyume backup drill --env production",
}

test("it begins with what is missing, and reads as the one in test/golden", async () => {
	await expect(renderReport(facts)).toMatchFileSnapshot("../../golden/report.md")
})

test("when nothing is missing it says so first", () => {
	const [ok] = facts.artifacts
	if (ok === undefined) throw new Error("there is one")
	const { overdueDrills: _, ...rest } = facts
	const [, said] = renderReport({ ...rest, artifacts: [ok], drills: [] }).split("## What is missing\n\n")
	expect(said).toMatch(/^Nothing: all that is scheduled is there, and in time\.\n/)
	expect(said).toMatch(/There never was one\./)
})

test("what can't be read is named first, and no figures are claimed of it", () => {
	const [share] = facts.destinations
	if (share === undefined) throw new Error("there is one")
	const text = renderReport({ ...facts, destinations: [{ ...share, trouble: "the share is not mounted" }] })
	expect(text).toMatch(/## What is missing\n\n- \*\*share\*\* can't be read: the share is not mounted\n/)
	expect(text).toMatch(/\| share \| \/mnt\/sfs\/cache\/backups \| {2}\| {2}\| {2}\| {2}\|/)
})

test("what came from elsewhere is no markup, moves no cursor and breaks no table", () => {
	const [home] = facts.artifacts
	if (home === undefined) throw new Error("there is one")
	const because = "# <script>*x*</script>\n\n| a | \u001b[31m`b`"
	const text = renderReport({ ...facts, artifacts: [{ ...home, ok: false, because, schedule: "a|b" }] })
	expect(text).toMatch(/: # \\<script\\>\\\*x\\\*\\<\/script\\> \| a \| \\`b\\`\n/)
	expect(text).toMatch(/\| a\\\|b \|/)
	expect(text).not.toContain("\u001b")
})
