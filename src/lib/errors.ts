// The errors an operator sees, and the exit codes that scripts rely on.

/** What the process's exit status means; the same for every command. */
export const exitCodes = {
	done: 0,
	bug: 1,
	usage: 2,
	incomplete: 3,
	unreachable: 4,
	locked: 5,
	refusedCredentials: 6,
	noSpace: 7,
	refusedByGuard: 8,
	rolledBack: 9,
	rollbackFailed: 10,
	hungUp: 129,
	interrupted: 130,
	terminated: 143,
} as const

export type ExitCode = (typeof exitCodes)[keyof typeof exitCodes]

/** One line per exit code, as every `--help` prints them. */
export const exitMeanings: Readonly<Record<ExitCode, string>> = {
	0: "done",
	1: "a bug in comfyume",
	2: "usage or configuration",
	3: "verification found differences, or part of the work failed",
	4: "unreachable",
	5: "locked by another run",
	6: "refused credentials",
	7: "no space",
	8: "refused by a safety guard",
	9: "failed and rolled back",
	10: "failed and the rollback failed",
	129: "hung up",
	130: "interrupted",
	143: "terminated",
}

export type OperatorErrorOptions = {
	/** The next thing to type or do; a full command wherever there is one. */
	hint?: string
	exitCode?: ExitCode
	cause?: unknown
}

/** An error whose message is meant for the operator: it names the thing and the place, and the hint what to type next. */
export class OperatorError extends Error {
	readonly hint: string | undefined
	readonly exitCode: ExitCode

	constructor(message: string, options: OperatorErrorOptions = {}) {
		super(message, options.cause === undefined ? undefined : { cause: options.cause })
		this.name = "OperatorError"
		this.hint = options.hint
		this.exitCode = options.exitCode ?? exitCodes.incomplete
	}
}

/** The message of anything that was thrown, on one line. */
export function messageOf(thrown: unknown): string {
	const message = thrown instanceof Error ? thrown.message : String(thrown)
	return message.replaceAll(/\s*\n\s*/g, " ").trim()
}

/** Node's error code (`ENOENT`, …) of anything that was thrown, if it has one. */
export function codeOf(thrown: unknown): string | undefined {
	return thrown instanceof Error && "code" in thrown && typeof thrown.code === "string"
		? thrown.code
		: undefined
}

// What the operating system's codes mean to an operator. Anything else is `incomplete` with the system's own words.
const systemErrors: Readonly<Record<string, { says: string; exitCode: ExitCode; hint?: string }>> = {
	ENOSPC: { says: "no space left on the device", exitCode: 7, hint: "df -h; df -i" },
	EDQUOT: { says: "the disk quota is used up", exitCode: 7, hint: "quota -s" },
	EROFS: { says: "the file system is read-only", exitCode: 3, hint: "dmesg | tail; mount" },
	EIO: { says: "the device reports an input/output error", exitCode: 3, hint: "dmesg | tail" },
	ESTALE: {
		says: "the share's handle is stale; it must be mounted anew",
		exitCode: 3,
		hint: "findmnt -t nfs4",
	},
	EACCES: { says: "permission denied", exitCode: 3, hint: "run it as root" },
	EPERM: { says: "not permitted", exitCode: 3, hint: "run it as root" },
	ECONNREFUSED: { says: "the connection is refused", exitCode: 4 },
	ECONNRESET: { says: "the connection was reset", exitCode: 4 },
	EHOSTUNREACH: { says: "there is no route to the host", exitCode: 4 },
	ENETUNREACH: { says: "the network is unreachable", exitCode: 4 },
	ETIMEDOUT: { says: "no answer in time", exitCode: 4 },
	ENOTFOUND: { says: "there is no such host name", exitCode: 4 },
	EAI_AGAIN: { says: "the name server gives no answer", exitCode: 4 },
}

/**
 * Turns what Node threw into an error for the operator.
 * @param doing what was attempted and where, as in `writing /mnt/sfs/x`
 */
export function systemError(error: unknown, doing: string): OperatorError {
	if (error instanceof OperatorError) return error
	const known = systemErrors[codeOf(error) ?? ""]
	if (known === undefined) return new OperatorError(`${doing}: ${messageOf(error)}`, { cause: error })
	return new OperatorError(`${doing}: ${known.says}`, {
		exitCode: known.exitCode,
		cause: error,
		...(known.hint === undefined ? {} : { hint: known.hint }),
	})
}
