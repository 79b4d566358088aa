// Which models on the share their vault doesn't have yet: two listings, no bytes.
import { isModelName } from "../models/directories.ts"
import { listSizes } from "../models/list-sizes.ts"
import type { StepContext } from "./context.ts"
import { shareTarget } from "./models.ts"

export type ModelsStanding = {
	/** Whole paths, in byte order. */
	onShare: readonly string[]
	missing: readonly string[]
	/** In the vault in another size. */
	different: readonly string[]
}

/**
 * Lists the share's models and their bucket, once each.
 * @throws {OperatorError} (2) when the environment has no bucket for models; else what keeps one of them from being read
 */
export async function compareModels(context: StepContext): Promise<ModelsStanding> {
	const target = shareTarget(context)
	await target.ready()
	const sizes = await listSizes(target.directory, context.signal)
	const vault = (await context.openModels()).find(({ name }) => name === "r2")
	if (vault?.trouble !== undefined) throw vault.trouble
	const stored = new Map<string, number>()
	if (vault !== undefined)
		for await (const { key, sizeBytes } of vault.store.list("")) stored.set(key, sizeBytes)
	const onShare = [...sizes.keys()].filter(isModelName)
	return {
		onShare,
		missing: onShare.filter((path) => !stored.has(path)),
		different: onShare.filter((path) => stored.has(path) && stored.get(path) !== sizes.get(path)),
	}
}
