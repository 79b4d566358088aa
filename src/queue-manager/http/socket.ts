// Events for browsers: /ws from now on, /ws?after=<event id> from there on. Text is answered with `pong: …`.
import type { WebSocket } from "@fastify/websocket"
import { compareIds, type Message } from "../events.ts"
import { isAdmin } from "../identity.ts"
import { everybody } from "../queue/events.ts"
import type { Service } from "../service.ts"
import { HttpError } from "./errors.ts"
import * as shape from "./schemas.ts"
import type { App } from "./server.ts"

// Who doesn't read what they are sent is let go, before it fills the memory. They come back with `after`.
const mostBufferedBytes = 2 * 1024 * 1024
const pageLength = 500
const pingMs = 30_000
const tooSlow = 1013

/** Registers the route. */
export function socketRoutes(app: App, service: Service): void {
	const { hub, queue } = service

	app.get(
		"/ws",
		{
			config: { access: "user" },
			websocket: true,
			schema: { querystring: shape.eventsQuery, hide: true },
			preHandler: async (request) => {
				const { user_id } = request.query
				const { principal } = request
				if (user_id !== undefined && !isAdmin(principal) && user_id !== principal.name) {
					throw new HttpError(403, "These are not your jobs")
				}
			},
		},
		(socket: WebSocket, request) => {
			const { after, user_id } = request.query as { after?: string; user_id?: string }
			const user = user_id ?? (isAdmin(request.principal) ? undefined : request.principal.name)
			serve(socket, user, after === "" ? undefined : after)
		},
	)

	function serve(socket: WebSocket, user: string | undefined, after: string | undefined): void {
		let last = after
		let isReplaying = after !== undefined
		let isAlive = true

		const send = (messages: readonly Message[]) => {
			for (const { id, user: whose, text } of messages) {
				if (last !== undefined && compareIds(id, last) <= 0) continue
				last = id
				if (user === undefined || whose === user || whose === everybody) deliver(text)
			}
		}
		const deliver = (text: string) => {
			if (socket.readyState !== socket.OPEN) return
			if (socket.bufferedAmount > mostBufferedBytes) {
				socket.close(tooSlow, "too slow: come back with ?after=")
				socket.terminate()
				return
			}
			socket.send(text)
		}

		const forget = hub.listen((messages) => {
			if (!isReplaying) send(messages)
		})
		const pinging = setInterval(() => {
			if (!isAlive) socket.terminate()
			isAlive = false
			if (socket.readyState === socket.OPEN) socket.ping()
		}, pingMs)
		socket.on("pong", () => {
			isAlive = true
		})
		socket.on("message", (data, isBinary) => {
			isAlive = true
			if (!isBinary) deliver(`pong: ${String(data)}`)
		})
		socket.on("error", () => socket.terminate())
		socket.on("close", () => {
			clearInterval(pinging)
			forget()
		})
		if (after !== undefined) replay(after).catch(() => socket.close(1011, "the events can't be read"))

		/** Sends what was missed, page by page, and then goes on with what happens, without a gap between them. */
		async function replay(from: string): Promise<void> {
			const bounds = await queue.eventBounds()
			// A later one than the newest is of a stream that Redis has lost.
			const isLater = compareIds(from, bounds?.newest ?? "0") > 0
			const isGone = isLater || (bounds !== undefined && compareIds(from, bounds.oldest) < 0)
			if (isLater) last = bounds?.newest ?? "0-0"
			if (isGone && compareIds(from, "0") > 0) {
				const data = { oldest: bounds?.oldest ?? null }
				deliver(JSON.stringify({ type: "resync", data, timestamp: new Date(service.now()).toISOString() }))
			}
			let toldAtEmpty: string | undefined
			while (socket.readyState === socket.OPEN) {
				const page = await hub.after(last ?? from, pageLength)
				send(page)
				if (page.length > 0) continue
				// What was told before the page was read, and isn't in it, is kept no more.
				const told = hub.lastId()
				if (compareIds(told, last ?? from) <= 0 || told === toldAtEmpty) break
				toldAtEmpty = told
			}
			isReplaying = false
		}
	}
}
