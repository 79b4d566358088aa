// One writer at a time below an environment's directory on the share, whichever host it runs on. The lock is a `flock`:
// on NFS 4 the server holds it for a client and gives it up when that client is gone, which is the only proof by which
// a dead holder's lock is taken over; nobody guesses by age or process id. A holder that is only cut off or suspended
// doesn't know that its lock went to another. So each writes into the file who it is, under a number raised by one, and
// reads it again before anything counts: what it finds is its own text, or it stops.
import { constants, open, readFile } from "node:fs/promises"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import type { LocalHost } from "../host/local.ts"
import { type FileLock, lockFile } from "../host/lock.ts"
import { printable } from "../ui/format.ts"

/** What a holder asks right before it makes something count. */
export type Lease = {
	/** @throws {OperatorError} (5) when the lock is another's by now, naming whose */
	require(): Promise<void>
}

export type HoldOptions = {
	/** As in `backup of home`; whoever waits reads it. */
	purpose: string
	/** Told whom it waits for, and whose lock it was when that one died with it. */
	note: (text: string) => void
	/** What to type once the other run has ended. */
	again: string
	/** False: fails at once when another run holds it, for what isn't worth a wait. */
	patient?: boolean
}

export interface ShareLock {
	/**
	 * Does the work while it holds the lock, and gives it back whatever comes of it. Not to be taken twice at once.
	 * @throws {OperatorError} (5) when another still holds it after the longest wait, naming who, where and since when;
	 * (8) for a file that is none; (3) where the file system doesn't lock; what the work throws
	 */
	hold<T>(options: HoldOptions, work: (lease: Lease) => Promise<T>): Promise<T>
}

export type ShareLockOptions = {
	host: LocalHost
	/** On this machine. */
	file: string
	/** `production app-1`, in the words of the configuration. */
	owner: string
	/** Throws when the share isn't there. Asked first: an empty mount point takes a lock gladly. */
	mountCheck: () => Promise<void>
	now: () => Date
	randomId: () => string
	signal: AbortSignal
	/** How long a run waits for another's. */
	waitMs?: number
}

/** One artifact of another host may take minutes to be copied to the share. */
const longestWaitMs = 15 * 60 * 1000
const largestTextBytes = 4096

/** Opens nothing. */
export function shareLock(options: ShareLockOptions): ShareLock {
	const { host, file, owner, mountCheck, now, randomId, signal, waitMs = longestWaitMs } = options
	const shown = `the lock of the snapshots on the share, ${file}`

	/** The text, as it stands there now: each time opened anew, which on NFS asks the server. */
	const look = async ({ identity }: FileLock): Promise<string> => {
		try {
			await using handle = await open(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
			const { dev, ino, size } = await handle.stat({ bigint: true })
			if (`${dev}:${ino}` !== identity) return "another file stands in its place"
			return size > largestTextBytes ? "it holds no lock's text" : await handle.readFile("utf8")
		} catch (error) {
			if (codeOf(error) === "ENOENT") return "the file is gone"
			throw systemError(error, `reading ${shown}`)
		}
	}

	const write = async (text: string, sync: boolean) => {
		await using handle = await open(file, constants.O_WRONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
		// Over the old text first: a power cut leaves one of them, or a mixture that is nobody's.
		await handle.write(`${text}\n`, 0)
		await handle.truncate(Buffer.byteLength(text) + 1)
		if (sync) await handle.sync()
	}

	return {
		hold: async ({ purpose, note, again, patient = true }, work) => {
			await mountCheck()
			await using lock = await lockFile(host, file, {
				shown,
				again,
				wait: {
					ms: patient ? waitMs : 0,
					signal,
					onWait: (holder) =>
						note(`waits for the share's lock, which is held: ${holder || "by a run that just began"}`),
				},
			})
			const before = await look(lock)
			const number = numberOf(before) + 1
			if (before !== "" && !isFree(before))
				note(`taken over, since its holder is gone without giving it back: ${printable(before)}`)
			const boot = (await bootId()).slice(0, 8)
			const since = now().toISOString()
			const ours = `${number} ${purpose}, ${owner}, ${lock.process}, boot ${boot}, since ${since}, run ${randomId()}`
			await write(ours, true).catch((error) => {
				throw systemError(error, `writing ${shown}`)
			})
			const lease: Lease = {
				require: async () => {
					const found = await look(lock)
					if (found === `${ours}\n`) return
					throw new OperatorError(
						`${shown}, was lost while this run was cut off or stood still, and nothing more is written: ${printable(found) || "it is empty"}`,
						{ exitCode: exitCodes.locked, hint: again },
					)
				},
			}
			try {
				return await work(lease)
			} finally {
				// Whoever comes next need not be told that somebody died. One that has lost it writes nothing.
				if ((await look(lock).catch(() => "")) === `${ours}\n`)
					await write(`${number} free, since ${now().toISOString()}`, false).catch(() => {})
			}
		},
	}
}

const numberOf = (text: string) => Number(/^(\d{1,15}) /.exec(text)?.[1] ?? 0)
const isFree = (text: string) => /^\d{1,15} free, /.test(text)

/** Which start of the machine it was: after a reboot the same process id is another process. */
const bootId = () =>
	readFile("/proc/sys/kernel/random/boot_id", "utf8").then(
		(text) => text.trim(),
		() => "unknown",
	)
