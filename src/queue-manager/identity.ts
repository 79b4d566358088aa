// Who asks, and what they may: headers from the proxy with its secret, bearer tokens, or nobody in particular.
import type { IncomingHttpHeaders } from "node:http"
import { isSameText, readServiceToken } from "../lib/formats/service-token.ts"
import type { Secret } from "../lib/secret.ts"

/** `name` is a user's id, a worker's name, or "" for nobody in particular. */
export type Principal = {
	role: "admin" | "user" | "worker" | "open"
	name: string
	/** The proxy let them in, by what a browser sends of itself: a password it remembers, or a cookie. */
	isProxied?: true
}

export type IdentityOptions = {
	mode: "proxy" | "open"
	proxySecret: Secret | undefined
	tokenKey: Secret | undefined
	/** Tokens of an older generation are refused: raising it makes all earlier ones worthless. */
	tokenGeneration: number
	/** Addresses that workers without a token may come from. */
	workerAddresses: readonly string[]
}

/**
 * Tells who a request comes from.
 * @param address the peer's address, as the socket has it
 * @returns undefined when it shows nothing, or something forged
 */
export function identify(
	{ mode, proxySecret, tokenKey, tokenGeneration, workerAddresses }: IdentityOptions,
	headers: IncomingHttpHeaders,
	address: string,
): Principal | undefined {
	const shown = headers["x-comfyume-proxy"]
	// What pretends to come from the proxy is refused, not looked at otherwise.
	if (shown !== undefined && mode === "proxy") {
		if (proxySecret === undefined || !isSameText(String(shown), proxySecret.reveal())) return undefined
		const name = String(headers["x-comfyume-user"] ?? "")
		const role = String(headers["x-comfyume-role"] ?? "user")
		if (!/^[a-zA-Z0-9_.-]{1,100}$/.test(name) || (role !== "admin" && role !== "user")) return undefined
		return { role, name, isProxied: true }
	}
	const bearer = /^bearer +(\S+)$/i.exec(headers.authorization ?? "")?.[1]
	if (bearer !== undefined && tokenKey !== undefined) {
		const token = readServiceToken(tokenKey, bearer, tokenGeneration)
		return token && { role: token.role === "frontend" ? "user" : token.role, name: token.name }
	}
	if (mode === "open") return { role: "open", name: "" }
	const plain = address.replace(/^::ffff:/, "")
	return workerAddresses.includes(plain) ? { role: "worker", name: "" } : undefined
}

/** Whether the principal may do what is kept for instructors. */
export const isAdmin = ({ role }: Principal) => role === "admin" || role === "open"

/** Whether the principal may see and change a user's jobs. */
export const mayActFor = (principal: Principal, user: string) =>
	isAdmin(principal) || (principal.role === "user" && principal.name === user)

/** Whether the principal may claim and finish jobs. */
export const mayWork = ({ role }: Principal) => role === "worker" || role === "open"
