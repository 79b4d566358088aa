// Who may do what with AUTH_MODE=proxy: headers count only with the proxy's secret, tokens only whole and of this
// generation, and nobody reaches into another user's jobs.
import { request } from "node:http"
import { connect } from "node:net"
import { afterAll, beforeAll, expect, test } from "vitest"
import { serviceToken } from "../../../src/lib/formats/service-token.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import {
	type Ask,
	clientOf,
	openEvents,
	startQueueManager,
	type TestQueueManager,
} from "../../support/queue-manager.ts"
import { startTestRedis, type TestRedis } from "../../support/redis.ts"

const proxySecret = "made-up-proxy-secret-0123456789abcdef"
const tokenKey = "made-up-token-key-0123456789abcdefghij"
const token = (role: "admin" | "user" | "frontend" | "worker", name: string, generation = 3) => ({
	authorization: `Bearer ${serviceToken(new Secret(tokenKey), role, name, generation)}`,
})
const proxied = (user: string, role = "user") => ({
	"x-comfyume-proxy": proxySecret,
	"x-comfyume-user": user,
	"x-comfyume-role": role,
})
/** The status of a request whose every header is ours to choose, `host` too. */
const statusOf = (url: string, method: string, path: string, headers: Record<string, string>, body = "") =>
	new Promise<number>((resolve, reject) => {
		const asked = request(`${url}${path}`, { method, headers, agent: false })
		asked.on("response", (answer) => {
			answer.resume()
			resolve(answer.statusCode ?? 0)
		})
		asked.on("upgrade", (_answer, socket) => {
			socket.destroy()
			resolve(101)
		})
		asked.on("error", reject)
		asked.end(body)
	})
const job = (user_id: string, over = {}) => ({ user_id, workflow: { a: 1 }, ...over })

