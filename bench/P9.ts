// P9: verifying 28 models again that have not changed, against hashing them. Goal: at least 1000 times faster.
import { createHash } from "node:crypto"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { cpus, tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { openHashing } from "../src/lib/models/hashing.ts"
import { listSizes } from "../src/lib/models/list-sizes.ts"
import { verifyModels } from "../src/lib/models/verify.ts"
import { writeSparseModel } from "../test/support/model-maker.ts"

const goal = 1000
const warmUps = 2
const rounds = 7
const files = 28
const fileBytes = 256 * 1024 * 1024

const root = fileURLToPath(new URL("..", import.meta.url))
const directory = mkdtempSync(join(tmpdir(), "comfyume-bench-"))
try {
	const names = Array.from({ length: files }, (_, index) => `vae/${index}.safetensors`)
	// Sparse: what is not on the disk is read and hashed all the same.
	for (const name of names) writeSparseModel(join(directory, "models", name), fileBytes)
	const sha256 = createHash("sha256")
		.update(readFileSync(join(directory, "models", names[0] ?? "")))
		.digest("hex")
	const sizeBytes = statSync(join(directory, "models", names[0] ?? "")).size
	const figures = { from: "the bench", verified: true }
	const models = names.map((path) => ({ path, sizeBytes, sha256, figures }))
	// What was changed less than two seconds ago is never remembered.
	const now = () => new Date(Date.now() + 60_000)

	/** All that the command does between its start and its table. */
	const verify = async (deep: boolean): Promise<number> => {
		const startedAt = performance.now()
		const listed = await listSizes(join(directory, "models"))
		const hashing = await openHashing({
			...{ directory: join(directory, "models"), cacheDirectory: join(directory, "cache") },
			...{ files: listed, models, deep, now, onProgress: () => {} },
		})
		let proven = 0
		const options = { level: "digest", listed: listed.keys(), hashing } as const
		for await (const { status, tier } of verifyModels(join(directory, "models"), models, options))
			if (status === "ok" && tier === "digest") proven++
		await hashing.close()
		if (proven !== files) throw new Error(`${proven} of ${files} were proven`)
		return performance.now() - startedAt
	}

	const runs = { hashing: [] as number[], again: [] as number[] }
	for (let round = -warmUps; round < rounds; round++) {
		const hashingMs = await verify(true)
		const againMs = await verify(false)
		if (round < 0) continue
		runs.hashing.push(Number(hashingMs.toFixed(1)))
		runs.again.push(Number(againMs.toFixed(3)))
	}
	const median = (values: readonly number[]) =>
		[...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN
	const ratio = median(runs.hashing) / median(runs.again)
	const result = {
		goal: `at least ${goal}`,
		ratio,
		reached: ratio >= goal,
		medianMs: { hashing: median(runs.hashing), again: median(runs.again) },
		warmUps,
		runsMs: runs,
		files,
		fileBytes,
		node: process.version,
		machine: `${cpus()[0]?.model ?? "unknown"}, ${cpus().length} cores`,
		version: (JSON.parse(readFileSync(`${root}package.json`, "utf8")) as { version: string }).version,
	}
	mkdirSync(`${root}bench/results`, { recursive: true })
	// A list of numbers on one line, as the formatter wants it.
	const text = JSON.stringify(result, undefined, "\t").replaceAll(/\[[\s\d.,]+\]/g, (list) =>
		list.replaceAll(/\s+/g, " ").replace("[ ", "[").replace(" ]", "]"),
	)
	writeFileSync(`${root}bench/results/P9.json`, `${text}\n`)
	const { hashing, again } = result.medianMs
	console.log(
		`P9: ${ratio.toFixed(0)} times faster (goal ${goal}); medians: hashing ${hashing} ms, again ${again} ms`,
	)
	process.exitCode = result.reached ? 0 : 3
} finally {
	rmSync(directory, { recursive: true, force: true })
}
