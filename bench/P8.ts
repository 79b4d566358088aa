// P8: the structure tier over 28 sparse models of 200 GB together, the whole process of the built command line. How many
// bytes of the models it reads, strace counts in a run that isn't timed.
import { execFileSync } from "node:child_process"
import { mkdirSync, readFileSync, rmSync } from "node:fs"
import { join } from "node:path"
import { buildCli } from "../scripts/build.ts"
import { writeSparseModelOf } from "../test/support/model-maker.ts"
import { scratch } from "./support/files.ts"
import { interleave, median, publish, root, versionOf } from "./support/measure.ts"

const [models, tensors, wholeBytes] = [28, 400, 200e9]
const directory = join(scratch, "models")
rmSync(directory, { recursive: true, force: true })
mkdirSync(directory, { recursive: true })
const tensorBytes = Math.floor(wholeBytes / models / tensors)
for (let number = 0; number < models; number++)
	writeSparseModelOf(
		join(directory, `diffusion_models/${number}.safetensors`),
		Array.from({ length: tensors }, () => tensorBytes),
	)

await buildCli(join(root, "dist/cli"))
const verify = [join(root, "dist/cli/cli.js"), "verify-models", "--models", directory, "--json"]
const seen = execFileSync(process.execPath, verify, { encoding: "utf8" })
const proven = seen.split(`${tensors} tensors fill it`).length - 1
if (proven !== models) throw new Error(`${proven} of ${models} models were proven:\n${seen}`)

const runsMs = await interleave({
	comfyume: { run: () => execFileSync(process.execPath, verify, { stdio: "ignore" }) },
	"node -e 0": { run: () => execFileSync(process.execPath, ["-e", "0"], { stdio: "ignore" }) },
})

// Each line names the file, and ends with what the call gave.
const trace = join(scratch, "reads.strace")
const calls = "trace=read,pread64,readv,preadv,preadv2"
execFileSync("strace", ["-f", "-y", "-s", "0", "-e", calls, "-o", trace, process.execPath, ...verify], {
	stdio: "ignore",
})
let readBytes = 0
let reads = 0
// A call that another thread's interrupts is told in two lines; the second doesn't name the file.
const begun = new Set<string>()
for (const line of readFileSync(trace, "utf8").split("\n")) {
	const thread = line.split(" ", 1)[0] ?? ""
	const ofModel = line.includes(`<${directory}/`)
	if (ofModel && line.endsWith("<unfinished ...>")) begun.add(thread)
	const isEnd = ofModel || (line.includes("resumed>") && begun.delete(thread))
	const bytes = / = (\d+)$/.exec(line)?.[1]
	if (!isEnd || bytes === undefined) continue
	readBytes += Number(bytes)
	reads++
}
if (reads < models) throw new Error(`strace saw ${reads} reads of ${models} models`)
rmSync(trace)
rmSync(directory, { recursive: true })
publish(
	"P8",
	"structure tier of 28 models of 200 GB,",
	[
		{
			what: "the whole process",
			ratio: median(runsMs.comfyume),
			goal: 1000,
			stretch: 250,
			most: true,
			unit: " ms",
		},
		{ what: "read of them", ratio: readBytes / 2 ** 20, goal: 4, most: true, unit: " MiB" },
	],
	{
		runsMs,
		reads,
		readBytes,
		tools: { strace: versionOf("strace", "--version") },
		notes: [`Sparse files, headers of ${tensors} tensors, each ending in data.`],
	},
)