describeWith("redis", "access", () => {
	let redis: TestRedis
	let manager: TestQueueManager
	let ask: Ask

	beforeAll(async () => {
		redis = await startTestRedis()
		manager = await startQueueManager({
			REDIS_HOST: redis.socket,
			AUTH_MODE: "proxy",
			PROXY_SECRET: proxySecret,
			TOKEN_KEY: tokenKey,
			TOKEN_GENERATION: "3",
			CORS_ORIGINS: "https://friend.example.test, *",
		})
		ask = clientOf(manager.url)
	})
	afterAll(async () => {
		await manager?.[Symbol.asyncDispose]()
		await redis?.[Symbol.asyncDispose]()
	})

	const bearer = serviceToken(new Secret(tokenKey), "user", "ann", 3)
	const forged: [string, Record<string, string>][] = [
		["nothing", {}],
		["a user's header without the proxy's secret", { "x-comfyume-user": "ann", "x-comfyume-role": "admin" }],
		["the secret wrong", { ...proxied("ann"), "x-comfyume-proxy": `${proxySecret}x` }],
		["the secret empty", { ...proxied("ann"), "x-comfyume-proxy": "" }],
		[
			"a wrong secret beside a good token",
			{ ...proxied("ann"), "x-comfyume-proxy": "x", ...token("user", "ann") },
		],
		["the secret without a user", { "x-comfyume-proxy": proxySecret }],
		["the secret with a role that there is not", proxied("ann", "root")],
		["a token with its user changed", { authorization: `Bearer ${bearer.replace("ann", "bob")}` }],
		["a token with its role changed", { authorization: `Bearer ${bearer.replace("user", "admin")}` }],
		["a token with its generation raised", { authorization: `Bearer ${bearer.replace(":3:", ":4:")}` }],
		["a token cut short", { authorization: `Bearer ${bearer.slice(0, -1)}` }],
		["a token with its end gone", { authorization: "Bearer user:ann:3:" }],
		["a token of an older generation", token("user", "ann", 2)],
		[
			"a token of another key",
			{ authorization: `Bearer ${serviceToken(new Secret("x".repeat(40)), "user", "ann", 3)}` },
		],
		["a token as a password", { authorization: `Basic ${Buffer.from(bearer).toString("base64")}` }],
	]
	test.each(forged)("%s is not let in", async (_what, headers) => {
		for (const [method, path, body] of [
			["POST", "/api/jobs", job("ann")],
			["GET", "/api/jobs", undefined],
			["GET", "/workers/next-job?worker_id=w", undefined],
			["POST", "/admin/timeout", { max_wait: 100 }],
			["PUT", "/queue/mode", { mode: "fifo" }],
		] as const) {
			expect([path, (await ask(method, path, body, headers)).status]).toEqual([path, 401])
		}
		await expect(openEvents(manager.url, "/ws", headers)).rejects.toThrow("refused")
	})

	test("a user submits, sees and cancels their own jobs, by the proxy as by their frontend's token", async () => {
		for (const headers of [proxied("ann"), token("frontend", "ann"), token("user", "ann")]) {
			const submitted = await ask("POST", "/api/jobs", job("ann"), headers)
			expect(submitted.status).toBe(201)
			const { id } = submitted.body
			expect((await ask("GET", `/jobs/${id}`, undefined, headers)).status).toBe(200)
			expect((await ask("PATCH", `/jobs/${id}/priority`, "3", headers)).status).toBe(200)
			expect((await ask("DELETE", `/jobs/${id}`, undefined, headers)).status).toBe(204)
		}
	})

	test("a user can't submit for, see, list, move or cancel another's jobs", async () => {
		const { id } = (await ask("POST", "/jobs", job("bob"), proxied("bob"))).body
		for (const headers of [proxied("ann"), token("frontend", "ann")]) {
			for (const [method, path, body] of [
				["POST", "/jobs", job("bob")],
				["POST", "/queue/submit", job("bob")],
				["GET", `/jobs/${id}`, undefined],
				["GET", "/jobs?user_id=bob", undefined],
				["DELETE", `/jobs/${id}`, undefined],
				["PATCH", `/jobs/${id}/priority`, "1"],
			] as const) {
				const answer = await ask(method, path, body, headers)
				expect([method, path, answer.status]).toEqual([method, path, 403])
				expect(answer.text).not.toContain(id)
			}
			const listed = (await ask("GET", "/jobs", undefined, headers)).body
			expect(listed.every((one: { user_id: string }) => one.user_id === "ann")).toBe(true)
		}
		expect((await ask("GET", `/jobs/${id}`, undefined, proxied("bob"))).body.status).toBe("pending")
	})

	test("what instructors may, users and workers may not", async () => {
		const { id } = (await ask("POST", "/jobs", job("ann"), proxied("ann"))).body
		const kept: [string, string, unknown][] = [
			["GET", "/admin/timeout", undefined],
			["POST", "/admin/timeout", { max_wait: 600 }],
			["PUT", "/queue/mode", { mode: "fifo" }],
			["PUT", "/queue/paused", { paused: false }],
			["PUT", "/queue/caps", { user_id: "*", value: null }],
			["PUT", "/queue/weights", { user_id: "ann", value: null }],
			["PUT", "/banner", { text: "" }],
			["GET", "/dead", undefined],
			["GET", "/client-log", undefined],
			["GET", "/workers", undefined],
			["GET", "/endpoint", undefined],
			["PUT", "/endpoint", { endpoint: "default" }],
			["POST", `/jobs/${id}/retry`, undefined],
		]
		for (const [method, path, body] of kept) {
			for (const headers of [proxied("ann"), token("frontend", "ann"), token("worker", "gpu-1")]) {
				expect([path, (await ask(method, path, body, headers)).status]).toEqual([path, 403])
			}
			for (const headers of [proxied("teacher", "admin"), token("admin", "teacher")]) {
				// 404: in local mode there is no endpoint.
				expect(path === "/endpoint" ? [404] : [200, 400]).toContain(
					(await ask(method, path, body, headers)).status,
				)
			}
		}
	})

	test("priority 0 is for instructors, at the submit and later", async () => {
		expect((await ask("POST", "/jobs", job("ann", { priority: 0 }), proxied("ann"))).status).toBe(403)
		const { id } = (await ask("POST", "/jobs", job("ann"), proxied("ann"))).body
		expect((await ask("PATCH", `/jobs/${id}/priority`, "0", proxied("ann"))).status).toBe(403)
		const admin = proxied("teacher", "admin")
		expect((await ask("PATCH", `/jobs/${id}/priority`, "0", admin)).status).toBe(200)
		expect((await ask("POST", "/jobs", job("ann", { priority: 0 }), admin)).status).toBe(201)
	})

	test("a worker claims and finishes, and nothing else; a user does neither", async () => {
		const gpu = token("worker", "gpu-1")
		const { job: claimed } = (await ask("GET", "/workers/next-job?worker_id=gpu-1", undefined, gpu)).body
		expect(claimed.id).toEqual(expect.any(String))
		for (const [method, path, body] of [
			["POST", "/jobs", job("ann")],
			["GET", "/jobs", undefined],
			["GET", `/jobs/${claimed.id}`, undefined],
			["DELETE", `/jobs/${claimed.id}`, undefined],
		] as const) {
			expect((await ask(method, path, body, gpu)).status).toBe(403)
		}
		await expect(openEvents(manager.url, "/ws", gpu)).rejects.toThrow("refused")
		for (const headers of [proxied("ann"), token("admin", "teacher")]) {
			for (const path of [
				`/workers/complete-job?job_id=${claimed.id}`,
				`/workers/fail-job?job_id=${claimed.id}`,
			]) {
				expect((await ask("POST", path, { result: {}, error: "x" }, headers)).status).toBe(403)
			}
			expect((await ask("GET", "/workers/next-job?worker_id=x", undefined, headers)).status).toBe(403)
		}
		// Another worker's token doesn't finish this one's job either.
		const path = `/workers/complete-job?job_id=${claimed.id}`
		expect((await ask("POST", path, { result: {} }, token("worker", "gpu-2"))).status).toBe(409)
		expect((await ask("POST", path, { result: {} }, gpu)).status).toBe(200)
	})

	test("a user's events are that user's; an instructor's are everybody's", async () => {
		const ann = await openEvents(manager.url, "/ws", proxied("ann"))
		const frontend = await openEvents(manager.url, "/ws?after=0", token("frontend", "ann"))
		const teacher = await openEvents(manager.url, "/ws", proxied("teacher", "admin"))
		await ask("POST", "/jobs", job("bob"), proxied("bob"))
		const { id } = (await ask("POST", "/jobs", job("ann"), proxied("ann"))).body
		for (const client of [ann, frontend, teacher])
			await client.next("ann's job", ({ data }) => data.id === id)
		for (const { received } of [ann, frontend]) {
			// What is no job's, as the banner, is told to all.
			const jobs = received.filter(({ type }) => type.startsWith("job_"))
			expect(new Set(jobs.map(({ data }) => data.user_id))).toEqual(new Set(["ann"]))
		}
		expect(teacher.received.some(({ data }) => data.user_id === "bob")).toBe(true)
		await expect(openEvents(manager.url, "/ws?user_id=bob", proxied("ann"))).rejects.toThrow("refused")
		for (const client of [ann, frontend, teacher]) await client.close()
	})

	const pages: [string, Record<string, string>, boolean][] = [
		["no browser", {}, true],
		["a page of its own", { origin: "https://workshop.example.test", "sec-fetch-site": "same-origin" }, true],
		["a page that CORS_ORIGINS names", { origin: "https://friend.example.test" }, true],
		[
			"that page, on another site",
			{ origin: "https://friend.example.test", "sec-fetch-site": "cross-site" },
			true,
		],
		["a stranger's page", { origin: "https://stranger.example.test", "sec-fetch-site": "cross-site" }, false],
		["a page of a neighbour's name", { origin: "https://x.workshop.example.test" }, false],
		["a page of its name in clear text", { origin: "http://workshop.example.test" }, false],
		["a page without an origin", { origin: "null" }, false],
		["a page that hides its origin", { "sec-fetch-site": "cross-site" }, false],
		[
			"a page at a name that begins like it",
			{ origin: "https://workshop.example.test.stranger.test" },
			false,
		],
	]
	test.each(pages)(
		"a browser that nginx let in may change things and listen for %s: as it should",
		async (_, shown, may) => {
			const behind = {
				...proxied("ann"),
				...shown,
				host: "workshop.example.test",
				"x-forwarded-proto": "https",
			}
			const { id } = (await ask("POST", "/jobs", job("ann"), proxied("ann"))).body
			// Reading needs no more than before: whether the page may see it is for CORS to say.
			expect(await statusOf(manager.url, "GET", "/api/jobs", behind)).toBe(200)
			for (const [method, path, good] of [
				["POST", "/api/jobs", 201],
				["PATCH", `/jobs/${id}/priority?priority=3`, 200],
				["DELETE", `/api/jobs/${id}`, 204],
			] as const) {
				const body = method === "POST" ? JSON.stringify(job("ann")) : ""
				expect([method, await statusOf(manager.url, method, path, behind, body)]).toEqual([
					method,
					may ? good : 403,
				])
			}
			const upgrade = {
				connection: "Upgrade",
				upgrade: "websocket",
				"sec-websocket-version": "13",
				"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
			}
			expect(await statusOf(manager.url, "GET", "/api/ws", { ...behind, ...upgrade })).toBe(may ? 101 : 403)
			// Who shows a token was not talked into anything.
			const bare = { ...shown, host: "workshop.example.test", ...token("user", "ann") }
			expect(await statusOf(manager.url, "POST", "/jobs", bare, JSON.stringify(job("ann")))).toBe(201)
		},
	)

	test("one user fills their own share of the room for bodies, and nobody else's", async () => {
		const { hostname, port } = new URL(manager.url)
		const head = (user: string) =>
			`POST /jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n${Object.entries(proxied(user))
				.map(([name, value]) => `${name}: ${value}\r\n`)
				.join("")}\r\n{`
		const answers: string[] = []
		const slow = Array.from({ length: 20 }, () => {
			const socket = connect(Number(port), hostname)
			socket.on("error", () => undefined)
			socket.on("data", (chunk) => void answers.push(String(chunk)))
			socket.write(head("ann"))
			return socket
		})
		await poll(() => answers.filter((one) => one.startsWith("HTTP/1.1 429")).length >= 7, {
			what: "seven too many are refused",
			deadlineMs: 20_000,
		})
		const large = job("bob", { workflow: { x: "y".repeat(9_000_000) } })
		expect((await ask("POST", "/jobs", large, proxied("bob"))).status).toBe(201)
		expect((await ask("POST", "/jobs", { ...large, user_id: "ann" }, proxied("ann"))).status).toBe(429)
		for (const socket of slow) socket.destroy()
		const again = async () =>
			(await ask("POST", "/jobs", { ...large, user_id: "ann" }, proxied("ann"))).status === 201
		await poll(again, { what: "there is room again", deadlineMs: 20_000 })
	})

	test("health and counters need nobody in particular, and secrets are in no answer and no log", async () => {
		for (const path of ["/health", "/queue/status", "/metrics", "/api/openapi.json"]) {
			const answer = await ask("GET", path)
			expect([path, answer.status]).toEqual([path, 200])
			expect(answer.text).not.toContain(proxySecret)
		}
		expect(manager.log()).not.toContain(proxySecret)
		expect(manager.log()).not.toContain(tokenKey)
	})
})

