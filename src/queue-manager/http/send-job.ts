// Jobs on their way out. A large result is neither parsed nor copied: its bytes follow the job's own, and only so many
// are under way at once.
import { Readable } from "node:stream"
import type { FastifyReply, FastifyRequest } from "fastify"
import type { Found } from "../queue/queue.ts"
import { presentText, type Service } from "../service.ts"
import { HttpError } from "./errors.ts"
import type { Room } from "./room.ts"

// Readers wait for each other so long.
const mostMs = 30_000
const json = "application/json; charset=utf-8"

/** Makes what sends one job, with its result however large. */
export function jobSender(service: Service, room: Room) {
	/** @param more members beside the job's own */
	return async (
		request: FastifyRequest,
		reply: FastifyReply,
		found: Found,
		more: Record<string, unknown> = {},
	): Promise<FastifyReply> => {
		reply.type(json)
		const text = await presentText(service, found, more)
		if (found.largeBytes === 0) return reply.send(text)
		// Amended results may be a little larger than they were when they were looked at.
		const free = await room.wait(request.principal, found.largeBytes, mostMs)
		if (free === undefined) {
			throw new HttpError(503, "Too many large results are being read at once", { "retry-after": "10" })
		}
		try {
			if (request.socket.destroyed) return reply.send(text)
			const result = (await service.queue.resultOf(found.record.id)) ?? Buffer.from("null")
			// The text ends with the place of the result: `null}`.
			const head = Buffer.from(text.slice(0, -"null}".length))
			const parts = [head, result, Buffer.from("}")]
			reply.header("content-length", String(head.length + result.length + 1))
			reply.raw.once("close", free)
			return reply.send(Readable.from(parts, { objectMode: false }))
		} catch (error) {
			free()
			throw error
		} finally {
			if (request.socket.destroyed) free()
		}
	}
}
