// Reads vitest's JSON report and counts in a way that can't look better than it was.
import { readFileSync } from "node:fs"

/**
 * Counts a run of vitest. A file that couldn't be loaded counts as one failure, a run without any test too, and so does
 * a vitest that failed without a failed test (an error outside of tests, a crash).
 * @param {string} reportFile vitest's JSON report; may be missing when vitest crashed
 * @param {number | null} exitCode how vitest ended; null when it was killed
 * @returns {{passed: number, failed: number, skipped: number, reasons: string[]}}
 */
export function countTests(reportFile, exitCode) {
	const counts = { passed: 0, failed: 0, skipped: 0, reasons: [] }
	const fail = (reason) => {
		counts.failed += 1
		counts.reasons.push(reason)
	}
	let report
	try {
		report = JSON.parse(readFileSync(reportFile, "utf8"))
	} catch {
		fail(`vitest wrote no report (exit code ${exitCode})`)
		return counts
	}
	for (const file of report.testResults) {
		for (const test of file.assertionResults) {
			if (test.status === "passed") counts.passed += 1
			else if (test.status === "failed") counts.failed += 1
			else counts.skipped += 1
		}
		const shown = file.assertionResults.some(({ status }) => status === "failed")
		if (file.status === "failed" && !shown) fail(`${file.name} failed as a whole`)
	}
	if (counts.passed + counts.failed + counts.skipped === 0) fail("there was no test at all")
	if (exitCode !== 0 && counts.failed === 0) fail(`vitest itself failed (exit code ${exitCode})`)
	return counts
}

/** `3 passed, 0 failed`, and the skipped ones where there are any. */
export function closingLine({ passed, failed, skipped }) {
	return `${passed} passed, ${failed} failed${skipped === 0 ? "" : `, ${skipped} skipped`}`
}
