// The one place that removes snapshots, and the share alone has it. It is no part of any store: what is given a store
// can't delete, and what could remove is given to the retention's plan and to nothing else.
import { lstat, readdir, rename, rm } from "node:fs/promises"
import { dirname, join } from "node:path"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { syncPath } from "../host/sync.ts"
import { checkNewKey, checkPrefix, removingEnding } from "./keys.ts"
import type { ObjectHead } from "./object-store.ts"

/** A removal that throws is finished, or undone to where it began, by the next one of the same key. */
export interface ShareRemover {
	readonly place: string
	/** Keys below the prefix whose removal was begun and not finished. The prefix ends with `/`. */
	unfinished(prefix: string): Promise<string[]>
	/**
	 * Removes a small file (a sidecar, a record) and what belongs to it alone: the archive, or the index of an
	 * incremental snapshot. The small file is renamed first: from
	 * then on the archive looks as what it is, no snapshot, and whatever happens next the rename says how to go on.
	 * @param small as the share's store listed it; refused when it has changed since
	 */
	remove(small: ObjectHead, archive: ObjectHead | undefined): Promise<void>
	/** Goes on with a removal that `unfinished` names. */
	finish(key: string): Promise<void>
}

export type ShareRemoverOptions = {
	directory: string
	/** Throws when the share is not mounted there. Asked before each removal. */
	mountCheck: () => Promise<void>
	/** Under a dry run nothing is removed, whoever asks. */
	dryRun: boolean
}

/** Opens nothing: a path and the question whether the share is there. */
export function shareRemover({ directory, mountCheck, dryRun }: ShareRemoverOptions): ShareRemover {
	const allow = async (key: string) => {
		if (dryRun)
			throw new OperatorError(`dry run: removing ${key} was attempted, and a dry run changes nothing`, {
				exitCode: exitCodes.bug,
				hint: "this is a bug in a check; please report it",
			})
		checkNewKey(key, "share")
		await mountCheck()
	}
	const finish = async (key: string) => {
		const path = join(directory, key)
		const archive = archiveOf(path)
		if (archive !== undefined) await rm(archive, { force: true })
		// The archive must be gone on the disk before what tells of it is.
		await syncPath(dirname(path))
		// Not synced: one that comes back after a power cut is finished by the next run.
		await rm(`${path}${removingEnding}`, { force: true })
	}
	return {
		place: directory,
		unfinished: async (prefix) => {
			checkPrefix(prefix, "share")
			await mountCheck()
			const names = await readdir(join(directory, prefix)).catch((error) => {
				if (codeOf(error) === "ENOENT") return []
				throw systemError(error, `listing ${prefix} on the share`)
			})
			return names
				.filter((name) => name.endsWith(removingEnding))
				.map((name) => `${prefix}${name.slice(0, -removingEnding.length)}`)
		},
		remove: async (small, archive) => {
			const { key } = small
			await allow(key)
			const path = join(directory, key)
			if (archive !== undefined && join(directory, archive.key) !== archiveOf(path))
				throw new Error(`${archive.key} is not the archive of ${key}`)
			try {
				await requireSame(path, small)
				if (archive !== undefined) await requireSame(join(directory, archive.key), archive)
				await rename(path, `${path}${removingEnding}`)
				await syncPath(dirname(path))
				await finish(key)
			} catch (error) {
				throw systemError(error, `removing ${key} from the share (${directory})`)
			}
		},
		finish: async (key) => {
			await allow(key)
			try {
				await finish(key)
			} catch (error) {
				throw systemError(error, `removing ${key} from the share (${directory})`)
			}
		},
	}
}

/** Of a sidecar's path that of what belongs to it alone: its archive, or its index. Undefined for all others. */
const archiveOf = (path: string) => {
	if (/\.tar\.zst(\.age)?\.json$/.test(path)) return path.slice(0, -".json".length)
	return path.endsWith(".index.json") ? `${path.slice(0, -".json".length)}.zst` : undefined
}

async function requireSame(path: string, { sizeBytes, storedAt }: ObjectHead): Promise<void> {
	const stats = await lstat(path)
	if (stats.isFile() && stats.size === sizeBytes && stats.mtime.getTime() === storedAt.getTime()) return
	throw new OperatorError(`${path} has changed since it was looked at, and stays`, {
		exitCode: exitCodes.refusedByGuard,
		hint: `ls -la ${path}`,
	})
}
