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
