// What is mounted on this machine, read from the kernel: nothing is asked of a file system that gives no answer.
import { readFile, realpath } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { systemError } from "../errors.ts"
import { type Mount, readMountInfo } from "../formats/mountinfo.ts"

const table = "/proc/self/mountinfo"

/** What is mounted at a path of this machine; undefined when nothing is mounted at exactly that place. */
export async function mountAt(path: string): Promise<Mount | undefined> {
	const text = await readFile(table, "utf8").catch((error: unknown) => {
		throw systemError(error, `reading ${table}`)
	})
	// The kernel names places without links. The last part is left as it is: it may be a server that is gone.
	const parent = await realpath(dirname(path)).catch(() => dirname(path))
	const target = join(parent, basename(path))
	return readMountInfo(text).findLast((mount) => mount.target === target)
}
