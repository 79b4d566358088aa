// One run at a time: a lock that the kernel holds, and that is gone the moment its holder is, however it ended.
import { constants, mkdir, open } from "node:fs/promises"
import { dirname } from "node:path"
import { PassThrough } from "node:stream"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { formatSeconds, printable } from "../ui/format.ts"
import { command } from "./command.ts"
import type { LocalHost } from "./local.ts"

export type LockOptions = {
	/** What is locked, as in `backup`; the lock file's name. */
	name: string
	/** What the run does, for whoever finds it locked. */
	purpose: string
}

/** How long to wait for a lock that another run holds. */
export type Waiting = {
	ms: number
	/** Called once, with what the holder wrote into the file. */
	onWait: (holder: string) => void
	/** Ends the waiting. Not the lock, once it is held: that is kept while a stopped run cleans up. */
	signal: AbortSignal
}

export type LockFileOptions = {
	/** Written into the file for whoever finds it locked; without it the holder writes there himself. */
	purpose?: string
	/** What it is the lock of, in the operator's words. */
	shown: string
	/** Fails at once without it. */
	wait?: Waiting
	/** What to type once the other run has ended. */
	again?: string
}

export type FileLock = AsyncDisposable & {
	/** device:inode of the file that is locked. */
	readonly identity: string
	/** The process that holds it, this one, and its user. */
	readonly process: string
}

const taken = 75
const replaced = 76
const unlockable = 77

// $1 device:inode, $2 file, $3 purpose, $4 seconds to wait. Its stdin is ours: it ends when we do, and with it the lock.
// The parent of this shell is the process that wants the lock. The file keeps its inode, since that is what the lock is
// on. A shell follows links: nothing is read or written before the file is known to be the one that was opened without.
const holdScript = `exec 9<>"$2" || exit 1
[ "$(stat -L -c %d:%i /proc/self/fd/9)" = "$1" ] || exit ${replaced}
flock --conflict-exit-code ${taken} --nonblock 9; got=$?
if [ $got = ${taken} ] && [ "$4" != 0 ]; then
	printf 'waits %s\n' "$(head -c 500 /proc/self/fd/9 | tr '\n' ' ')"
	flock --conflict-exit-code ${taken} --timeout "$4" 9; got=$?
fi
if [ $got = ${taken} ]; then head -c 500 /proc/self/fd/9; exit ${taken}; fi
[ $got = 0 ] || exit ${unlockable}
who="process $PPID of $(id -un)"
[ -z "$3" ] || printf '%s, %s, since %s' "$3" "$who" "$(date -u +%FT%TZ)" >/proc/self/fd/9
printf 'held %s\n' "$who"
exec cat >/dev/null
`

/**
 * Takes a lock on this machine, or fails at once when another run holds it. `await using` gives it back; so does the
 * end of the process, by whatever signal.
 * @throws {OperatorError} `locked`, naming the holder, its process and since when
 */
export function lockHost(host: LocalHost, { name, purpose }: LockOptions): Promise<AsyncDisposable> {
	return lockFile(host, host.path(`/run/comfyume/${name}.lock`), {
		purpose,
		shown: `the lock ${name} on ${host.name}`,
	})
}

/**
 * The same by a file of the caller's choice; on NFS 4 it also keeps other hosts out, since the client hands the lock to
 * the server. The file stays: what is locked is its inode.
 * @param file on this machine
 * @throws {OperatorError} `locked`, naming the holder, its process and since when; (8) when a link or anything else than
 * a plain file stands there: users can write to a share; (3) where nothing can be written, or nothing be locked
 */
export async function lockFile(
	host: LocalHost,
	file: string,
	{ purpose = "", shown, wait, again }: LockFileOptions,
): Promise<FileLock> {
	const identity = await openedPlain(file, shown)
	const life = new PassThrough()
	const holds = Promise.withResolvers<string>()
	// Not the run's signal: the lock is kept while the run cleans up.
	const waiting = new AbortController()
	const stop = () => waiting.abort(wait?.signal.reason)
	wait?.signal.addEventListener("abort", stop, { once: true })
	if (wait?.signal.aborted === true) stop()
	const seconds = String((wait?.ms ?? 0) / 1000)
	let said = ""
	const holder = host.execute(command("sh", "-c", holdScript, "sh", identity, file, purpose, seconds), {
		stdin: life,
		allowedExitCodes: [taken, replaced, unlockable],
		signal: waiting.signal,
		onStdout: (chunk) => {
			said += chunk
			const [, waits] = /^waits (.*)\n/.exec(said) ?? []
			if (waits !== undefined) {
				wait?.onWait(printable(waits))
				said = said.slice(said.indexOf("\n") + 1)
			}
			const [, who] = /^held (.*)\n/.exec(said) ?? []
			if (who !== undefined) holds.resolve(who)
		},
	})
	const ended = holder.then(({ exitCode, stderr }): never => {
		if (exitCode === replaced) throw noPlainFile(file, shown)
		if (exitCode === unlockable)
			throw new OperatorError(
				`${shown}: the file system of ${file} doesn't lock files: ${stderr.trim() || "flock says nothing"}`,
				{ hint: `findmnt --target ${file}   # a share must be NFS 4, mounted without nolock` },
			)
		if (exitCode !== taken) throw new OperatorError(`${shown} was given back`)
		const still = (wait?.ms ?? 0) === 0 ? "" : `, and was waited for ${formatSeconds((wait?.ms ?? 0) / 1000)}`
		throw new OperatorError(`another run holds ${shown}${still}: ${printable(said) || "it says nothing"}`, {
			exitCode: exitCodes.locked,
			hint: `${again === undefined ? "" : `${again}   # `}wait for its end; the lock is gone when that process is`,
		})
	})
	ended.catch(() => {})
	try {
		const process = await Promise.race([holds.promise, ended])
		return {
			identity,
			process,
			async [Symbol.asyncDispose]() {
				life.end()
				await ended.catch(() => {})
			},
		}
	} finally {
		wait?.signal.removeEventListener("abort", stop)
	}
}

/** Makes the file where there is none. @returns device:inode, as `stat` writes them */
async function openedPlain(file: string, shown: string): Promise<string> {
	try {
		await mkdir(dirname(file), { recursive: true, mode: 0o755 })
		const { O_RDWR, O_CREAT, O_NOFOLLOW, O_NONBLOCK } = constants
		await using handle = await open(file, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o644)
		const facts = await handle.stat({ bigint: true })
		// A second name may be that of a file that is somebody's.
		if (!facts.isFile() || facts.nlink > 1n) throw noPlainFile(file, shown)
		return `${facts.dev}:${facts.ino}`
	} catch (error) {
		if (["ELOOP", "EISDIR", "ENXIO"].includes(codeOf(error) ?? "")) throw noPlainFile(file, shown)
		throw systemError(error, `taking ${shown}`)
	}
}

const noPlainFile = (file: string, shown: string) =>
	new OperatorError(`${shown}: ${file} is no plain file of its own, and nothing is written to it`, {
		exitCode: exitCodes.refusedByGuard,
		hint: `ls -l ${file}; rm ${file}`,
	})
