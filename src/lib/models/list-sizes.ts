// What lies below a directory of models, with sizes: for comparing places, and for sharing out work.
import { join } from "node:path"
import { listModels } from "./directories.ts"
import { inOrder } from "./in-order.ts"
import { locate } from "./kind.ts"

// A share answers several questions in the time of one.
const askedAtOnce = 8

/**
 * Path -> size in bytes, in byte order of the paths; undefined for a link that leads nowhere and for what is no file.
 * @throws {OperatorError} (2) when there is no such directory
 */
export async function listSizes(
	directory: string,
	signal?: AbortSignal,
): Promise<Map<string, number | undefined>> {
	const paths = await listModels(directory, signal)
	const asked = paths.map((path) => async (): Promise<[string, number | undefined]> => {
		const located = await locate(join(directory, path))
		return [path, located.state === "file" ? located.sizeBytes : undefined]
	})
	const sizes = new Map<string, number | undefined>()
	for await (const [path, sizeBytes] of inOrder(asked, askedAtOnce)) sizes.set(path, sizeBytes)
	return sizes
}
