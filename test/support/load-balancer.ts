// A load balancer as serverless endpoints have one: consecutive requests go to different replicas, whatever they ask;
// answers 502 for a replica that is gone, and wants a bearer token.
import { createServer, type IncomingMessage, request, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"

export type Fault =
	/** Answered by the balancer itself; nothing reaches a replica. */
	| { answer: number; body?: unknown; retryAfter?: number }
	/** Passed on, and the answer lost: 504 although a replica took it. */
	| "lose-answer"
	/** Passed on, and the connection closed. */
	| "reset"

/**
 * @param replicas where each listens; the list may be changed at any time
 * @param options.key the token it wants
 */
export async function startLoadBalancer(replicas: string[], { key }: { key?: string } = {}) {
	const seen: { method: string; path: string; replica: string | undefined; authorized: boolean }[] = []
	const faults = new Map<string, Fault[]>()
	let turn = 0
	let delayMs = 0

	const answer = (response: ServerResponse, status: number, body: unknown, headers = {}) => {
		response.writeHead(status, { "content-type": "application/json", ...headers })
		response.end(JSON.stringify(body))
	}
	const forward = (replica: string, from: IncomingMessage, to: ServerResponse, fault: Fault | undefined) => {
		const onward = request(
			`${replica}${from.url}`,
			{ method: from.method, headers: { ...from.headers, host: new URL(replica).host } },
			(response) => {
				if (fault === "lose-answer") {
					response.resume()
					response.on("end", () => answer(to, 504, { detail: "gateway timeout" }))
				} else if (fault === "reset") {
					response.resume()
					response.on("end", () => to.destroy())
				} else {
					to.writeHead(response.statusCode ?? 502, response.headers)
					// Half an answer is none: the client must not wait for the rest.
					response.on("error", () => to.destroy())
					response.pipe(to)
				}
			},
		)
		onward.on("error", () => (to.headersSent ? to.destroy() : answer(to, 502, { detail: "bad gateway" })))
		// Who closes a request that is held closes it at the replica too.
		to.on("close", () => onward.destroy())
		from.pipe(onward)
	}
	const server = createServer((from, to) => {
		const path = new URL(from.url ?? "/", "http://localhost").pathname
		const authorized = key === undefined || from.headers.authorization === `Bearer ${key}`
		const fault = faults.get(path)?.shift()
		const replica = replicas.length === 0 ? undefined : replicas[turn++ % replicas.length]
		seen.push({ method: from.method ?? "", path, replica, authorized })
		const pass = () => {
			if (!authorized) return answer(to, 401, { detail: "unauthorized" })
			if (typeof fault === "object") {
				const headers = fault.retryAfter === undefined ? {} : { "retry-after": String(fault.retryAfter) }
				return answer(to, fault.answer, fault.body ?? { detail: "by the balancer" }, headers)
			}
			if (replica === undefined) return answer(to, 503, { detail: "no replica" })
			forward(replica, from, to, fault)
		}
		if (delayMs > 0) setTimeout(pass, delayMs)
		else pass()
	})
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
	return {
		url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
		replicas,
		seen,
		/** What becomes of the next requests to a path, in turn. */
		failNext: (path: string, ...next: Fault[]) => faults.set(path, [...(faults.get(path) ?? []), ...next]),
		/** A cold start: every answer takes so long. */
		delay: (ms: number) => {
			delayMs = ms
		},
		[Symbol.asyncDispose]: async () => {
			server.closeAllConnections()
			await new Promise((resolve) => server.close(resolve))
		},
	}
}
