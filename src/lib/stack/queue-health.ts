// The queue manager and Redis, asked from where a host finds them: on the app server at home, on a GPU host over the VPN.
import { z } from "zod"
import { messageOf } from "../errors.ts"
import type { Secret } from "../secret.ts"
import type { Stack } from "./description.ts"
import { whyNoPong } from "./redis-ping.ts"

const answerTimeoutMs = 5000

const healthSchema = z.object({
	status: z.string(),
	redis_connected: z.boolean().optional(),
	inference_mode: z.string().optional(),
	// null while it has no Redis that could say.
	workers_active: z.number().nullish(),
	queue_depth: z.number().nullish(),
})
type QueueHealth = z.output<typeof healthSchema>

/** Where a host finds the app server's published services. Pure. */
export const appServerSeenFrom = ({ role, configuration }: Pick<Stack, "role" | "configuration">): string =>
	role === "worker" ? (configuration.vpnAddress ?? "127.0.0.1") : "127.0.0.1"

/**
 * The queue manager's own word of its health, without the door.
 * @returns what it says, or why it gives no answer; either with where it was asked
 */
export async function askQueueManager(
	stack: Pick<Stack, "role" | "configuration" | "services">,
	{ signal, timeoutMs = answerTimeoutMs }: { signal: AbortSignal; timeoutMs?: number },
): Promise<{ address: string } & ({ health: QueueHealth } | { why: string })> {
	const address = `http://${appServerSeenFrom(stack)}:${stack.services.queueManager.hostPort}/health`
	try {
		const response = await fetch(address, {
			signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
			redirect: "error",
		})
		return { address, health: healthSchema.parse(await response.json()) }
	} catch (error) {
		if (signal.aborted) throw error
		// fetch says why only in its cause.
		return { address, why: messageOf(error instanceof TypeError ? (error.cause ?? error) : error) }
	}
}

/**
 * Redis, from this host. A GPU host has no password of it, and needs none: there an answer that asks for one is right.
 * @returns `pong`: the password opened it. `shut`: none was given, and none gets in without. Else why there is no answer
 */
export async function pingRedis(
	stack: Pick<Stack, "role" | "configuration" | "services">,
	password: Secret | undefined,
	timeoutMs = answerTimeoutMs,
): Promise<{ address: string } & ({ answer: "pong" | "shut" } | { why: string })> {
	const place = { host: appServerSeenFrom(stack), port: stack.services.redis.hostPort }
	const address = `${place.host}:${place.port}`
	const why = await whyNoPong(place, password, timeoutMs)
	if (why === undefined) {
		return password === undefined ? { address, why: "it lets in whoever asks" } : { address, answer: "pong" }
	}
	if (password === undefined && why.startsWith("NOAUTH")) return { address, answer: "shut" }
	return { address, why }
}
