// The front door as a browser and as an attacker meet it: real nginx and the real gate, over TLS on loopback.
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import { request as plainRequest } from "node:http"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import { stackOf } from "../../../src/lib/config/environment.ts"
import {
	domain,
	type FrontDoor,
	openFrontDoor,
	proxySecret,
	testEnvironment,
} from "../../support/front-door.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"

const users = Array.from({ length: 20 }, (_, index) => `user${String(index + 1).padStart(3, "0")}`)

describeWith("nginx", "the front door", () => {
	let workshop: FrontDoor
	beforeAll(async () => {
		workshop = await openFrontDoor({ ...stackOf(testEnvironment(undefined)), maxBodyMegabytes: 10 }, 20)
	})
	afterAll(() => workshop?.[Symbol.asyncDispose]())

	const cookieOf = (headers: { "set-cookie"?: string[] | undefined }) =>
		headers["set-cookie"]?.[0]?.split(";")[0] ?? ""
	const signIn = async (name: string) =>
		cookieOf((await workshop.ask(`/${name}/`, { as: workshop.as(name) })).headers)

	test("nobody without a password gets in anywhere, the second time neither, and gets no cookie", async () => {
		for (const path of [
			"/",
			"/user001/",
			"/user020/assets/x.js",
			"/admin/",
			"/api/health",
			"/api/jobs",
			"/ws",
			"/outputs/user001/",
			"/sign-out",
		]) {
			for (const time of [1, 2]) {
				const { status, headers } = await workshop.ask(path)
				expect({ path, time, status }).toEqual({ path, time, status: 401 })
				expect(headers["www-authenticate"]).toContain("Basic")
				expect(cookieOf(headers)).toMatch(path === "/sign-out" ? /=$/ : /^$/)
			}
		}
	})

	test("the cookie of a refused answer opens nothing", async () => {
		const { headers } = await workshop.ask("/user001/", { as: "user001:wrong" })
		expect(headers["set-cookie"]).toBeUndefined()
		for (const value of ["", "1", "user001", "user001.9999999999.x", `user001.9999999999.${"A".repeat(43)}`])
			expect(
				(await workshop.ask("/user001/", { headers: { cookie: `__Host-comfyume=${value}` } })).status,
			).toBe(401)
	})

	test("each of twenty users gets through the own door and reaches the own frontend", async () => {
		for (const name of users) {
			const { status, seen } = await workshop.ask(`/${name}/`, { as: workshop.as(name) })
			expect({ status, server: seen?.server }).toEqual({ status: 200, server: name })
		}
	})

	test("user 3's password and session are refused at everybody else's door", async () => {
		const cookie = await signIn("user003")
		for (const name of [...users.filter((one) => one !== "user003"), "admin", "user777"]) {
			expect((await workshop.ask(`/${name}/`, { as: workshop.as("user003") })).status).toBe(403)
			expect((await workshop.ask(`/${name}/`, { headers: { cookie } })).status).toBe(403)
		}
		expect((await workshop.ask("/outputs/user004/", { headers: { cookie } })).status).toBe(403)
	})

	test("a path that pretends to be another door's reaches nobody", async () => {
		const as = workshop.as("user003")
		for (const path of [
			"/user003/../user004/x",
			"/user004/../user003/x",
			"/user003/%2e%2e/user004/x",
			"/%75ser003/x",
			"//user003/x",
			"/user004%2f../user003/x",
		]) {
			const { status, seen } = await workshop.ask(path, { as })
			expect({ path, refused: status >= 400, server: seen?.server }).toEqual({
				path,
				refused: true,
				server: undefined,
			})
		}
	})

	test("an encoded slash arrives encoded, with its query, for every user", async () => {
		for (const name of users) {
			const { seen } = await workshop.ask(`/${name}/userdata/workflows%2Ffile.json?overwrite=true&x=%2F`, {
				method: "POST",
				as: workshop.as(name),
				body: "{}",
			})
			expect(seen).toMatchObject({
				server: name,
				method: "POST",
				path: "/userdata/workflows%2Ffile.json?overwrite=true&x=%2F",
				bytes: 2,
			})
		}
	})

	test("a session opens what the password opened, and nothing else is told to the frontend", async () => {
		const { headers } = await workshop.ask("/user005/", { as: workshop.as("user005") })
		const set = headers["set-cookie"]?.[0] ?? ""
		for (const attribute of ["Path=/", "HttpOnly", "Secure", "SameSite=Strict", "Max-Age=86400"])
			expect(set).toContain(attribute)
		// Not with an answer that went wrong behind the door.
		const teapot = await workshop.ask("/user005/teapot", { as: workshop.as("user005") })
		expect({ status: teapot.status, cookie: teapot.headers["set-cookie"] }).toEqual({ status: 418 })
		const cookie = cookieOf(headers)
		const second = await workshop.ask("/user005/api/prompt", {
			headers: { cookie: `theme=dark; ${cookie}; size=2` },
		})
		expect(second.status).toBe(200)
		expect(second.headers["set-cookie"]).toBeUndefined()
		expect(second.seen?.headers.cookie).toBe("theme=dark; size=2")
		const basic = await workshop.ask("/user005/", { as: workshop.as("user005") })
		for (const name of ["authorization", "x-comfyume-user", "x-comfyume-role", "x-comfyume-proxy"])
			expect(basic.seen?.headers).not.toHaveProperty(name)
	})

	test("the queue manager hears who it is, whatever the client says", async () => {
		const forged = {
			"x-comfyume-user": "user001",
			"x-comfyume-role": "admin",
			"x-comfyume-proxy": proxySecret,
			"x-real-ip": "203.0.113.66",
			"x-comfyume-door": "any",
		}
		const { seen } = await workshop.ask("/api/jobs?limit=1", { as: workshop.as("user007"), headers: forged })
		expect(seen).toMatchObject({ server: "queue-manager", path: "/api/jobs?limit=1" })
		expect(seen?.headers).toMatchObject({
			"x-comfyume-user": "user007",
			"x-comfyume-role": "user",
			"x-comfyume-proxy": proxySecret,
			"x-real-ip": "127.0.0.1",
		})
		const admin = await workshop.ask("/api/jobs", { as: workshop.as("admin"), headers: forged })
		expect(admin.seen?.headers).toMatchObject({ "x-comfyume-user": "admin", "x-comfyume-role": "admin" })
		expect((await workshop.ask("/api/jobs", { headers: forged })).status).toBe(401)
		const atFrontend = await workshop.ask("/user007/", { as: workshop.as("user007"), headers: forged })
		for (const name of ["x-comfyume-user", "x-comfyume-role", "x-comfyume-proxy"])
			expect(atFrontend.seen?.headers).not.toHaveProperty(name)
	})

	test("the admin opens the admin's page, gets no session, and opens no user's door", async () => {
		const page = await workshop.ask("/admin/api/system?x=1", { as: workshop.as("admin") })
		expect(page.seen).toMatchObject({ server: "admin", path: "/api/system?x=1" })
		expect(page.headers["set-cookie"]).toBeUndefined()
		expect((await workshop.ask("/user001/", { as: workshop.as("admin") })).status).toBe(403)
	})

	test("WebSockets echo through both doors, with a session, and not without", async () => {
		const cookie = await signIn("user009")
		expect(await workshop.echo("/user009/ws?clientId=1", { cookie })).toBe("user009 /ws?clientId=1 hello")
		expect(await workshop.echo("/ws?after=3", { cookie })).toBe("queue-manager /ws?after=3 hello")
		expect(await workshop.echo("/user009/ws", {})).toBe("no WebSocket: 401")
		expect(await workshop.echo("/user010/ws", { cookie })).toBe("no WebSocket: 403")
	})

	test("the first page sends each to the own door", async () => {
		const user = await workshop.ask("/", { as: workshop.as("user012") })
		expect({ status: user.status, to: user.headers.location }).toEqual({ status: 302, to: "/user012/" })
		expect((await workshop.ask("/", { as: workshop.as("admin") })).headers.location).toBe("/admin/")
	})

	test("signing out forgets the session and asks for another password", async () => {
		const cookie = await signIn("user013")
		const out = await workshop.ask("/sign-out", { headers: { cookie } })
		expect(out.status).toBe(401)
		expect(out.headers["set-cookie"]?.[0]).toContain("Max-Age=0")
		const as = workshop.as("user014")
		expect((await workshop.ask("/sign-out", { as })).headers.location).toBe("/user014/")
	})

	test("every answer carries the security headers, refusals too", async () => {
		const as = workshop.as("user001")
		const asked = [
			"/health",
			"/health/ping",
			"/user001/",
			"/user002/",
			"/api/jobs",
			"/nowhere",
			"/user001",
			"/outputs/user001/",
			"/favicon.ico",
			"/",
			"/user001/teapot",
		]
		for (const path of asked) {
			const { headers } = await workshop.ask(path, { as })
			expect({ path, ...headers }).toMatchObject({
				path,
				"x-content-type-options": "nosniff",
				"x-frame-options": "SAMEORIGIN",
				"referrer-policy": "same-origin",
				"strict-transport-security": "max-age=31536000",
			})
		}
		expect((await workshop.ask("/nowhere")).headers).toHaveProperty("strict-transport-security")
	})

	test("an upload below the limit goes through whole, one above is refused", async () => {
		const as = workshop.as("user001")
		const below = Buffer.alloc(9 * 1024 * 1024, "x")
		const { seen } = await workshop.ask("/user001/upload/image", { method: "POST", as, body: below })
		expect(seen?.bytes).toBe(below.length)
		const above = Buffer.alloc(11 * 1024 * 1024, "x")
		const refused = await workshop.ask("/user001/upload/image", { method: "POST", as, body: above }).then(
			({ status }) => status,
			(error: NodeJS.ErrnoException) => error.code,
		)
		// nginx answers and closes while the client still sends: either is seen.
		expect([413, "EPIPE", "ECONNRESET"]).toContain(refused)
	})

	test("results are shown to their user only, no link leads out, and none of them runs", async () => {
		for (const name of ["user001", "user002"]) mkdirSync(join(workshop.outputs, name))
		writeFileSync(join(workshop.outputs, "user002/theirs.png"), "secret picture")
		writeFileSync(join(workshop.outputs, "user001/mine #1.html"), "<script>1</script>")
		symlinkSync("../user002/theirs.png", join(workshop.outputs, "user001/link.png"))
		symlinkSync("../user002", join(workshop.outputs, "user001/directory"))
		const as = workshop.as("user001")
		expect((await workshop.ask("/outputs/user001/", { as })).text).toContain("mine%20%231.html")
		const mine = await workshop.ask("/outputs/user001/mine%20%231.html", { as })
		expect(mine.text).toBe("<script>1</script>")
		expect(mine.headers["content-security-policy"]).toContain("sandbox")
		for (const path of [
			"link.png",
			"directory/theirs.png",
			"../user002/theirs.png",
			"%2e%2e/user002/theirs.png",
		]) {
			const { status, text } = await workshop.ask(`/outputs/user001/${path}`, { as })
			expect({ path, refused: status >= 400, leaked: text.includes("secret picture") }).toEqual({
				path,
				refused: true,
				leaked: false,
			})
		}
	})

	test("plain http answers challenges and health, and sends everything else to https", async () => {
		writeFileSync(workshop.path("acme/.well-known/acme-challenge/token"), "proof")
		const plain = (path: string, host = domain) =>
			new Promise<{ status: number | undefined; location: string | undefined; text: string }>(
				(resolve, reject) => {
					plainRequest(
						{ host: "127.0.0.1", port: workshop.ports.http, path, headers: { host }, agent: false },
						(response) => {
							let text = ""
							response.on("data", (chunk) => {
								text += chunk
							})
							response.on("end", () =>
								resolve({ status: response.statusCode, location: response.headers.location, text }),
							)
						},
					)
						.on("error", reject)
						.end()
				},
			)
		expect(await plain("/.well-known/acme-challenge/token")).toMatchObject({ status: 200, text: "proof" })
		expect(await plain("/user001/a%2Fb?x=1")).toMatchObject({
			status: 301,
			location: `https://${domain}:${workshop.ports.https}/user001/a%2Fb?x=1`,
		})
		expect(await plain("/health/ping", "127.0.0.1")).toMatchObject({ status: 200, text: "healthy\n" })
		expect((await plain("/user001/", "somebody.example.test")).status).toBe(421)
	})

	test("a name that is not ours gets no certificate", async () => {
		await expect(workshop.ask("/", { host: "somebody.example.test" })).rejects.toThrow(
			/unrecognized name|alert/,
		)
	})

	test("too many wrong passwords are turned away, and others at the same address are not", async () => {
		const statuses: number[] = []
		for (let time = 0; time < 12; time++)
			statuses.push((await workshop.ask("/user015/", { as: `user015:wrong-${time}` })).status)
		expect(statuses.slice(0, 10)).toEqual(Array.from({ length: 10 }, () => 401))
		expect(statuses.slice(10)).toEqual([429, 429])
		expect((await workshop.ask("/user016/", { as: workshop.as("user016") })).status).toBe(200)
	})

	test("a changed password ends the sessions that began with the old one, within a second", async () => {
		const cookie = await signIn("user018")
		const kept = await signIn("user019")
		const before = workshop.passwords
		await workshop.writePasswords(new Map([...before, ["user018", "another-password"]]))
		await poll(async () => (await workshop.ask("/user018/", { headers: { cookie } })).status === 401, {
			what: "the old session is refused",
			deadlineMs: 5000,
		})
		expect((await workshop.ask("/user018/", { as: "user018:another-password" })).status).toBe(200)
		// The other's hash was made anew as well: a session belongs to one hash.
		expect((await workshop.ask("/user019/", { headers: { cookie: kept } })).status).toBe(401)
		await workshop.writePasswords(before)
	})

	test("nobody comes in while the gate is down, and all do again once it is back", async () => {
		const cookie = await signIn("user020")
		await workshop.stopGate()
		expect((await workshop.ask("/user020/", { headers: { cookie } })).status).toBe(500)
		expect((await workshop.ask("/api/jobs", { as: workshop.as("user020") })).status).toBe(500)
		expect((await workshop.ask("/health/ping")).status).toBe(200)
		await workshop.startGate()
		expect((await workshop.ask("/user020/", { headers: { cookie } })).status).toBe(200)
	})

	test("an emptied password file opens no door", async () => {
		const cookie = await signIn("user002")
		writeFileSync(workshop.path("htpasswd"), "")
		await poll(async () => (await workshop.ask("/user002/", { headers: { cookie } })).status === 401, {
			what: "the door is shut",
			deadlineMs: 5000,
		})
		expect((await workshop.ask("/user002/", { as: workshop.as("user002") })).status).toBe(401)
		await workshop.writePasswords(workshop.passwords)
	})
})
