// The twin check: two machines with one Tailscale identity fight over it. Before an identity is brought back, somebody
// who sees the whole tailnet is asked whether a machine with it is online.
import { z } from "zod"
import { messageOf } from "../errors.ts"
import { command } from "../host/command.ts"
import type { Host } from "../host/host.ts"
import type { Secret } from "../secret.ts"

export type Twin =
	/** Known, and not connected: its identity can move. */
	| { state: "offline"; because: string }
	/** Somebody is using the identity right now. */
	| { state: "online"; because: string }
	/** Nobody could tell. */
	| { state: "unknown"; because: string }

/** How recently a machine must have been seen to count as online, when the API doesn't say it outright. */
const recentMs = 10 * 60 * 1000
const answerTimeoutMs = 15_000
const tailscaleApi = "https://api.tailscale.com"

const statusSchema = z.object({
	BackendState: z.string(),
	Peer: z
		.record(
			z.string(),
			z.object({ HostName: z.string(), TailscaleIPs: z.array(z.string()).nullish(), Online: z.boolean() }),
		)
		.nullish(),
})

/** Asks the tailnet client of the machine the operator sits at. */
export async function askClient(operator: Host, address: string): Promise<Twin> {
	const asked = command("tailscale", "status", "--json")
	if (!(await operator.test(asked))) return unknownTwin("this machine is in no tailnet")
	const { stdout } = await operator.capture(asked)
	const status = parseJson(stdout, statusSchema)
	if (status?.BackendState !== "Running") return unknownTwin("this machine's Tailscale is not connected")
	const peer = Object.values(status.Peer ?? {}).find(({ TailscaleIPs }) => TailscaleIPs?.includes(address))
	if (peer === undefined)
		return unknownTwin(
			`the tailnet of this machine knows no ${address}: it is another tailnet, or the node was removed`,
		)
	return peer.Online
		? { state: "online", because: `${peer.HostName} is online with ${address}` }
		: { state: "offline", because: `${peer.HostName} (${address}) is offline in the tailnet` }
}

const devicesSchema = z.object({
	devices: z.array(
		z.object({
			hostname: z.string(),
			addresses: z.array(z.string()),
			connectedToControl: z.boolean().optional(),
			lastSeen: z.iso.datetime().optional(),
		}),
	),
})

/**
 * Asks Tailscale's API (GET /api/v2/tailnet/-/devices).
 * @param api base address; another one in tests
 */
export async function askApi(
	key: Secret,
	address: string,
	{ now, signal, api = tailscaleApi }: { now: () => Date; signal: AbortSignal; api?: string },
): Promise<Twin> {
	try {
		const response = await fetch(`${api}/api/v2/tailnet/-/devices?fields=all`, {
			redirect: "error",
			headers: { authorization: `Bearer ${key.reveal()}` },
			signal: AbortSignal.any([signal, AbortSignal.timeout(answerTimeoutMs)]),
		})
		const text = await response.text()
		if (response.status === 401 || response.status === 403)
			return unknownTwin("Tailscale's API doesn't take TAILSCALE_API_KEY")
		const answer = response.ok ? parseJson(text, devicesSchema) : undefined
		if (answer === undefined)
			return unknownTwin(`Tailscale's API answers with HTTP status ${response.status}`)
		const device = answer.devices.find(({ addresses }) => addresses.includes(address))
		if (device === undefined) return unknownTwin(`Tailscale's API knows no device with ${address}`)
		const seenMs = device.lastSeen === undefined ? 0 : new Date(device.lastSeen).getTime()
		const online = device.connectedToControl ?? now().getTime() - seenMs < recentMs
		return online
			? { state: "online", because: `${device.hostname} is online with ${address}` }
			: { state: "offline", because: `${device.hostname} (${address}) is offline, says Tailscale's API` }
	} catch (error) {
		if (signal.aborted) throw error
		return unknownTwin(`Tailscale's API can't be reached: ${messageOf(error)}`)
	}
}

const unknownTwin = (because: string): Twin => ({ state: "unknown", because })

function parseJson<T>(text: string, schema: z.ZodType<T>): T | undefined {
	try {
		const parsed = schema.safeParse(JSON.parse(text))
		return parsed.success ? parsed.data : undefined
	} catch {
		return undefined
	}
}
