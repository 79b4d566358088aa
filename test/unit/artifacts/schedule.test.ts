import { readFileSync } from "node:fs"
import fc from "fast-check"
import { expect, test } from "vitest"
import { parseCatalogue, readCatalogue } from "../../../src/lib/artifacts/catalogue.ts"
import { isDue, isStale, parseSchedule, slotBefore } from "../../../src/lib/artifacts/schedule.ts"

const root = new URL("../../../", import.meta.url)
const at = (text: string) => new Date(text)
const schedule = (text: string) => {
	const parsed = parseSchedule(text)
	if (parsed === undefined) throw new Error(`no schedule: ${text}`)
	return parsed
}
const fourADay = schedule("daily at 02, 06, 14, 18")

test.each([
	["2026-11-21T06:00:00Z", "2026-11-21T06:00:00.000Z"],
	["2026-11-21T05:59:59Z", "2026-11-21T02:00:00.000Z"],
	["2026-11-21T01:59:59Z", "2026-11-20T18:00:00.000Z"],
	["2026-03-01T00:10:00Z", "2026-02-28T18:00:00.000Z"],
])("the slot of 02, 06, 14, 18 at %s began at %s", (now, slot) => {
	expect(slotBefore(fourADay, at(now))?.toISOString()).toBe(slot)
})

test("a snapshot in its slot makes the next run do nothing, and one before it doesn't", () => {
	expect(isDue(fourADay, at("2026-11-21T06:00:00Z"), at("2026-11-21T13:59:00Z"))).toBe(false)
	expect(isDue(fourADay, at("2026-11-21T06:00:00Z"), at("2026-11-21T14:00:00Z"))).toBe(true)
	expect(isDue(fourADay, undefined, at("2026-11-21T06:00:00Z"))).toBe(true)
})

test("a late timer is given an hour and a half before its backup counts as stopped", () => {
	const hourly = schedule("hourly")
	const evidence = at("2026-11-21T06:17:00Z")
	expect(isStale(hourly, evidence, at("2026-11-21T08:29:00Z"))).toBe(false)
	expect(isStale(hourly, evidence, at("2026-11-21T08:30:00Z"))).toBe(true)
	expect(isStale(hourly, undefined, at("2026-11-21T08:30:00Z"))).toBe(true)
})

test("new files are due when there are some, never by the clock", () => {
	expect(isDue(schedule("new files"), undefined, at("2026-11-21T08:30:00Z"))).toBe(false)
})

test.each([
	"",
	"daily",
	"daily at 2",
	"daily at 24",
	"daily at 06, 02",
	"daily at 02,06",
	"weekly",
	"Hourly",
])("%j is no schedule", (text) => {
	expect(parseSchedule(text)).toBeUndefined()
})

test("whatever the hours, hourly runs find each slot due exactly once", () => {
	fc.assert(
		fc.property(
			fc.uniqueArray(fc.integer({ min: 0, max: 23 }), { minLength: 1 }),
			fc.integer({ min: 0, max: 59 }),
			(hours, minute) => {
				const ascending = [...hours].sort((a, b) => a - b)
				const some = schedule(`daily at ${ascending.map((hour) => String(hour).padStart(2, "0")).join(", ")}`)
				let evidence: Date | undefined
				let taken = 0
				const start = Date.UTC(2026, 2, 28)
				for (let hour = 0; hour < 24 * 10; hour++) {
					const now = new Date(start + hour * 3_600_000 + minute * 60_000)
					if (!isDue(some, evidence, now)) continue
					taken++
					evidence = now
				}
				// The first run finds the slot of the day before, unless one begins with the day.
				expect(taken).toBe(ascending.length * 10 + (ascending[0] === 0 ? 0 : 1))
			},
		),
	)
})

test("the catalogue has the platform's schedules and retention", async () => {
	const places = { user: "dev", project: "/home/dev/project", scripts: "/home/dev/scripts" }
	const artifacts = await readCatalogue(root.pathname, "app", places, new Map())
	const home = artifacts.find(({ name }) => name === "home")
	expect(home?.schedule?.share?.text).toBe("hourly")
	expect(home?.schedule?.r2?.hours).toEqual([2, 6, 14, 18])
	expect(home?.retention).toEqual({ daily: 5, weekly: 3, monthly: 3 })
	const models = artifacts.find(({ name }) => name === "models")
	expect(models?.schedule?.share).toBeUndefined()
	expect(models?.schedule?.r2?.text).toBe("new files")
	const { buckets } = parseCatalogue(readFileSync(new URL("manifests/artifacts.yaml", root), "utf8"), "it")
	expect(buckets.images.retention).toEqual({ daily: 1, weekly: 0, monthly: 1 })
	expect([buckets.images.schedule.share?.text, buckets.images.schedule.r2?.text]).toEqual([
		"daily at 03",
		"daily at 04",
	])
	expect([buckets.userFiles.schedule.share?.text, buckets.userFiles.schedule.r2?.text]).toEqual([
		"hourly",
		"hourly",
	])
})

test.each([
	["a schedule that is none", "share: hourly,", "share: sometimes,", /a schedule/],
	[
		"files that are copied as they come, by the clock",
		"r2: new files",
		"r2: hourly",
		/models is backed up by/,
	],
	["an archive by new files", "{ share: hourly, r2:", "{ share: new files, r2:", /is for models/],
	[
		"a retention that keeps nothing",
		"{ daily: 5, weekly: 3, monthly: 3 }",
		"{ weekly: 3 }",
		/at least one `daily`/,
	],
	["a bucket without rules", "  images:\n", "  pictures:\n", /images|pictures/],
	["an artifact that is called as the records are", "name: ufw\n", "name: records\n", /records/],
])("the catalogue refuses %s", (_what, from, to, says) => {
	const text = readFileSync(new URL("manifests/artifacts.yaml", root), "utf8")
	expect(text).toContain(from)
	expect(() => parseCatalogue(text.replace(from, to), "artifacts.yaml")).toThrow(says)
})
