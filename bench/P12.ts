// P12: the most memory that a process ever has while it hashes, fetches or sends a file, whatever the file's size.
import { execFileSync } from "node:child_process"
import { truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { openHashPool } from "../src/lib/storage/hash-pool.ts"
import { digestsOf, gibibyte, randomFile, scratch } from "./support/files.ts"
import { publish } from "./support/measure.ts"
import { startNginx, startSink } from "./support/servers.ts"
import { comfyumeGet, comfyumePut, plain } from "./support/transfers.ts"

const works = {
	hash: async (file: string) => {
		await using pool = openHashPool()
		await Promise.all([pool.hashFile(file, { blocks: true }), pool.hashFile(file)])
	},
	get: async (file: string) => {
		const { run, before } = comfyumeGet(plain, (await digestsOf(file)).blocks)
		before?.()
		await run()
	},
	put: async (file: string) => {
		const { run, before } = comfyumePut(file, (await digestsOf(file)).digest)
		await before?.()
		await run()
	},
}
type Work = keyof typeof works
const [work, file] = process.argv.slice(2)

if (work !== undefined && work in works && file !== undefined) {
	await works[work as Work](file)
	console.log(process.resourceUsage().maxRSS / 1024)
} else {
	await randomFile("gibibyte-1")
	// Eight times as large, and mostly holes: neither server nor disk shall decide how long it takes.
	const large = join(scratch, "large")
	writeFileSync(large, "the beginning")
	truncateSync(large, 8 * gibibyte)
	const program = process.argv[1] ?? ""
	const measure = (what: Work, of: string) =>
		Number(execFileSync(process.execPath, [program, what, join(scratch, of)], { encoding: "utf8" }))
	const { md5 } = await digestsOf(join(scratch, "gibibyte-1"))
	using _server = await startNginx(scratch, "gibibyte-1", md5)
	using _sink = await startSink()
	const peaksMiB = {
		"hash, two files of 1 GiB": measure("hash", "gibibyte-1"),
		"hash, two files of 8 GiB": measure("hash", "large"),
		"GET 1 GiB": measure("get", "gibibyte-1"),
		"PUT 1 GiB": measure("put", "gibibyte-1"),
	}
	const comparisons = Object.entries(peaksMiB).map(([what, ratio]) => ({
		...{ what, ratio, goal: 160, stretch: 120, unit: " MiB" },
		most: true as const,
	}))
	publish("P12", "peak memory of the process:", comparisons, {})
}
