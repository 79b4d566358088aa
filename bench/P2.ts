// P2: sha256 of eight files of 1 GiB on two threads, against sha256sum in a row and two of them at once.
import { execFileSync } from "node:child_process"
import { openHashPool } from "../src/lib/storage/hash-pool.ts"
import { randomFile } from "./support/files.ts"
import { interleave, median, publish, versionOf } from "./support/measure.ts"

const files: string[] = []
for (let number = 1; number <= 8; number++) files.push(await randomFile(`gibibyte-${number}`))
const runsMs = await interleave({
	comfyume: {
		run: async () => {
			await using pool = openHashPool(2)
			await Promise.all(files.map((file) => pool.hashFile(file)))
		},
	},
	sha256sum: { run: () => execFileSync("sha256sum", files) },
	"xargs -P2": {
		run: () => execFileSync("xargs", ["-P2", "-n1", "sha256sum"], { input: files.join("\n") }),
	},
})
const ours = median(runsMs.comfyume)
publish(
	"P2",
	"sha256 of 8 × 1 GiB on two threads",
	[
		{ what: "against sha256sum in a row", ratio: median(runsMs.sha256sum) / ours, goal: 7, stretch: 8 },
		{ what: "against xargs -P2 sha256sum", ratio: median(runsMs["xargs -P2"]) / ours, goal: 3.5, stretch: 4 },
	],
	{ runsMs, tools: { sha256sum: versionOf("sha256sum", "--version") } },
)
