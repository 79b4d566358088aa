// One run at a time: a lock that the kernel holds, and that is gone the moment its holder is, however it ended.
import { constants, mkdir, open } from "node:fs/promises"
import { dirname } from "node:path"
import { PassThrough } from "node:stream"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { command } from "./command.ts"
import type { LocalHost } from "./local.ts"

export type LockOptions = {
	/** What is locked, as in `backup`; the lock file's name. */
	name: string
	/** What the run does, for whoever finds it locked. */
	purpose: string
}

const taken = 75
const replaced = 76

// $1 device:inode, $2 file, $3 purpose. Its stdin is ours: it ends when we do, and with it the lock. The parent of this
// shell is the process that wants the lock. The file keeps its inode, since that is what the lock is on. A shell follows
// links: nothing is read or written before the file is known to be the one that was opened without.
const holdScript = `exec 9<>"$2" || exit 1
[ "$(stat -L -c %d:%i /proc/self/fd/9)" = "$1" ] || exit ${replaced}
if ! flock --nonblock 9; then head -c 500 /proc/self/fd/9; exit ${taken}; fi
printf '%s, process %s of %s, since %s' "$3" "$PPID" "$(id -un)" "$(date -u +%FT%TZ)" >/proc/self/fd/9
echo held
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
 * a plain file stands there: users can write to a share; (3) where nothing can be written
 */
export async function lockFile(
	host: LocalHost,
	file: string,
	{ purpose, shown }: { purpose: string; shown: string },
): Promise<AsyncDisposable> {
	const identity = await openedPlain(file, shown)
	const life = new PassThrough()
	const holds = Promise.withResolvers<void>()
	let said = ""
	const holder = host.execute(command("sh", "-c", holdScript, "sh", identity, file, purpose), {
		stdin: life,
		allowedExitCodes: [taken, replaced],
		// Not the run's signal: the lock is kept while the run cleans up.
		signal: new AbortController().signal,
		onStdout: (chunk) => {
			said += chunk
			if (said === "held\n") holds.resolve()
		},
	})
	const ended = holder.then(({ exitCode }) => {
		if (exitCode === replaced) throw noPlainFile(file, shown)
		if (exitCode !== taken) return
		throw new OperatorError(`another run holds ${shown}: ${said || "it says nothing"}`, {
			exitCode: exitCodes.locked,
			hint: "wait for its end; the lock is gone when that process is",
		})
	})
	ended.catch(() => {})
	await Promise.race([holds.promise, ended])
	return {
		async [Symbol.asyncDispose]() {
			life.end()
			await ended.catch(() => {})
		},
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
		throw systemError(error, `taking ${shown}, ${file}`)
	}
}

const noPlainFile = (file: string, shown: string) =>
	new OperatorError(`${shown}: ${file} is no plain file of its own, and nothing is written to it`, {
		exitCode: exitCodes.refusedByGuard,
		hint: `ls -l ${file}; rm ${file}`,
	})
