// SQLite databases that somebody may be writing to. Their file alone is no copy: a transaction may be half in it, and
// what was committed may lie beside it. The only file that opens one.
import { chmod, chown, copyFile, lstat, mkdir, mkdtemp, open, rm, utimes } from "node:fs/promises"
import { dirname, join } from "node:path"
import { codeOf, exitCodes, messageOf, OperatorError } from "../errors.ts"
import { companionEndings } from "../formats/sqlite-files.ts"
import { digestFile, UnreadableFile } from "./tree.ts"

/** Writers leave a file's times in steps of a few milliseconds; what is older than this is not being written. */
const settledAfterMs = 2000
/** How long to wait for a writer that holds the database. */
const busyMs = 20_000

/** SQLITE_BUSY with its extensions (sqlite.org/rescode.html), and the 0 that Node makes of it in a backup. */
const isBusy = (error: unknown) => {
	const { errcode } = error as { errcode?: unknown }
	return typeof errcode === "number" && [0, 5].includes(errcode & 0xff)
}

/** SQLITE_FULL: no room where it writes. */
const isFull = (error: unknown) => {
	const { errcode } = error as { errcode?: unknown }
	return typeof errcode === "number" && (errcode & 0xff) === 13
}

/**
 * The content of a database in use, by a copy that SQLite makes and that is removed again. Undefined for what is no
 * database, or one at rest: its file is read like any other.
 * @param disk path on this machine
 * @param directory where the copy is made
 * @throws {UnreadableFile} when SQLite can't copy it
 */
export async function digestDatabase(
	disk: string,
	{ now, directory }: { now: Date; directory: () => Promise<string> },
): Promise<{ digest: string; sizeBytes: number } | undefined> {
	if (!(await isDatabase(disk)) || (await isAtRest(disk, now))) return undefined
	const scratch = await mkdtemp(join(await directory(), "comfyume-database-"))
	try {
		const copy = join(scratch, "copy")
		await copyWithSqlite(disk, copy, busyMs)
		return await digestFile(copy)
	} finally {
		await rm(scratch, { recursive: true, force: true })
	}
}

/**
 * Puts a consistent copy of a database beside, with its mode, owner and times, for whoever packs it.
 * @returns undefined for what is no database
 * @throws {UnreadableFile} when it can't be copied; {OperatorError} (7) without room for the copy
 */
export async function stageDatabase(
	disk: string,
	copy: string,
	{ now, ownership, waitMs = busyMs }: { now: Date; ownership: boolean; waitMs?: number },
): Promise<{ digest: string; sizeBytes: number } | undefined> {
	if (!(await isDatabase(disk))) return undefined
	await mkdir(dirname(copy), { recursive: true, mode: 0o700 })
	await rm(copy, { force: true })
	const before = await lstat(disk)
	const plain = (await isAtRest(disk, now)) && (await copyAtRest(disk, copy, now))
	if (!plain) await copyWithSqlite(disk, copy, waitMs)
	await chmod(copy, before.mode & 0o7777)
	if (ownership) await chown(copy, before.uid, before.gid)
	await utimes(copy, before.atime, before.mtime)
	return digestFile(copy)
}

/** True when nobody came in between; else the copy may be of two halves. */
async function copyAtRest(disk: string, copy: string, now: Date): Promise<boolean> {
	const before = await lstat(disk, { bigint: true })
	await copyFile(disk, copy)
	const after = await lstat(disk, { bigint: true })
	return (
		before.ino === after.ino &&
		before.size === after.size &&
		before.mtimeNs === after.mtimeNs &&
		before.ctimeNs === after.ctimeNs &&
		(await isAtRest(disk, now))
	)
}

async function isAtRest(disk: string, now: Date): Promise<boolean> {
	const size = async (path: string) =>
		lstat(path).then(
			(facts) => facts.size,
			(error: unknown) => {
				if (codeOf(error) === "ENOENT") return undefined
				throw error
			},
		)
	const { mtimeMs } = await lstat(disk)
	const [journal, wal] = await Promise.all([size(`${disk}-journal`), size(`${disk}-wal`)])
	// A log that was written into the database and emptied holds nothing more.
	return journal === undefined && (wal ?? 0) === 0 && Math.abs(now.getTime() - mtimeMs) > settledAfterMs
}

async function isDatabase(disk: string): Promise<boolean> {
	const facts = await lstat(disk)
	if (!facts.isFile()) return false
	await using file = await open(disk, "r")
	const { buffer, bytesRead } = await file.read(Buffer.alloc(16), 0, 16, 0)
	return bytesRead === 16 && buffer.toString("latin1") === "SQLite format 3\0"
}

/**
 * Users name what lies beside their database. SQLite would wait for a pipe for ever, where no signal is heard, and the
 * copy for a recovery would follow a link into another user's files.
 */
async function requirePlainCompanions(disk: string): Promise<void> {
	for (const ending of companionEndings) {
		const facts = await lstat(`${disk}${ending}`).catch((error: unknown) => {
			if (codeOf(error) === "ENOENT") return undefined
			throw error
		})
		if (facts === undefined || (facts.isFile() && facts.nlink === 1)) continue
		throw new UnreadableFile(`${disk}${ending} is no plain file, and the database is not opened`, {
			hint: `ls -la ${disk}*`,
		})
	}
}

/** Deterministic: two copies of one state have the same bytes. */
async function copyWithSqlite(disk: string, copy: string, waitMs: number): Promise<void> {
	await requirePlainCompanions(disk)
	try {
		await runBackup(disk, copy, { readOnly: true, timeout: waitMs })
	} catch (error) {
		// Its files change while somebody writes: a copy of them would be of no state at all.
		if (isBusy(error))
			throw new UnreadableFile(
				`the database ${disk} is held by a transaction for longer than ${waitMs / 1000} s`,
				{
					hint: `fuser -v ${disk}   # who has it open`,
					cause: error,
				},
			)
		// The copy's disk, not the database.
		if (isFull(error))
			throw new OperatorError(`there is no room for a copy of the database ${disk}`, {
				exitCode: exitCodes.noSpace,
				hint: "df -h; df -i",
				cause: error,
			})
		try {
			await recover(disk, copy)
		} catch {
			throw new UnreadableFile(`the database ${disk} can't be copied: ${messageOf(error)}`, {
				hint: `sqlite3 ${disk} 'pragma integrity_check'`,
				cause: error,
			})
		}
	}
}

/** What a crash has left half-done can't be read without being undone first: that is done to a copy of all of it. */
async function recover(disk: string, copy: string): Promise<void> {
	const scratch = await mkdtemp(join(dirname(copy), "recover-"))
	try {
		const whole = join(scratch, "copy")
		await copyFile(disk, whole)
		for (const ending of companionEndings)
			await copyFile(`${disk}${ending}`, `${whole}${ending}`).catch((error: unknown) => {
				if (codeOf(error) !== "ENOENT") throw error
			})
		await runBackup(whole, copy, { readOnly: false, timeout: busyMs })
	} finally {
		await rm(scratch, { recursive: true, force: true })
	}
}

async function runBackup(
	disk: string,
	copy: string,
	options: { readOnly: boolean; timeout: number },
): Promise<void> {
	// Only here: few runs meet a database that is in use.
	const { backup, DatabaseSync } = await import("node:sqlite")
	await rm(copy, { force: true })
	const source = new DatabaseSync(disk, options)
	try {
		// A lock that stops the backup itself is told as "not an error"; this one read is told what it is.
		source.prepare("select count(*) from sqlite_master").get()
		await backup(source, copy, { rate: 10_000 })
	} finally {
		source.close()
	}
}
