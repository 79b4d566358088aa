// A manifest from a copy that is trusted: what lies there is measured, and nothing is taken that isn't whole.
import { stat } from "node:fs/promises"
import { join } from "node:path"
import { OperatorError, systemError } from "../errors.ts"
import { blockBytes, digestModel } from "./digest.ts"
import { isModelName, listModels } from "./directories.ts"
import { type ModelEntry, parseManifest, pathProblem, renderManifest } from "./manifest.ts"
import { openModel } from "./open.ts"
import { verifyModel } from "./verify.ts"

export type Measured = {
	/** The manifest as YAML. */
	text: string
	models: number
	/** What lies there and isn't in the manifest; `failed` where it should have been. */
	leftOut: readonly { path: string; because: string; failed: boolean }[]
}

export type MeasureOptions = {
	/** Also the digest of each block. */
	blocks: boolean
	buffer: Buffer
	signal?: AbortSignal
	/** Called before each file is read. */
	onFile: (path: string) => void
}

/**
 * Measures every model below a directory.
 * @throws {OperatorError} when one can't be read, changes meanwhile, or two have the same name on some disks
 */
export async function measureModels(directory: string, options: MeasureOptions): Promise<Measured> {
	const { signal, buffer, onFile } = options
	const models: ModelEntry[] = []
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
		onFile(path)
		models.push(await measure(join(directory, path), path, { blocks: options.blocks, buffer, signal }))
	}
	const text = renderManifest({ version: 1, models })
	const { problems = [] } = parseManifest(text)
	if (problems.length > 0)
		throw new OperatorError(`${directory}: ${problems.map(({ message }) => message).join("; ")}`)
	return { text, models: models.length, leftOut }
}

async function measure(
	diskPath: string,
	path: string,
	{ signal, ...options }: { blocks: boolean; buffer: Buffer; signal: AbortSignal | undefined },
): Promise<ModelEntry> {
	try {
		await using file = await openModel(diskPath)
		const before = await stat(diskPath)
		const measured = await digestModel(file.readInto, { ...options, ...(signal && { signal }) })
		const after = await stat(diskPath)
		if (measured.sizeBytes !== before.size || after.mtimeMs !== before.mtimeMs || after.size !== before.size)
			throw new OperatorError(`${diskPath} changed while it was read`, { hint: "run it again" })
		return {
			path,
			sizeBytes: measured.sizeBytes,
			sha256: measured.digest,
			figures: { from: "measured by comfyume manifest create", verified: true },
			...(options.blocks ? { blocks: { sizeBytes: blockBytes, sha256: [...measured.blocks] } } : {}),
		}
	} catch (error) {
		signal?.throwIfAborted()
		throw systemError(error, `measuring ${diskPath}`)
	}
}
