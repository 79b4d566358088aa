// A command on its way over SSH: the line that is sent, when it is withdrawn, and what its failure means.
import { type ExitCode, exitCodes, OperatorError } from "../errors.ts"
import { type Command, command, describe, quoteForShell } from "./command.ts"
import { isNoSpace, lastLines } from "./failures.ts"
import { supervisor } from "./ssh-scripts.ts"

// The programs' own words are parsed and shown: they must not change with the host's language. A user's PATH lacks sbin.
const baseEnvironment = {
	LC_ALL: "C.UTF-8",
	PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}

/** A fixed shell script with its positional parameters. */
export const script = (text: string, ...parameters: string[]): Command =>
	command("sh", "-c", text, "sh", ...parameters)

/**
 * The one line that SSH's exec request takes: the supervisor, and the command below it.
 * @param secretBytes how many bytes of `NAME=value\0` come first on stdin
 * @param asRoot with `sudo -n` in front, which fails where it would ask for a password
 */
export function commandLine(command: Command, secretBytes: number, asRoot: boolean): string {
	const environment = Object.entries({ ...baseEnvironment, ...command.environment })
	return [
		// No login shell stays in between.
		"exec",
		...(asRoot ? ["sudo", "-n", "--"] : []),
		"env",
		...environment.map(([name, value]) => `${name}=${value}`),
		...["perl", "-e", supervisor, "--", String(secretBytes), command.workingDirectory ?? ""],
		...[command.program, ...command.args],
	]
		.map(quoteForShell)
		.join(" ")
}

/** What sudo's refusal means to the operator. */
export function sudoRefusal(name: string, user: string, stderr: string): OperatorError {
	return new OperatorError(`${name} lets ${user} do nothing as root: ${lastLines(stderr)}`, {
		exitCode: exitCodes.refusedCredentials,
		hint: `on ${name}, as root: echo '${user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/comfyume`,
	})
}

/** Exit code and hint that go with what a script complained about. */
export function failureKind(stderr: string): { exitCode: ExitCode; hint?: string } {
	if (isNoSpace(stderr)) return { exitCode: exitCodes.noSpace, hint: "df -h; df -i" }
	if (/Permission denied|Operation not permitted/.test(stderr))
		return { exitCode: exitCodes.incomplete, hint: "connect as root, or with sudo" }
	return { exitCode: exitCodes.incomplete }
}

type Withdrawal = { withdrawn: Promise<never>; release: () => void }

/** Rejects when the run is stopped or the command's time is up. `release` when it is over. */
export function withdrawal(command: Command, signal: AbortSignal): Withdrawal {
	const { promise, reject } = Promise.withResolvers<never>()
	promise.catch(() => {})
	const onAbort = () => reject(stopped(command, signal))
	signal.addEventListener("abort", onAbort, { once: true })
	const { timeoutMs } = command
	const late = () =>
		reject(
			new OperatorError(`${describe(command)}: no end after ${timeoutMs} ms`, {
				exitCode: exitCodes.unreachable,
			}),
		)
	const timer = timeoutMs === undefined ? undefined : setTimeout(late, timeoutMs)
	return {
		withdrawn: promise,
		release: () => {
			clearTimeout(timer)
			signal.removeEventListener("abort", onAbort)
		},
	}
}

/** The error of a command that its signal ended. */
export function stopped(command: Command, signal: AbortSignal): OperatorError {
	const { reason } = signal
	return new OperatorError(`${describe(command)}: stopped`, {
		cause: reason,
		...(reason instanceof OperatorError ? { exitCode: reason.exitCode } : {}),
	})
}
