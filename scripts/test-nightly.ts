// `npm run test:nightly`: what `npm test` tries with thousands of inputs and tens of schedules, with many more: each
// property of the readers of foreign files with a million inputs, the queue manager's chaos with more than a thousand
// schedules, a hundred of which kill real processes, a whole year of hourly backups, two hosts of which one is killed at
// each change; a whole restore whose connection drops in each of its steps; and a share over real NFS, mounted in a
// virtual machine. Takes an hour and a half or so; names of test files ask for these alone.
// COMFYUME_TEST_INPUTS=50000 and COMFYUME_TEST_RUNS=2 ask for fewer.
import { spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
// @ts-expect-error: plain JavaScript, because Node 20 runs it too.
import { ensureNightlyParts } from "./lib/test-parts.js"

const repository = fileURLToPath(new URL("..", import.meta.url))
const asked = process.argv.slice(2)
const readers = [
	"formats/safetensors",
	"formats/hostile-workflow",
	"models/manifest",
	"models/model-paths",
].map((name) => `test/unit/${name}.test.ts`)

const fuzz = run("unit", readers, { COMFYUME_TEST_INPUTS: "1000000" })
// 35 times the 30 and the 3 of an ordinary run.
const schedules = ["chaos", "chaos-processes"].map((name) => `test/integration/queue-manager/${name}.test.ts`)
const chaos = run("integration", schedules, { COMFYUME_TEST_RUNS: "35" })
const year = ["backup/year", "cli/two-hosts"].map((name) => `test/integration/${name}.test.ts`)
const backups = run("integration", year, { COMFYUME_TEST_RUNS: "2" })
const missing: Record<string, string> = ensureNightlyParts()
for (const [part, because] of Object.entries(missing))
	console.error(`tests of ${part} are skipped: ${because}`)
const whole = run("nightly", ["test/nightly/dropped.test.ts", "test/nightly/nfs.test.ts"], {
	COMFYUME_TEST_NIGHTLY: "1",
	COMFYUME_TEST_MISSING: JSON.stringify(missing),
})
process.exitCode = whole || fuzz || chaos || backups

/** @returns the exit code */
function run(project: string, files: string[], defaults: Record<string, string>): number {
	const chosen = files.filter((file) => asked.length === 0 || asked.some((name) => file.includes(name)))
	if (chosen.length === 0) return 0
	const arguments_ = ["run", "--project", project, ...chosen]
	const { status } = spawnSync(
		process.execPath,
		[`${repository}/node_modules/vitest/vitest.mjs`, ...arguments_],
		{
			cwd: repository,
			stdio: "inherit",
			env: { ...defaults, ...process.env },
		},
	)
	return status ?? 1
}
