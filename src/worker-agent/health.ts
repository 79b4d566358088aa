// A page for health checks: what the agent does, and who answers it.
import { createServer, type Server } from "node:http"
import { systemError } from "../lib/errors.ts"
import type { AgentState } from "./agent.ts"

/**
 * Serves `GET /health`: always 200 while the agent lives; `status` says whether it can work.
 * @param port 0 takes a free one
 * @throws {OperatorError} when the port is taken
 */
export async function serveHealth(
	host: string,
	port: number,
	workerId: string,
	state: () => AgentState,
): Promise<Server> {
	const server = createServer((request, response) => {
		if (request.method !== "GET" || request.url?.split("?")[0] !== "/health") {
			response.writeHead(404).end()
			return
		}
		const { job, waitingBecause, queueManagerAnswers, memory } = state()
		const body = {
			status: queueManagerAnswers && waitingBecause === undefined ? "healthy" : "unhealthy",
			worker_id: workerId,
			job: job ?? null,
			waiting_because: waitingBecause ?? null,
			queue_manager_answers: queueManagerAnswers,
			vram_obtainable_mb: memory?.obtainableMb ?? null,
		}
		response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(body))
	})
	await new Promise<void>((resolve, reject) => {
		server.once("error", (error) => reject(systemError(error, `serving health on ${host}:${port}`)))
		server.listen(port, host, resolve)
	})
	return server
}
