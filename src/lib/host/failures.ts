// What every kind of host has in common when a program fails: the words, the hint, the exit code.
import { exitCodes, OperatorError } from "../errors.ts"
import { type Command, describe } from "./command.ts"

/** How much a captured program may print, and how large a file `read` takes. */
export const longestOutputBytes = 64 * 1024 * 1024

/** The last three lines of what a program complained about, on one line. */
export function lastLines(text: string): string {
	return text.trim().split("\n").slice(-3).join(" | ").slice(-600)
}

/** A program that ran and failed. `signal` as in `SIGKILL`. */
export function commandFailure(
	command: Command,
	hostName: string,
	ended: { exitCode: number; stderr: string; signal?: string | undefined },
): OperatorError {
	// tar's words for the compression program that it starts.
	const [, missing] = /: ([\w.-]+): Cannot exec: No such file/.exec(ended.stderr) ?? []
	if (missing !== undefined) return notInstalled(missing, hostName)
	const how = ended.signal === undefined ? `exit code ${ended.exitCode}` : `killed by ${ended.signal}`
	const said = lastLines(ended.stderr)
	return new OperatorError(`${describe(command)} on ${hostName}: ${how}${said === "" ? "" : `: ${said}`}`, {
		...(isNoSpace(ended.stderr) ? { exitCode: exitCodes.noSpace, hint: "df -h; df -i" } : {}),
	})
}

/** There is no such program on the host. */
export function notInstalled(program: string, hostName: string): OperatorError {
	return new OperatorError(`${program} is not installed on ${hostName}`, {
		hint: `apt-get install ${packages[program] ?? program}`,
	})
}

/** True when a tool's complaint is about a full disk or quota. */
export function isNoSpace(stderr: string): boolean {
	return /No space left on device|Disk quota exceeded/.test(stderr)
}

// Programs whose Debian package has another name.
const packages: Readonly<Record<string, string>> = {
	keyctl: "keyutils",
	flock: "util-linux",
	sshd: "openssh-server",
	"ssh-keyscan": "openssh-client",
	"ssh-keygen": "openssh-client",
}
