// Stands in for a share that misbehaves, at the seam where the queue manager reads: the same operations in the same
// threads, with a control file that makes them block (truly: the thread stands still, as in a hung system call), fail,
// or give an older listing. Not a file system: a hung NFS mount can't be had here.
import { readFileSync } from "node:fs"
import { parentPort, workerData } from "node:worker_threads"
import type { Place } from "../../src/queue-manager/outputs/held-files.ts"
import { type Entry, type Listing, operations } from "../../src/queue-manager/outputs/operations.ts"
import { serveOperations } from "../../src/queue-manager/outputs/serve-operations.ts"

export type Mood = {
	/** Operations that don't return while they are named here; `*` for all. */
	hang?: string[]
	/** Operations that fail with ESTALE. */
	stale?: string[]
	/** Names that are left out of listings, as by an older listing. */
	hide?: string[]
	/** Names that are listed, and can't be looked at (ESTALE). */
	unreadable?: string[]
}

const control = String(workerData)
const mood = (): Mood => {
	try {
		return JSON.parse(readFileSync(control, "utf8")) as Mood
	} catch {
		return {}
	}
}
const names = (list: string[] | undefined, name: string) => list?.includes(name) || list?.includes("*")

const moody = Object.fromEntries(
	Object.entries(operations).map(([name, operation]) => [
		name,
		async (given: never) => {
			while (names(mood().hang, name)) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20)
			if (names(mood().stale, name))
				throw Object.assign(new Error("ESTALE: stale file handle"), { code: "ESTALE" })
			if (name === "list") return hide(await operations.list(given as Place))
			return await (operation as (given: never) => Promise<unknown>)(given)
		},
	]),
)

function hide({ entries, unreadable }: Listing): Listing {
	const { hide = [], unreadable: sick = [] } = mood()
	const isSick = ({ name }: Entry) => sick.includes(name)
	return {
		entries: entries.filter((entry) => !hide.includes(entry.name) && !isSick(entry)),
		unreadable: [...unreadable, ...entries.filter(isSick).map(({ name }) => ({ name, code: "ESTALE" }))],
	}
}

if (parentPort !== null) serveOperations(parentPort, moody)
