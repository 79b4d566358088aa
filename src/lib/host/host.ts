// A host: a machine on which commands run and files lie, whether it is this one or one behind SSH.
import type { Readable } from "node:stream"
import { exitCodes, OperatorError } from "../errors.ts"
import { type Command, describe } from "./command.ts"

/** What a finished program left behind. Output is decoded as UTF-8. */
export type Finished = {
	exitCode: number
	stdout: string
	stderr: string
}

export type ExecuteOptions = {
	/** Fed to the program's standard input, which is closed afterwards. Without it, standard input is empty. */
	stdin?: string | Uint8Array | Readable
	/** Called with each chunk of standard output as it comes; `stdout` of the result is then empty. */
	onStdout?: (chunk: Buffer) => void | Promise<void>
	/** Called with each chunk of standard error as it comes; the result holds it all the same. */
	onStderr?: (chunk: Buffer) => void
	/** Ends this program when it is aborted, in place of the signal that the host was opened with. */
	signal?: AbortSignal
	/** Exit codes that are no failure besides 0. */
	allowedExitCodes?: readonly number[]
}

export type WriteOptions = {
	/** Permission bits the file has from its first byte on, for example 0o600. */
	mode: number
	/** `user:group` by name; the connection's own user without it. */
	owner?: string
}

export type TransferOptions = {
	mode: number
	/** Called with the number of bytes done so far. */
	onProgress?: (doneBytes: number) => void
}

/**
 * A machine. `test`, `capture` and `read` only look; checks use nothing else. The rest changes the machine, and
 * throws when the host was opened read-only.
 *
 * All methods throw an `OperatorError`: `unreachable` when the connection is lost, `refusedCredentials` when the
 * machine doesn't let us in, `noSpace` when a disk is full, `incomplete` when a program failed (its last lines of
 * stderr are in the message).
 */
export interface Host {
	/** The configured name, as in `app-1`. */
	readonly name: string
	/** Where it really is, in the operator's words; a stand-in says here that it is one. */
	readonly place: string

	/** True when the program ends with 0, false for any other exit code or when there is no such program. */
	test(command: Command): Promise<boolean>
	/** Runs a program that only reads, and gives what it printed. Output up to 64 MiB. */
	capture(command: Command, options?: ExecuteOptions): Promise<Finished>
	/** Runs a program that may change the machine. */
	execute(command: Command, options?: ExecuteOptions): Promise<Finished>
	/** A file's content, or undefined when there is none. For small files: up to 64 MiB. */
	read(path: string): Promise<Buffer | undefined>
	/** Puts a small file in place as a whole: partial file, fsync, rename. */
	write(path: string, content: string | Uint8Array, options: WriteOptions): Promise<void>
	/** Sends a local file to the host, as a whole: partial file, size checked, rename. */
	put(localFile: string, path: string, options: TransferOptions): Promise<void>
	/** Brings a file from the host to a local one, as a whole. */
	get(path: string, localFile: string, options: TransferOptions): Promise<void>

	/** Closes what the host holds open. A host that holds nothing does nothing. */
	[Symbol.asyncDispose](): Promise<void>
}

/** The same host, on which every change throws. What `--dry-run` works with. */
export function readOnlyHost<H extends Host>(host: H): H {
	const refuse = (what: string) => () => {
		throw new OperatorError(`dry run: ${what} on ${host.name} was attempted, and a dry run changes nothing`, {
			exitCode: exitCodes.bug,
			hint: "this is a bug in a check; please report it",
		})
	}
	return new Proxy(host, {
		get(target, property) {
			if (property === "execute") return (command: Command) => refuse(`\`${describe(command)}\``)()
			if (property === "write" || property === "put") return (path: string) => refuse(`${property} ${path}`)()
			// A local host's disk: all that can be done there directly is a change.
			if (property === "files")
				return new Proxy({}, { get: (_, name) => (path: string) => refuse(`${String(name)} ${path}`)() })
			const value = Reflect.get(target, property, target)
			// What a local host can do to its disk directly.
			if (property === "files")
				return new Proxy(value as object, { get: (_, change) => refuse(`files.${String(change)}`) })
			return typeof value === "function" ? value.bind(target) : value
		},
	})
}
