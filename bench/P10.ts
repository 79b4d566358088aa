// P10: a backup when nothing has changed, 10 000 files in a home directory, the whole process: from its start to its
// exit, every byte compared. No upload and one list per bucket, as the S3 server's own log tells.
import { randomBytes } from "node:crypto"
import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { createWorld } from "../test/support/cli.ts"
import { interleave, median, publish } from "./support/measure.ts"

const files = 10_000
const perDirectory = 100

await using world = await createWorld()
for (let index = 0; index < files; index++) {
	const directory = world.path(`server/home/dev/files/${Math.floor(index / perDirectory)}`)
	if (index % perDirectory === 0) mkdirSync(directory, { recursive: true })
	// From empty to 16 kB, as source text, settings and workflows are.
	writeFileSync(join(directory, `${index}.json`), randomBytes((index * 7919) % 16_384))
}
/** All of the catalogue, as cron runs it; and the home directory alone. */
const subjects = { all: ["backup"], home: ["backup", "--only", "home"] }
const first = await world.run(subjects.all)
if (first.exitCode !== 0) throw new Error(first.stderr)

const operations: Record<string, number> = {}
const run = async (words: readonly string[]) => {
	const before = world.s3.log.length
	const { exitCode, stdout, stderr } = await world.run(words)
	if (exitCode !== 0) throw new Error(`${stdout}${stderr}`)
	const log = world.s3.log.slice(before)
	const count = (operation: RegExp) => log.filter((entry) => operation.test(entry.operation)).length
	operations["uploads"] = Math.max(operations["uploads"] ?? 0, count(/^Put|Upload|Complete/))
	operations["lists"] = Math.max(operations["lists"] ?? 0, count(/^ListObjects/))
	operations["requests"] = Math.max(operations["requests"] ?? 0, log.length)
}
const runsMs = await interleave({
	all: { run: () => run(subjects.all) },
	home: { run: () => run(subjects.home) },
})
const { uploads = 0, lists = 0, requests = 0 } = operations
publish(
	"P10",
	"backup when nothing has changed, 10 000 files",
	[
		{ what: "whole process", ratio: median(runsMs.all) / 1000, goal: 2, most: true, unit: " s" },
		{ what: "uploads", ratio: uploads, goal: 0, most: true, unit: "" },
		// Whether the bucket can be used at all is asked by a list of no keys, before anything else.
		{ what: "lists of the bucket besides the probe", ratio: lists - 1, goal: 1, most: true, unit: "" },
	],
	{
		runsMs,
		requests,
		files,
		notes: [
			"The server's files, the share and the S3 server are on this machine; the S3 server shares the two cores.",
		],
	},
)
