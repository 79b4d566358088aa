// The worker agent's process: environment in, JSON lines out, signals. docs/worker-agent.md says how it behaves.
import pino from "pino"
import { exitCodes, messageOf, OperatorError } from "../lib/errors.ts"
import { freshState, runAgent } from "./agent.ts"
import { comfyuiAt } from "./comfyui.ts"
import { readConfiguration } from "./configuration.ts"
import { serveHealth } from "./health.ts"
import { serveHeld } from "./held.ts"
import { openNotebook } from "./note.ts"
import { queueClient } from "./queue-client.ts"

async function main(): Promise<void> {
	const configuration = await readConfiguration(process.env)
	const { workerId, healthHost, healthPort } = configuration
	const log = pino({
		level: configuration.logLevel,
		base: { worker: workerId },
		timestamp: pino.stdTimeFunctions.isoTime,
		formatters: { level: (label) => ({ level: label }) },
	})
	const stop = new AbortController()
	for (const signal of ["SIGTERM", "SIGINT"] as const) {
		process.once(signal, () => {
			log.info({ signal }, "takes no more jobs")
			stop.abort()
		})
	}
	const comfyui = comfyuiAt(configuration.comfyuiUrl)
	const { mode, token, queueManagerUrl, comfyuiUrl, statePath } = configuration
	const asks = mode === "pull" ? { queueManager: queueManagerUrl } : {}
	log.info({ mode, ...asks, comfyui: comfyuiUrl }, "the worker agent starts")
	const state = freshState()
	const parts = { configuration, comfyui, memory: comfyui.memory, log, now: Date.now, state }
	const serve = () =>
		healthPort === 0 ? undefined : serveHealth(healthHost, healthPort, workerId, () => state)
	let health: Awaited<ReturnType<typeof serve>>
	if (mode === "held" && token !== undefined) {
		health = await serve()
		await serveHeld({ ...parts, token }, stop.signal)
	} else {
		const notebook = openNotebook(statePath)
		await notebook.prepare()
		health = await serve()
		await runAgent({ ...parts, notebook, queue: queueClient(queueManagerUrl, workerId, token) }, stop.signal)
	}
	health?.closeAllConnections()
	health?.close()
	log.info("the worker agent has ended")
}

await main().catch((error: unknown) => {
	const hint = error instanceof OperatorError && error.hint !== undefined ? { hint: error.hint } : {}
	const line = { level: "error", time: new Date().toISOString(), msg: messageOf(error), ...hint }
	process.stderr.write(`${JSON.stringify(line)}\n`)
	process.exit(error instanceof OperatorError ? error.exitCode : exitCodes.bug)
})