describeWith("redis", "a queue of six places", () => {
	test("lets one user have half of them, others the rest, and instructors as many as there are", async () => {
		await using redis = await startTestRedis()
		const keys = { AUTH_MODE: "proxy", PROXY_SECRET: proxySecret, TOKEN_KEY: tokenKey }
		await using manager = await startQueueManager({ ...keys, REDIS_HOST: redis.socket, MAX_QUEUE_DEPTH: "6" })
		const ask = clientOf(manager.url)
		const submit = async (user: string, as = proxied(user)) => {
			const { status, body } = await ask("POST", "/jobs", job(user), as)
			return status === 201 ? body.id : [status, body.detail]
		}
		const first = await submit("ann")
		for (let n = 0; n < 2; n++) await submit("ann")
		const crowded = [429, "Too many of your jobs are waiting (max user depth: 3)"]
		expect(await submit("ann")).toEqual(crowded)
		expect(await submit("ann", token("frontend", "ann") as never)).toEqual(crowded)
		expect(await submit("bob")).toEqual(expect.any(String))
		await ask("DELETE", `/jobs/${first}`, undefined, proxied("ann"))
		expect(await submit("ann")).toEqual(expect.any(String))
		const teacher = proxied("teacher", "admin")
		for (let n = 0; n < 2; n++) expect(await submit("ann", teacher)).toEqual(expect.any(String))
		expect(await submit("cem")).toEqual([429, "Queue is full (max depth: 6)"])
	})
})

describeWith("redis", "workers by their address", () => {
	test("are let in from the listed addresses only, as workers only", async () => {
		await using redis = await startTestRedis()
		const keys = {
			AUTH_MODE: "proxy",
			PROXY_SECRET: proxySecret,
			TOKEN_KEY: tokenKey,
			REDIS_HOST: redis.socket,
		}
		await using listed = await startQueueManager({ ...keys, WORKER_ADDRESSES: "203.0.113.7, 127.0.0.1" })
		const ask = clientOf(listed.url)
		expect((await ask("GET", "/workers/next-job?worker_id=w")).status).toBe(200)
		expect((await ask("GET", "/jobs")).status).toBe(403)
		await using strict = await startQueueManager({ ...keys, WORKER_ADDRESSES: "203.0.113.7" })
		const forwarded = { "x-forwarded-for": "203.0.113.7", "x-real-ip": "203.0.113.7" }
		const answer = await clientOf(strict.url)("GET", "/workers/next-job?worker_id=w", undefined, forwarded)
		expect(answer.status).toBe(401)
	})
})
