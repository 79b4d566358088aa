// The bearer tokens that services show each other: rendered with the stack, checked by the queue manager.
import { createHash, createHmac, timingSafeEqual } from "node:crypto"
import type { Secret } from "../secret.ts"

/** A frontend's name is its user's id. */
export const tokenRoles = ["admin", "user", "frontend", "worker"] as const
export type TokenRole = (typeof tokenRoles)[number]

const namePattern = /^[a-zA-Z0-9_.-]{1,100}$/

/** The token of a role and name: `<role>:<name>:<generation>:<HMAC-SHA256 of what stands before it, base64url>`. */
export function serviceToken(key: Secret, role: TokenRole, name: string, generation: number): string {
	return `${role}:${name}:${generation}:${macOf(key, `${role}:${name}:${generation}`)}`
}

/** Whose token it is; undefined when it is forged or malformed, or its generation is older than `least`. */
export function readServiceToken(
	key: Secret,
	token: string,
	least: number,
): { role: TokenRole; name: string } | undefined {
	const [role = "", name = "", generation = "", mac = "", ...rest] = token.split(":")
	const known = tokenRoles.find((one) => one === role)
	if (known === undefined || rest.length > 0 || !namePattern.test(name) || !/^\d{1,7}$/.test(generation)) {
		return undefined
	}
	if (!isSameText(mac, macOf(key, `${role}:${name}:${generation}`))) return undefined
	return Number(generation) < least ? undefined : { role: known, name }
}

/** Compares in a time that tells nothing of the texts, not even their length. */
export function isSameText(a: string, b: string): boolean {
	const digest = (text: string) => createHash("sha256").update(text).digest()
	return timingSafeEqual(digest(a), digest(b))
}

const macOf = (key: Secret, text: string) =>
	createHmac("sha256", key.reveal()).update(text).digest("base64url")
