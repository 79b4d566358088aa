// A manifest from a copy that is trusted: what lies there is measured, and nothing is taken that isn't whole.
import { stat } from "node:fs/promises"
import { join } from "node:path"
import { OperatorError, systemError } from "../errors.ts"
import { type HashPool, openHashPool } from "../storage/hash-pool.ts"
import { blockBytes } from "../storage/transfer.ts"
import { isModelName, listModels } from "./directories.ts"
import { type ModelEntry, parseManifest, pathProblem, pathWarning, renderManifest } from "./manifest.ts"
import { verifyModel } from "./verify.ts"

export type Measured = {
	/** The manifest as YAML. */
	text: string
	models: number
	/** What is in the manifest, and may be a mistake. */
	warnings: readonly { path: string; because: string }[]
	/** What lies there and isn't in the manifest; `failed` where it should have been. */
	leftOut: readonly { path: string; because: string; failed: boolean }[]
}

export type MeasureOptions = {
	/** Also the digest of each block. */
	blocks: boolean
	signal?: AbortSignal
	/** Called before each file is read. */
	onFile: (path: string) => void
}

/**
 * Measures every model below a directory.
 * @throws {OperatorError} when one can't be read, changes meanwhile, or two have the same name on some disks
 */
export async function measureModels(directory: string, options: MeasureOptions): Promise<Measured> {
	const { signal, onFile } = options
	const sound: string[] = []
	const leftOut: { path: string; because: string; failed: boolean }[] = []
	for (const path of await listModels(directory, signal)) {
		if (!isModelName(path)) {
			leftOut.push({ path, because: "it is no model by its name", failed: false })
			continue
		}
		const problem = pathProblem(path)
		const verdict = await verifyModel(directory, path, undefined, { ...options, level: "structure" })
		if (problem !== undefined || !verdict.right) {
			const because = problem === undefined ? `${verdict.status}: ${verdict.because}` : `its path ${problem}`
			leftOut.push({ path, because, failed: true })
			continue
		}
		sound.push(path)
	}
	const models: ModelEntry[] = []
	await using pool = openHashPool()
	for (let index = 0; index < sound.length; index += pool.threads) {
		const together = sound.slice(index, index + pool.threads).map((path) => {
			onFile(path)
			return measure(pool, join(directory, path), path, { blocks: options.blocks, signal })
		})
		models.push(...(await Promise.all(together)))
	}
	const text = renderManifest({ version: 1, models })
	const { problems = [] } = parseManifest(text)
	if (problems.length > 0)
		throw new OperatorError(`${directory}: ${problems.map(({ message }) => message).join("; ")}`)
	const warnings = models.flatMap(({ path }) => {
		const because = pathWarning(path)
		return because === undefined ? [] : [{ path, because }]
	})
	return { text, models: models.length, warnings, leftOut }
}

async function measure(
	pool: HashPool,
	diskPath: string,
	path: string,
	{ signal, blocks }: { blocks: boolean; signal: AbortSignal | undefined },
): Promise<ModelEntry> {
	try {
		const before = await stat(diskPath)
		const measured = await pool.hashFile(diskPath, { blocks, ...(signal && { signal }) })
		const after = await stat(diskPath)
		if (measured.sizeBytes !== before.size || after.mtimeMs !== before.mtimeMs || after.size !== before.size)
			throw new OperatorError(`${diskPath} changed while it was read`, { hint: "run it again" })
		return {
			path,
			sizeBytes: measured.sizeBytes,
			sha256: measured.digest,
			figures: { from: "measured by comfyume manifest create", verified: true },
			...(measured.blocks && { blocks: { sizeBytes: blockBytes, sha256: [...measured.blocks] } }),
		}
	} catch (error) {
		signal?.throwIfAborted()
		throw systemError(error, `measuring ${diskPath}`)
	}
}
