// What every `--help` ends with.
import { type ExitCode, exitMeanings } from "../errors.ts"

/** The list of exit codes that a command can return, to stand at the end of its help. */
export function exitStatusHelp(codes: readonly ExitCode[]): string {
	const lines = [...new Set(codes)]
		.sort((one, other) => one - other)
		.map((code) => `  ${String(code).padStart(3)}  ${exitMeanings[code]}`)
	return `\nExit status:\n${lines.join("\n")}`
}
