import { expect, test } from "vitest"
import { salvageNotifications } from "../../../src/lib/config/notifications.ts"
import { lastBytes } from "../../../src/lib/steps/notify-http.ts"
import { renderTextfile } from "../../../src/lib/steps/notify-textfile.ts"

const told = {
	...{
		environment: "production",
		host: "app-1",
		task: "status",
		exitCode: 3,
		storedBytes: 0,
		transcript: "",
	},
	startedAt: new Date("2026-11-27T08:00:00Z"),
	endedAt: new Date("2026-11-27T08:00:30Z"),
	rows: [],
}
const row = { artifact: "home", source: "share", snapshot: "x", verified: "", ok: false, ageSeconds: 60 }

test("what a failed run knows nothing of stays as the run before left it, and nothing else does", () => {
	const before = renderTextfile({ ...told, exitCode: 0, rows: [{ ...row, ok: true }] }, "")
	const after = renderTextfile(
		{ ...told, endedAt: new Date("2026-11-27T09:00:00Z") },
		`${before}foreign{} 1\n`,
	)
	const value = (name: string) => new RegExp(`^comfyume_${name}\\{.*\\} (\\S+)$`, "m").exec(after)?.[1]
	expect(value("last_success_timestamp_seconds")).toBe(String(Date.parse("2026-11-27T08:00:30Z") / 1000))
	expect(value("last_run_timestamp_seconds")).toBe(String(Date.parse("2026-11-27T09:00:00Z") / 1000))
	expect([value("exit_code"), value("verified_ratio"), value("newest_snapshot_age_seconds")]).toEqual([
		"3",
		"1",
		"60",
	])
	expect(after).not.toContain("foreign")
	expect(after.match(/^# TYPE comfyume_exit_code gauge$/gm)).toHaveLength(1)
})

test("a label can hold anything", () => {
	const text = renderTextfile({ ...told, rows: [{ ...row, artifact: 'a"b\\c\nd' }] }, "")
	expect(text).toContain('artifact="a\\"b\\\\c\\nd"')
})

test("of a long text its end is told, from the beginning of a line, and no half letters", () => {
	expect(lastBytes("short", 10)).toBe("short")
	expect(lastBytes("first line\nsecond line\nthird\n", 15)).toBe("third\n")
	expect(lastBytes("äöüäöüäöü", 5)).toBe("öü")
})

const configuration = `environments:
  production:
    hosts: [{ name: app-1 }]
    nonsense: 1
    notifications: { ntfy: {} }
`

test("of a configuration that is wrong its notifications are used, as far as they are right themselves", () => {
	expect(salvageNotifications(configuration, "production")).toMatchObject({
		host: "app-1",
		notifications: { ntfy: { url: "https://ntfy.sh", priority: "high" } },
	})
	for (const wrong of [
		configuration.replace("ntfy: {}", "ntfy: { url: http://ntfy.example.test }"),
		configuration.replace("ntfy: {}", "nothing: {}"),
		configuration.replace("app-1", "../app"),
		"{ not yaml",
		"",
	])
		expect(salvageNotifications(wrong, "production"), wrong).toBeUndefined()
	expect(salvageNotifications(configuration, "staging")).toBeUndefined()
})
