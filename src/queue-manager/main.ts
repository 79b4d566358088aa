// The queue manager's process: its environment, its log, its signals.
import pino from "pino"
import { OperatorError } from "../lib/errors.ts"
import { readEnvironment } from "./environment.ts"
import { startQueueManager } from "./service-start.ts"

// Replaced when it is bundled; from a checkout there is no version to tell.
declare const COMFYUME_VERSION: string | undefined
const version = typeof COMFYUME_VERSION === "string" ? COMFYUME_VERSION : "0.0.0-development"

// The log is one JSON object per line on stdout. A reader that went away must not end the service.
process.stdout.on("error", () => undefined)

try {
	const environment = readEnvironment(process.env)
	const logger = pino({ level: environment.LOG_LEVEL, base: null }, pino.destination({ dest: 1, sync: true }))
	const running = await startQueueManager(environment, version, logger)
	logger.info({ url: running.url, version, authMode: environment.AUTH_MODE }, "listening")

	let isEnding = false
	for (const signal of ["SIGTERM", "SIGINT"] as const) {
		process.on(signal, () => {
			if (isEnding) return
			isEnding = true
			logger.info({ signal }, "stopping")
			const end = (code: number) => {
				// Ending waits for every thread, and one that hangs in the kernel never ends: nothing else is left then.
				if (running.stuck() > 0) {
					logger.error({ threads: running.stuck() }, "a file system hangs; ending by force")
					process.kill(process.pid, "SIGKILL")
				}
				process.exit(code)
			}
			running.close().then(
				() => end(0),
				(error: unknown) => {
					logger.error({ err: error }, "stopping failed")
					end(1)
				},
			)
			// Whatever hangs must not keep it past Docker's patience.
			setTimeout(() => process.kill(process.pid, "SIGKILL"), 9500).unref()
		})
	}
} catch (error) {
	const hint = error instanceof OperatorError && error.hint !== undefined ? `\n  ${error.hint}` : ""
	process.stderr.write(`queue-manager: ${error instanceof Error ? error.message : String(error)}${hint}\n`)
	process.exitCode = error instanceof OperatorError ? error.exitCode : 1
}
