// The door as the internet finds it: asked at this machine's own ports, by the workshop's name.
import { request } from "node:https"
import type { TLSSocket } from "node:tls"
import { messageOf } from "../errors.ts"
import type { Secret } from "../secret.ts"

export type DoorAnswer = {
	status: number
	body: string
	/** Why a browser would not trust the certificate; undefined when it would. */
	untrusted: string | undefined
	/** When the certificate ends. */
	validTo: Date | undefined
	/** sha256 of the certificate, 64 small hexadecimal digits. */
	fingerprint: string | undefined
}

export type DoorRequest = {
	domain: string
	port: number
	/** `/health/ping` */
	path: string
	signal: AbortSignal
	/** 5000 without it. */
	timeoutMs?: number
	/** Whose name and password go along. */
	as?: { name: string; password: Secret }
}

/**
 * Asks nginx on this machine as if the name led here (`curl --resolve`). The certificate is judged and not insisted on.
 * @returns why there is no answer, or the answer
 */
export function askDoor({
	domain,
	port,
	path,
	signal,
	timeoutMs = 5000,
	as,
}: DoorRequest): Promise<DoorAnswer | string> {
	return new Promise((resolve) => {
		const asked = request(
			{
				host: "127.0.0.1",
				port,
				path,
				servername: domain,
				headers: {
					host: port === 443 ? domain : `${domain}:${port}`,
					...(as === undefined ? {} : { authorization: basic(as) }),
				},
				rejectUnauthorized: false,
				agent: false,
				signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
			},
			(response) => {
				const socket = response.socket as TLSSocket
				const { valid_to: validTo, fingerprint256 } = socket.getPeerCertificate()
				const chunks: Buffer[] = []
				response.on("data", (chunk: Buffer) => chunks.push(chunk))
				response.on("error", (error) => resolve(messageOf(error)))
				response.on("end", () =>
					resolve({
						status: response.statusCode ?? 0,
						body: Buffer.concat(chunks).toString("utf8"),
						untrusted: socket.authorized ? undefined : messageOf(socket.authorizationError),
						validTo: validTo === undefined ? undefined : new Date(validTo),
						fingerprint: fingerprint256?.replaceAll(":", "").toLowerCase(),
					}),
				)
			},
		)
		asked.on("error", (error) =>
			resolve(error.name === "TimeoutError" ? "no answer in time" : messageOf(error)),
		)
		asked.end()
	})
}

const basic = ({ name, password }: { name: string; password: Secret }) =>
	`Basic ${Buffer.from(`${name}:${password.reveal()}`).toString("base64")}`

/** Whether `/health/ping` is answered as nginx answers it. Undefined when it is, else why not. */
export async function whyShut(asked: Omit<DoorRequest, "path">): Promise<string | undefined> {
	const answer = await askDoor({ ...asked, path: "/health/ping" })
	const where = `https://${asked.domain}${asked.port === 443 ? "" : `:${asked.port}`}/health/ping`
	if (typeof answer === "string") return `${where} gives no answer here: ${answer}`
	return answer.status === 200 && answer.body.trim() === "healthy"
		? undefined
		: `${where} answers ${answer.status} here, and not "healthy"`
}
