// All that a command gets from the process it runs in. Commands and libraries take it as an argument and never reach
// for `process`: tests and the demo hand in their own.
import type { Readable } from "node:stream"
import type { ExitCode } from "../errors.ts"

export type Terminal = {
	/** Data: what a script would read. */
	out(text: string): void
	/** Talk: progress, notes, questions, errors. */
	talk(text: string): void
	/** True when talk goes to a person's terminal. */
	interactive: boolean
	/** Width of that terminal; 80 when it is none or doesn't say. */
	columns: number
	/** Height of it; 24 where nothing is said. */
	rows?: number
	color: boolean
}

export type Surroundings = {
	/** The process's environment variables. */
	variables: Readonly<Record<string, string | undefined>>
	workingDirectory: string
	terminal: Terminal
	stdin: Readable & { isTTY?: boolean }
	now: () => Date
	/** Random hexadecimal digits, for names of temporary things. */
	randomId: () => string
	/** Aborted by SIGINT, SIGTERM, SIGHUP; its reason carries the exit code. */
	signal: AbortSignal
	/** Where `manifests/`, `templates/` and the release lie: the root of the package. */
	packageRoot: string
	version: string
	/** Set when a comfyume elsewhere runs this one: what it sent along. Reports then go out as events. */
	session?: { payload: unknown }
}

/** What a command file is given: its surroundings, and where to say how it ended. */
export type CommandRun = {
	surroundings: Surroundings
	/** The exit status of the process. Without a call it is 0. */
	finish(exitCode: ExitCode): void
}
