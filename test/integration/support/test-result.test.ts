// The closing line of `npm test` never looks better than the run was.
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test } from "vitest"

type Counts = { passed: number; failed: number; skipped: number; reasons: string[] }
type TestResult = {
	countTests(reportFile: string, exitCode: number | null): Counts
	closingLine(counts: Counts): string
}

// Plain JavaScript, which runs before there is anything to check its types with.
const script = new URL("../../../scripts/lib/test-result.js", import.meta.url).href
const { countTests, closingLine } = (await import(script)) as TestResult

describe("the closing line", () => {
	let scratch: string
	beforeEach(async () => {
		scratch = await mkdtemp(join(tmpdir(), "comfyume-result-"))
	})
	afterEach(() => rm(scratch, { recursive: true }))

	const lineOf = async (testResults: unknown[], exitCode: number | null) => {
		const report = join(scratch, "report.json")
		await writeFile(report, JSON.stringify({ testResults }))
		return closingLine(countTests(report, exitCode))
	}
	const file = (status: string, ...tests: string[]) => ({
		name: "a.test.ts",
		status,
		assertionResults: tests.map((one) => ({ status: one })),
	})

	test("counts what passed, what failed, and what was skipped in the open", async () => {
		expect(await lineOf([file("passed", "passed", "passed")], 0)).toBe("2 passed, 0 failed")
		expect(await lineOf([file("failed", "passed", "failed"), file("passed", "skipped", "todo")], 1)).toBe(
			"1 passed, 1 failed, 2 skipped",
		)
	})

	test("a file that couldn't be loaded is a failure, also beside others that passed", async () => {
		expect(await lineOf([file("passed", "passed"), file("failed")], 1)).toBe("1 passed, 1 failed")
		expect(await lineOf([file("failed", "skipped")], 1)).toBe("0 passed, 1 failed, 1 skipped")
	})

	test("no test at all, no report, and a vitest that crashed are failures", async () => {
		expect(await lineOf([], 0)).toBe("0 passed, 1 failed")
		expect(closingLine(countTests(join(scratch, "none.json"), null))).toBe("0 passed, 1 failed")
		expect(await lineOf([file("passed", "passed")], 1)).toBe("1 passed, 1 failed")
	})
})
