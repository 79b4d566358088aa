// Starting the real programs of the test world. Arguments as a list, output as text.
import { spawn } from "node:child_process"

export type Ran = { exitCode: number; stdout: string; stderr: string }

export type RunOptions = {
	stdin?: string
	/** Replaces the environment; without it the program gets this process's own. */
	environment?: NodeJS.ProcessEnv
	workingDirectory?: string
	/** Exit codes that are no failure besides 0; `"any"` takes them all, and signals from elsewhere (-1). */
	allowedExitCodes?: readonly number[] | "any"
	/** Kills the program; 60 s without it. */
	timeoutMs?: number
}

/**
 * Runs a program to its end.
 * @throws {Error} with the program's last words when it ends with another exit code than allowed, or not in time.
 */
export function run(
	program: string,
	args: readonly string[],
	{ stdin, environment, workingDirectory, allowedExitCodes = [], timeoutMs = 60_000 }: RunOptions = {},
): Promise<Ran> {
	return new Promise((resolve, reject) => {
		const child = spawn(program, [...args], {
			stdio: ["pipe", "pipe", "pipe"],
			timeout: timeoutMs,
			killSignal: "SIGKILL",
			...(environment === undefined ? {} : { env: environment }),
			...(workingDirectory === undefined ? {} : { cwd: workingDirectory }),
		})
		let stdout = ""
		let stderr = ""
		child.stdout.setEncoding("utf8").on("data", (text: string) => {
			stdout += text
		})
		child.stderr.setEncoding("utf8").on("data", (text: string) => {
			stderr += text
		})
		// A program may end without reading its input; its exit code says what that means.
		child.stdin.on("error", () => {})
		child.stdin.end(stdin ?? "")
		child.on("error", reject)
		child.on("close", (code, signal) => {
			const exitCode = code ?? -1
			const allowed =
				allowedExitCodes === "any"
					? !child.killed
					: signal === null && (exitCode === 0 || allowedExitCodes.includes(exitCode))
			if (allowed) return resolve({ exitCode, stdout, stderr })
			const ended = signal === null ? `exit code ${exitCode}` : `killed by ${signal}`
			reject(new Error(`${[program, ...args].join(" ")}: ${ended}\n${(stderr || stdout).slice(-2000)}`))
		})
	})
}
