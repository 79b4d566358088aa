// Removes what attempts left on the share that nobody will deliver any more: of jobs that failed, were cancelled, or are
// done and left something behind. Several queue managers may do it at once; each finds less to do.
import { messageOf } from "../../lib/errors.ts"
import type { JobRecord } from "../job.ts"
import { type Files, FileTrouble } from "./file-pool.ts"

export type CleanUpOptions = {
	files: Files
	shareRoot: string
	/** Records of jobs as they are now; those that are gone are left out. */
	find(ids: readonly string[]): Promise<readonly { record: JobRecord }[]>
	nowMs(): number
	/** After a job's end; as long as its workflow is kept, a day. */
	endedMs?: number
	/** After the last change of a directory whose job's record is gone: longer than any job is kept or runs, 8 days. */
	goneMs?: number
	/** Jobs that are looked at in a turn, and attempts that are removed; 100 and 20. */
	mostJobs?: number
	mostRemoved?: number
}

export type CleanedUp = { removed: string[]; failed: { directory: string; because: string }[] }

const day = 86_400_000

/**
 * Makes what is to be called now and then: each turn goes on where the last one ended.
 * @returns a turn, which gives the attempts' directories that were removed, and those that could not be; it throws what
 *   Redis throws, and the share where it can't be read at all
 */
export function openCleanUp(options: CleanUpOptions): () => Promise<CleanedUp> {
	const { files, shareRoot, find, nowMs } = options
	const { endedMs = day, goneMs = 8 * day, mostJobs = 100, mostRemoved = 20 } = options
	let left: { day: string; job: string }[] = []
	const at = (path: string) => ({ root: shareRoot, path })

	/** Every job that has a directory, those of the oldest days first. */
	async function everyJob(): Promise<{ day: string; job: string }[]> {
		const { entries } = await files.list(at("cq")).catch((error: unknown) => {
			if (error instanceof FileTrouble && error.code === "ENOENT") return { entries: [] }
			throw error
		})
		const days = entries
			.filter(({ name, kind }) => kind === "directory" && /^\d{8}$/.test(name))
			.map(({ name }) => name)
			.sort()
		const found: { day: string; job: string }[] = []
		for (const name of days) {
			const jobs = (await files.names(at(`cq/${name}`))).filter((job) => /^[A-Za-z0-9_-]{1,100}$/.test(job))
			found.push(...jobs.map((job) => ({ day: name, job })))
			// Nobody makes a job's first directory in the place of a day so long past.
			if (jobs.length === 0 && isPast(name)) await files.removeEmpty(at(`cq/${name}`))
		}
		return found
	}

	const isPast = (name: string) => {
		const ms = Date.parse(name.replace(/^(\d{4})(\d{2})(\d{2})$/, "$1-$2-$3T00:00:00Z"))
		return nowMs() - ms > 2 * day
	}

	return async () => {
		if (left.length === 0) left = await everyJob()
		const done: CleanedUp = { removed: [], failed: [] }
		const turn = left.splice(0, mostJobs)
		// Before the records are read: an attempt that begins after that is none of those.
		const listed = await Promise.all(
			turn.map(async ({ day, job }) => {
				const { entries } = await files.list(at(`cq/${day}/${job}`)).catch(() => ({ entries: [] }))
				return { path: `cq/${day}/${job}`, job, entries }
			}),
		)
		const records = new Map((await find(turn.map(({ job }) => job))).map(({ record }) => [record.id, record]))
		for (const [index, { path, job, entries }] of listed.entries()) {
			const record = records.get(job)
			const isOver = (entry: (typeof entries)[number]) => {
				const attempt = Number(/^a(\d+)(?:-\d+)?$/.exec(entry.name)?.[1] ?? Number.NaN)
				if (entry.kind !== "directory" || !Number.isSafeInteger(attempt)) return false
				if (record === undefined) return nowMs() - entry.modifiedMs > goneMs
				const isEnded =
					record.completedMs !== null && record.status !== "pending" && record.status !== "running"
				// A job that is tried again has an attempt more.
				return isEnded && nowMs() - (record.completedMs ?? 0) > endedMs && attempt <= record.attempt
			}
			for (const { name } of entries.filter(isOver)) {
				if (done.removed.length + done.failed.length >= mostRemoved) {
					left.unshift(...turn.slice(index))
					return done
				}
				const directory = `${path}/${name}`
				try {
					await files.removeTree(at(directory))
					done.removed.push(directory)
				} catch (error) {
					// One that can't be removed must not keep all others.
					done.failed.push({ directory, because: messageOf(error) })
				}
			}
			if (entries.length > 0 && entries.every(isOver)) await files.removeEmpty(at(path))
		}
		return done
	}
}
