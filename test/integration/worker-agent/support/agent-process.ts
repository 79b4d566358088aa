// The agent as a process of its own, on the pinned Node, with quick intervals.
import { spawn } from "node:child_process"
import { once } from "node:events"
import { fileURLToPath } from "node:url"

const main = fileURLToPath(new URL("../../../../src/worker-agent/main.ts", import.meta.url))

export type AgentProcess = ReturnType<typeof startAgentProcess>

/** @param environment over the defaults; nothing else is in the process's environment */
export function startAgentProcess(environment: Readonly<Record<string, string>>) {
	const started = spawn(process.execPath, [main], {
		stdio: ["ignore", "pipe", "pipe"],
		env: {
			WORKER_ID: "gpu-1",
			WORKER_POLL_INTERVAL: "0.1",
			WORKER_HEALTH_PORT: "0",
			...environment,
		},
	})
	let output = ""
	for (const stream of [started.stdout, started.stderr])
		stream.on("data", (chunk) => {
			output += chunk
		})
	const exit = once(started, "exit").then(([code, signal]) => (code ?? signal) as number | string)

	return {
		/** Everything it has written so far. */
		output: () => output,
		/** Its log, line by line. @throws when a line is no JSON */
		lines: () =>
			output
				.split("\n")
				.filter((line) => line !== "")
				.map((line) => JSON.parse(line) as Record<string, unknown>),
		/** Its exit code, or the signal that ended it. */
		exit,
		signal: (name: NodeJS.Signals) => started.kill(name),
		async [Symbol.asyncDispose]() {
			if (started.exitCode === null && started.signalCode === null) started.kill("SIGKILL")
			await exit
		},
	}
}
