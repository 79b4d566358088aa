// What a power cut must not take back.
import { open } from "node:fs/promises"

/** Waits until a file's content, or the names in a directory, stand on the disk. Throws Node's own errors. */
export async function syncPath(path: string): Promise<void> {
	const handle = await open(path, "r")
	try {
		await handle.sync()
	} finally {
		await handle.close()
	}
}
