import { expect, test } from "vitest"
import { backupTimers, certificatesTimer, isOurs, timerFiles } from "../../../src/lib/steps/timer-files.ts"

const every = [...backupTimers, certificatesTimer]
const cronLine = (name: string, hostName: string) => {
	const timer = every.find((one) => one.name === name)
	const [[, text] = ["", ""]] = timer === undefined ? [] : timerFiles(timer, "cron", hostName)
	return text.trimEnd().split("\n").at(-1) ?? ""
}

test("cron comes at one minute on one machine, within the spread, and not at the same on the next", () => {
	const minutes = Array.from({ length: 40 }, (_, index) =>
		Number(cronLine("backup", `app-${index}`).split(" ")[0]),
	)
	expect(Math.min(...minutes)).toBeGreaterThanOrEqual(17)
	expect(Math.max(...minutes)).toBeLessThan(27)
	expect(new Set(minutes).size).toBeGreaterThan(5)
	expect(cronLine("backup", "app-1")).toBe(cronLine("backup", "app-1"))
})

test("a line of cron keeps all that is said and how it ended, has a limit, and a file that cron reads", () => {
	for (const timer of every) {
		const [[path, text] = ["", ""]] = timerFiles(timer, "cron", "app-1")
		// cron passes over names with a dot.
		expect(path).toMatch(/^\/etc\/cron\.d\/[a-z-]+$/)
		expect(isOurs(text)).toBe(true)
		const line = cronLine(timer.name, "app-1")
		expect(line).toMatch(/^\d+ \S+ \* \* \* root /)
		expect(line).toMatch(
			/timeout --kill-after=2m \d+m .*echo "exit \$\? at .*>>\/var\/log\/comfyume\/\w+\.log 2>&1$/,
		)
		// cron makes a line's end of a bare one.
		expect(line.replaceAll("\\%", "")).not.toContain("%")
	}
})

test("systemd's runs have a limit and are caught up with", () => {
	for (const timer of every) {
		const [service, unit] = timerFiles(timer, "systemd", "app-1").map(([, text]) => text)
		expect(service).toContain(`TimeoutStartSec=${timer.limitMinutes}min`)
		expect(unit).toContain("Persistent=true")
	}
})
