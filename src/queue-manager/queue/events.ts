// The stream of what happened, followed without a gap: a lost connection goes on where it stopped.
import { setTimeout as pause } from "node:timers/promises"
import type { Connection, Reply } from "./connection.ts"
import { mapOf } from "./reply.ts"

/** Something that happened: its id in the stream, and its fields. */
export type QueueEvent = { id: string; fields: ReadonlyMap<string, string> }
export type EventPage = readonly QueueEvent[]

/** Whose an event is that all are told of. No user's id can be this. */
export const everybody = "*"

/** Reads stream entries as Redis gives them. */
export function pageOf(reply: Reply): EventPage {
	return ((reply ?? []) as [string, string[]][]).map(([id, flat]) => ({ id, fields: mapOf(flat) }))
}

// A blocking read holds its connection: each follower has its own.
const blockMs = 5000

/** Follows a stream from its present end. @returns what ends it, and resolves when the beginning is known */
export function followEvents(open: () => Connection, key: string, onEvents: (events: EventPage) => void) {
	const connection = open()
	let closed = false
	let after: string | undefined
	let ready: () => void = () => undefined
	const started = new Promise<void>((resolve) => {
		ready = resolve
	})
	const ended = follow()

	async function follow(): Promise<void> {
		while (!closed) {
			try {
				if (after === undefined) {
					const [newest] = pageOf(await connection.send(["XREVRANGE", key, "+", "-", "COUNT", "1"]))
					after = newest?.id ?? "0-0"
					ready()
				}
				const read = ["XREAD", "COUNT", "500", "BLOCK", String(blockMs), "STREAMS", key, after]
				const reply = await connection.send(read, blockMs * 2)
				const events = pageOf(entriesOf(reply))
				after = events.at(-1)?.id ?? after
				if (events.length > 0) onEvents(events)
			} catch {
				// Redis is away; the connection comes back by itself.
				if (!closed) await pause(100)
			}
		}
	}

	return {
		started,
		async close() {
			closed = true
			await connection.close()
			await ended
		},
	}
}

// RESP2 gives [[key, entries]], RESP3 a map.
function entriesOf(reply: Reply): Reply {
	if (reply === null) return []
	if (Array.isArray(reply)) return Array.isArray(reply[0]) ? (reply[0][1] ?? []) : (reply[1] ?? [])
	return (Object.values(reply as unknown as Record<string, Reply>)[0] ?? []) as Reply
}
