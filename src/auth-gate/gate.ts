// Who may go through which door. nginx asks before every request: 204 lets it through, 401 asks for a password, 403
// refuses. A session begins only with a right password, and never for the admin.

import type { Secret } from "../lib/secret.ts"
import { type Passwords, readBasic } from "./passwords.ts"
import { sessionCookie, sessionUser } from "./session.ts"

/** A user's id, `admin`, or `any` for whoever is somebody. */
export type Question = { door: string; authorization: string; cookie: string; address: string }

export type Verdict =
	| { state: "welcome"; user: string; role: "user" | "admin"; cookie: string | undefined }
	| { state: "unknown" }
	| { state: "refused"; reason: "door" | "slow" }

export type GateOptions = {
	passwords: Passwords
	adminName: string
	sessionKey: Secret
	/** In milliseconds. */
	now: () => number
}

export async function judge(options: GateOptions, question: Question): Promise<Verdict> {
	const { passwords, adminName, sessionKey, now } = options
	const seconds = Math.floor(now() / 1000)
	const hashes = await passwords.current()
	const session = sessionUser(sessionKey, question.cookie, (user) => hashes.get(user), seconds)
	// The admin's password is asked for each time, whatever cookie there is.
	const inSession = session === adminName ? undefined : session

	const basic = readBasic(question.authorization)
	let user = inSession
	let cookie: string | undefined
	if (basic !== undefined && basic.name !== inSession) {
		const answer = await passwords.check(basic.name, basic.password, question.address)
		if (answer === "slow") return { state: "refused", reason: "slow" }
		if (answer === "wrong") return { state: "unknown" }
		user = basic.name
		const hash = hashes.get(user)
		if (hash !== undefined && user !== adminName) cookie = sessionCookie(sessionKey, user, hash, seconds)
	}
	if (user === undefined) return { state: "unknown" }

	const role = user === adminName ? "admin" : "user"
	const own = role === "admin" ? "admin" : user
	if (question.door !== "any" && question.door !== own) return { state: "refused", reason: "door" }
	return { state: "welcome", user, role, cookie }
}
