// `npm run test:nightly`: the readers of foreign files, each property with a million inputs. The tests are those that
// `npm test` runs with thousands. Takes a quarter of an hour; arguments go to vitest, and COMFYUME_TEST_INPUTS=50000 asks
// for fewer.
import { spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"

const repository = fileURLToPath(new URL("..", import.meta.url))
const files = [
	"formats/safetensors",
	"formats/hostile-workflow",
	"models/manifest",
	"models/model-paths",
].map((name) => `test/unit/${name}.test.ts`)
const { status } = spawnSync(
	process.execPath,
	[
		`${repository}/node_modules/vitest/vitest.mjs`,
		"run",
		"--project",
		"unit",
		...files,
		...process.argv.slice(2),
	],
	{ cwd: repository, stdio: "inherit", env: { COMFYUME_TEST_INPUTS: "1000000", ...process.env } },
)
process.exitCode = status ?? 1
