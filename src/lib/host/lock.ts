// One run at a time: a lock that the kernel holds, and that is gone the moment its holder is, however it ended.
import { dirname } from "node:path"
import { PassThrough } from "node:stream"
import { exitCodes, OperatorError } from "../errors.ts"
import { command } from "./command.ts"
import type { LocalHost } from "./local.ts"

export type LockOptions = {
	/** What is locked, as in `backup`; the lock file's name. */
	name: string
	/** What the run does, for whoever finds it locked. */
	purpose: string
}

const taken = 75

// $1 directory, $2 file, $3 purpose. Its stdin is ours: it ends when we do, and with it the lock. The parent of this
// shell is the process that wants the lock. The file keeps its inode, since that is what the lock is on.
const holdScript = `mkdir -p -m 755 -- "$1" || exit 1
exec 9<>"$2" || exit 1
if ! flock --nonblock 9; then head -c 500 "$2"; exit ${taken}; fi
printf '%s, process %s of %s, since %s' "$3" "$PPID" "$(id -un)" "$(date -u +%FT%TZ)" >"$2"
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
 * @throws {OperatorError} `locked`, naming the holder, its process and since when
 */
export async function lockFile(
	host: LocalHost,
	file: string,
	{ purpose, shown }: { purpose: string; shown: string },
): Promise<AsyncDisposable> {
	const life = new PassThrough()
	const holds = Promise.withResolvers<void>()
	let said = ""
	const holder = host.execute(command("sh", "-c", holdScript, "sh", dirname(file), file, purpose), {
		stdin: life,
		allowedExitCodes: [taken],
		// Not the run's signal: the lock is kept while the run cleans up.
		signal: new AbortController().signal,
		onStdout: (chunk) => {
			said += chunk
			if (said === "held\n") holds.resolve()
		},
	})
	const ended = holder.then(({ exitCode }) => {
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
