// `npm test`: everything from a new clone to the closing line, on whatever Node is there. Arguments go to vitest:
// npm test -- --project unit
import { spawnSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { delimiter, join } from "node:path"
import { ensureTestParts } from "./lib/test-parts.js"
import { closingLine, countTests } from "./lib/test-result.js"
import { ensureDependencies, pinnedNode, repository } from "./setup.js"

const scratch = mkdtempSync(join(tmpdir(), "comfyume-test-"))
try {
	process.exitCode = main(process.argv.slice(2))
} catch (error) {
	console.error(error.message)
	console.log("0 passed, 1 failed")
	process.exitCode = 1
} finally {
	rmSync(scratch, { recursive: true, force: true })
}

function main(vitestArguments) {
	ensureDependencies()
	// The table's programs may lie where only an administrator's PATH looks.
	const administrators = ["/usr/local/sbin", "/usr/sbin", "/sbin"]
	const path = [join(repository, "node_modules/.bin"), process.env.PATH, ...administrators].join(delimiter)
	const environment = { ...process.env, PATH: path }

	const missing = ensureTestParts()
	if (missing.instances === undefined && prepareInstances("base", environment) !== 0)
		missing.instances = "their base could not be built; is Debian's mirror reachable?"
	for (const [part, because] of Object.entries(missing)) {
		console.error(`tests of ${part} are skipped: ${because}`)
	}

	const report = join(scratch, "report.json")
	const vitest = spawnSync(
		pinnedNode,
		[
			join(repository, "node_modules/vitest/vitest.mjs"),
			"run",
			...["--reporter=default", "--reporter=json", `--outputFile.json=${report}`],
			...vitestArguments,
		],
		{
			cwd: repository,
			stdio: ["ignore", "inherit", "inherit"],
			// A suite that hangs must fail before CI gives up at 90 minutes, with its own words.
			timeout: 70 * 60 * 1000,
			killSignal: "SIGKILL",
			env: { ...environment, COMFYUME_TEST_MISSING: JSON.stringify(missing) },
		},
	)
	if (missing.instances === undefined) prepareInstances("sweep", environment)

	const counts = countTests(report, vitest.status)
	for (const reason of counts.reasons) console.error(reason)
	console.log(closingLine(counts))
	return counts.failed === 0 ? 0 : 1
}

function prepareInstances(what, environment) {
	const script = join(repository, "test/support/instance/prepare.ts")
	return spawnSync(pinnedNode, [script, what], { stdio: ["ignore", 2, 2], env: environment }).status
}
