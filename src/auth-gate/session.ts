// The signed session of one user, as a cookie. It opens that user's door until it ends or the password changes, and
// never the admin's.
import { createHmac } from "node:crypto"
import { isSameText } from "../lib/formats/service-token.ts"
import type { Secret } from "../lib/secret.ts"

// By this prefix a browser takes it only over TLS, for this very host and for all of its paths.
const cookieName = "__Host-comfyume"
export const sessionSeconds = 86_400

const attributes = "Path=/; HttpOnly; Secure; SameSite=Strict"

/**
 * The `Set-Cookie` that begins a session.
 * @param hash the user's password hash: with another password the session is over
 * @param now in seconds
 */
export function sessionCookie(key: Secret, user: string, hash: string, now: number): string {
	const ends = now + sessionSeconds
	const value = `${user}.${ends}.${signatureOf(key, user, ends, hash)}`
	return `${cookieName}=${value}; Max-Age=${sessionSeconds}; ${attributes}`
}

/** The `Set-Cookie` that ends it. */
export const noSession = `${cookieName}=; Max-Age=0; ${attributes}`

/**
 * Whose session a `Cookie` header holds.
 * @param hashOf the password hash of a user; undefined for who is none (any more)
 * @returns undefined for no session, a forged one, one that has ended, and when there are two
 */
export function sessionUser(
	key: Secret,
	header: string,
	hashOf: (user: string) => string | undefined,
	now: number,
): string | undefined {
	const found = header
		.split(";")
		.map((part) => part.trim())
		.filter((part) => part.startsWith(`${cookieName}=`))
	if (found.length !== 1) return undefined
	const [, user, ends, signature] =
		/=([a-z0-9_-]{1,32})\.(\d{1,12})\.([A-Za-z0-9_-]{43})$/.exec(found[0] ?? "") ?? []
	if (user === undefined || ends === undefined || signature === undefined) return undefined
	const hash = hashOf(user)
	if (hash === undefined || Number(ends) <= now || Number(ends) > now + sessionSeconds) return undefined
	return isSameText(signature, signatureOf(key, user, Number(ends), hash)) ? user : undefined
}

const signatureOf = (key: Secret, user: string, ends: number, hash: string) =>
	createHmac("sha256", key.reveal()).update(`session:${user}:${ends}:${hash}`).digest("base64url")
