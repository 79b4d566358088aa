// STAND-IN for healthchecks.io and ntfy.sh: a real HTTP server that keeps what it is told, and answers as it is told to.
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"

export type Request = {
	path: string
	query: URLSearchParams
	body: string
	/** The address that it came from. */
	from: string
}

export type NotificationServer = {
	url: string
	/** In the order in which they came. */
	requests: Request[]
	/** What it does with each from now on; without it, 200 and "OK". */
	answer(how: (request: Request, response: ServerResponse) => void): void
	[Symbol.asyncDispose](): Promise<void>
}

export async function startNotificationServer(address = "127.0.0.1"): Promise<NotificationServer> {
	const requests: Request[] = []
	let how: (request: Request, response: ServerResponse) => void = (_, response) => response.end("OK")
	const server = createServer((message: IncomingMessage, response) => {
		const url = new URL(message.url ?? "/", "http://unused.example.test")
		let body = ""
		message.setEncoding("utf8").on("data", (text: string) => {
			body += text
		})
		message.once("end", () => {
			const from = message.socket.remoteAddress ?? ""
			const request = { path: url.pathname, query: url.searchParams, body, from }
			requests.push(request)
			how(request, response)
		})
	})
	await new Promise<void>((resolve) => server.listen(0, address, resolve))
	return {
		url: `http://${address}:${(server.address() as AddressInfo).port}`,
		requests,
		answer: (next) => {
			how = next
		},
		[Symbol.asyncDispose]: () =>
			new Promise((resolve) => {
				server.closeAllConnections()
				server.close(() => resolve())
			}),
	}
}
