import { expect, test } from "vitest"
import type { FileSystemFacts, TimerFacts } from "../../../src/lib/plan/events.ts"
import { fileSystemsTable, timersTable } from "../../../src/lib/plan/reporters/host.ts"

const now = new Date("2026-11-27T08:00:00Z")
const timers: TimerFacts[] = [
	{
		...{ timer: "status", by: "systemd", state: "on", right: true, because: "" },
		...{ lastRunAt: "2026-11-27T07:41:00.000Z", nextRunAt: "2026-11-27T13:41:00.000Z", result: "exit 0" },
	},
	{
		...{ timer: "backup", by: "systemd", state: "on", right: false, result: "exit 3" },
		because: "the last run ended with exit 3",
		lastRunAt: "2026-11-27T07:20:00.000Z",
	},
	{ timer: "drill", by: "systemd", state: "on", right: true, because: "" },
]

test("timers that are not right stand first, with when they came and how that ended", () => {
	expect(timersTable(timers, now, 80)).toEqual([
		"timer   state  last run    its end  next           because",
		"backup  on     40 min ago  exit 3                  the last run ended with exit",
		"                                                   3",
		"status  on     19 min ago  exit 0   in 5 h 41 min",
		"drill   on     never",
	])
})

const systems: FileSystemFacts[] = [
	{
		...{ paths: ["/", "/tmp"], source: "/dev/vda1", sizeBytes: 100 * 1024 ** 3, freeBytes: 60 * 1024 ** 3 },
		...{ usedPercent: 40, inodesUsedPercent: 3, level: "ok" },
	},
	{
		...{ paths: ["/mnt/sfs"], source: "nfs.example.test:/share", sizeBytes: 220 * 1024 ** 3 },
		...{ freeBytes: 1024 ** 3, usedPercent: 99, level: "critical" },
	},
]

test("the fullest file system stands first; on a narrow terminal each is a block", () => {
	expect(fileSystemsTable(systems, 120)[1]).toBe(
		"nfs.example.test:/share  CRITICAL  99 %  1.00 GiB   220.00 GiB          /mnt/sfs",
	)
	const narrow = fileSystemsTable(systems, 40)
	expect(Math.max(...narrow.map(({ length }) => length))).toBeLessThanOrEqual(40)
	expect(narrow.slice(0, 3)).toEqual(["nfs.example.test:/share", "  level   CRITICAL", "  used    99 %"])
})
