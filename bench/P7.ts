// P7: an archive of 400 MB of mixed data, made by the function that backups use, against `tar czf`; and no larger.
import { execFileSync } from "node:child_process"
import { rmSync, statSync } from "node:fs"
import { join } from "node:path"
import { createArchive } from "../src/lib/artifacts/archive.ts"
import { readTree } from "../src/lib/artifacts/tree.ts"
import { localHost } from "../src/lib/host/local.ts"
import { scratch } from "./support/files.ts"
import { interleave, median, publish, versionOf } from "./support/measure.ts"
import { mixedData } from "./support/mixed-data.ts"

const directory = mixedData()
const [ours, theirs] = [join(scratch, "archive.tar.zst"), join(scratch, "archive.tar.gz")]
const host = localHost({ name: "bench", environment: process.env })
const tree = await readTree(host, { paths: [directory], exclude: [] })
const clear = () => {
	for (const file of [ours, theirs]) rmSync(file, { force: true })
}
const sizes = { comfyume: 0, "tar czf": 0 }
const runsMs = await interleave({
	comfyume: {
		before: clear,
		run: async () => {
			await createArchive(host, tree, ours)
			sizes.comfyume = statSync(ours).size
		},
	},
	"tar czf": {
		before: clear,
		run: () => {
			execFileSync("tar", ["czf", theirs, "--directory=/", directory.slice(1)])
			sizes["tar czf"] = statSync(theirs).size
		},
	},
})
clear()
publish(
	"P7",
	`archive of ${Math.round(tree.sizeBytes / 1e6)} MB of mixed data`,
	[
		{
			what: "against tar czf",
			ratio: median(runsMs["tar czf"]) / median(runsMs.comfyume),
			goal: 10,
			stretch: 14,
		},
		{
			what: "its size against tar czf",
			ratio: sizes.comfyume / sizes["tar czf"],
			goal: 1,
			most: true,
		},
	],
	{
		runsMs,
		sizeBytes: { data: tree.sizeBytes, ...sizes },
		files: tree.entries.filter(({ type }) => type === "file").length,
		tools: {
			tar: versionOf("tar", "--version"),
			gzip: versionOf("gzip", "--version"),
			zstd: versionOf("zstd", "--version"),
		},
		notes: [
			"By bytes two fifths pictures (random), a third a program, a fifth source text, a tenth workflows in JSON.",
			"What a backup does besides (reading the tree's digests before, every member after) is not in it, and tar doesn't do it.",
		],
	},
)
