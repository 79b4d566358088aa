// The gate's own rules, with the clock in hand.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeAll, beforeEach, expect, test } from "vitest"
import { judge } from "../../../src/auth-gate/gate.ts"
import { openPasswords, readBasic } from "../../../src/auth-gate/passwords.ts"
import { sessionCookie, sessionSeconds, sessionUser } from "../../../src/auth-gate/session.ts"
import { hashPassword, renderHtpasswd } from "../../../src/lib/formats/htpasswd.ts"
import { Secret } from "../../../src/lib/secret.ts"

const key = new Secret("made-up-cookie-secret-of-the-tests-0001")
const names = ["user001", "user002", "admin"]
const hashes = new Map<string, string>()
let directory = ""
let now = 0

beforeAll(async () => {
	for (const name of names) hashes.set(name, await hashPassword(new Secret(`of-${name}`)))
})
beforeEach(() => {
	now = 1_800_000_000_000
	directory = mkdtempSync(join(tmpdir(), "comfyume-gate-"))
	writeFileSync(join(directory, "htpasswd"), renderHtpasswd(hashes))
})
afterEach(() => rmSync(directory, { recursive: true, force: true }))

const gate = () => {
	const passwords = openPasswords(join(directory, "htpasswd"), () => now)
	const options = { passwords, adminName: "admin", sessionKey: key, now: () => now }
	return ({ door = "any", as = "", cookie = "", address = "203.0.113.1" }) =>
		judge(options, {
			door,
			authorization: as === "" ? "" : `Basic ${Buffer.from(as).toString("base64")}`,
			cookie,
			address,
		})
}
const seconds = () => Math.floor(now / 1000)
const hashOf = (name: string) => hashes.get(name)
const cookieFor = (name: string, begun = seconds()) =>
	sessionCookie(key, name, hashes.get(name) ?? "", begun).split(";")[0] ?? ""

test("a session is its user's for a day, and nobody's after that or before", () => {
	const cookie = cookieFor("user001")
	expect(sessionUser(key, cookie, hashOf, seconds() + sessionSeconds - 1)).toBe("user001")
	expect(sessionUser(key, cookie, hashOf, seconds() + sessionSeconds)).toBeUndefined()
	expect(sessionUser(key, cookieFor("user001", seconds() + 60), hashOf, seconds())).toBeUndefined()
})

test("a session with one letter changed is nobody's, as is one of another key, user or password", () => {
	const cookie = cookieFor("user001")
	for (let index = cookie.indexOf("=") + 1; index < cookie.length; index++) {
		const changed = `${cookie.slice(0, index)}${cookie[index] === "2" ? "3" : "2"}${cookie.slice(index + 1)}`
		expect(sessionUser(key, changed, hashOf, seconds())).toBeUndefined()
	}
	expect(sessionUser(new Secret("another"), cookie, hashOf, seconds())).toBeUndefined()
	expect(sessionUser(key, cookie, () => undefined, seconds())).toBeUndefined()
	expect(sessionUser(key, cookie, () => hashes.get("user002"), seconds())).toBeUndefined()
	expect(sessionUser(key, `${cookie}; ${cookieFor("user002")}`, hashOf, seconds())).toBeUndefined()
})

test("a session in the admin's name opens nothing, even rightly signed", async () => {
	const ask = gate()
	for (const door of ["admin", "any"])
		expect(await ask({ door, cookie: cookieFor("admin") })).toEqual({ state: "unknown" })
	expect(await ask({ door: "admin", as: "admin:of-admin" })).toMatchObject({
		role: "admin",
		cookie: undefined,
	})
})

test("a password that is shown counts, and not somebody else's session beside it", async () => {
	const ask = gate()
	const cookie = cookieFor("user001")
	expect(await ask({ door: "user002", as: "user002:of-user002", cookie })).toMatchObject({ user: "user002" })
	expect(await ask({ door: "user001", as: "user002:of-user002", cookie })).toEqual({
		state: "refused",
		reason: "door",
	})
	expect(await ask({ door: "user001", as: "user002:wrong", cookie })).toEqual({ state: "unknown" })
})

test("an empty door, or one that is none, is nobody's", async () => {
	const ask = gate()
	for (const door of ["", "user003", "USER001", "user001 ", "admin"])
		expect(await ask({ door, as: "user001:of-user001" })).toEqual({ state: "refused", reason: "door" })
})

test("after ten wrong ones a pair of name and address waits a minute; others don't", async () => {
	const ask = gate()
	for (let time = 0; time < 10; time++)
		expect(await ask({ as: `user001:wrong-${time}` })).toEqual({ state: "unknown" })
	expect(await ask({ as: "user001:of-user001" })).toEqual({ state: "refused", reason: "slow" })
	expect(await ask({ as: "user001:of-user001", address: "203.0.113.2" })).toMatchObject({ state: "welcome" })
	// It is known by now to be right, so it costs nothing and waits for nobody.
	expect(await ask({ as: "user001:of-user001" })).toMatchObject({ state: "welcome" })
	expect(await ask({ as: "user002:of-user002" })).toMatchObject({ state: "welcome" })
	expect(await ask({ as: "user001:wrong-again" })).toEqual({ state: "refused", reason: "slow" })
	now += 60_000
	expect(await ask({ as: "user001:wrong-again" })).toEqual({ state: "unknown" })
}, 60_000)

test("a flood at once is turned away before it reaches the processor", async () => {
	const ask = gate()
	const answers = await Promise.all(
		Array.from({ length: 100 }, (_, index) => ask({ as: `nobody${index}:x`, address: `203.0.113.${index}` })),
	)
	const slow = answers.filter((answer) => answer.state === "refused").length
	expect(slow).toBeGreaterThanOrEqual(30)
	expect(answers.filter(({ state }) => state === "welcome")).toEqual([])
}, 60_000)

test("a Basic header is taken apart at its first colon, and odd ones are none", () => {
	const basic = (text: string) => readBasic(`Basic ${Buffer.from(text).toString("base64")}`)
	expect(basic("user001:a:b")?.password.reveal()).toBe("a:b")
	for (const header of ["", "Bearer x", "Basic", "Basic !!", `Basic ${"A".repeat(500)}`])
		expect(readBasic(header)).toBeUndefined()
	for (const text of [":x", "user001", "a\0b:x"]) expect(basic(text)).toBeUndefined()
})
