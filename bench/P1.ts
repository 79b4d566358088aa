// P1: sha256 of one file of 1 GiB, against sha256sum. Both read it from the system's cache.
import { execFileSync } from "node:child_process"
import { openHashPool } from "../src/lib/storage/hash-pool.ts"
import { randomFile } from "./support/files.ts"
import { interleave, median, publish, versionOf } from "./support/measure.ts"

const file = await randomFile("gibibyte-1")
const runsMs = await interleave({
	comfyume: {
		run: async () => {
			await using pool = openHashPool()
			await pool.hashFile(file)
		},
	},
	sha256sum: { run: () => execFileSync("sha256sum", [file]) },
})
const ratio = median(runsMs.sha256sum) / median(runsMs.comfyume)
publish("P1", "sha256 of one 1 GiB file", [{ what: "against sha256sum", ratio, goal: 3.5, stretch: 4 }], {
	runsMs,
	tools: { sha256sum: versionOf("sha256sum", "--version") },
	notes: ["comfyume's threads are started anew for each run; its process is not (P11)."],
})
