// Limits hold under load: large bodies, slow clients, clients that don't read, and the bundle that goes into the image.
import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { mkdtemp, rm } from "node:fs/promises"
import { connect, type Socket } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import { buildQueueManager } from "../../../scripts/build.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import {
	clientOf,
	openEvents,
	startQueueManager,
	type TestQueueManager,
} from "../../support/queue-manager.ts"
import { startTestRedis, type TestRedis } from "../../support/redis.ts"

describeWith("redis", "under load", () => {
	let redis: TestRedis
	let manager: TestQueueManager

	beforeAll(async () => {
		redis = await startTestRedis()
		manager = await startQueueManager({ REDIS_HOST: redis.socket, MAX_QUEUE_DEPTH: "0" })
	})
	afterAll(async () => {
		await manager?.[Symbol.asyncDispose]()
		await redis?.[Symbol.asyncDispose]()
	})

	test("fifty workflows of 10 MB at once are all taken, and it lives on", async () => {
		const ask = clientOf(manager.url)
		const body = Buffer.from(JSON.stringify({ user_id: "heavy", workflow: { x: "y".repeat(10_000_000) } }))
		const answers = await Promise.all(Array.from({ length: 50 }, () => ask("POST", "/jobs", body)))
		expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([201]))
		expect((await ask("GET", "/health")).body).toMatchObject({ status: "healthy", queue_depth: 50 })
	})

	test("readers of a 45 MB result have it byte for byte, and only so many of them at once", async () => {
		await using own = await startQueueManager({ REDIS_HOST: redis.socket, MAX_QUEUE_DEPTH: "0" })
		const ask = clientOf(own.url)
		const { id } = (await ask("POST", "/jobs", { user_id: "heavy", workflow: { a: 1 } })).body
		await ask("GET", "/workers/next-job?worker_id=w")
		// A number as no program here would write it shows that nobody rewrote it.
		const result = `{"n": 1.0e10, "x": "${"é".repeat(22_500_000)}"}`
		expect((await ask("POST", `/workers/complete-job?job_id=${id}`, result)).status).toBe(200)
		const { text } = await ask("GET", `/jobs/${id}`)
		expect(text.endsWith(`,"result":${result}}`)).toBe(true)
		const digest = createHash("sha256").update(text).digest("hex")
		const read = async () => {
			const answer = await fetch(`${own.url}/jobs/${id}`)
			const hash = createHash("sha256")
			for await (const chunk of answer.body ?? []) hash.update(chunk)
			return [answer.status, hash.digest("hex")]
		}
		expect(await Promise.all([read(), read(), read()])).toEqual(
			Array.from({ length: 3 }, () => [200, digest]),
		)
		// Those that take their time have so much at once; the others wait until one of them is done.
		const { hostname, port } = new URL(own.url)
		const begun = new Set<Socket>()
		const slow = Array.from({ length: 20 }, () => {
			const socket = connect(Number(port), hostname)
			socket.on("error", () => undefined)
			socket.once("data", () => {
				begun.add(socket)
				socket.pause()
			})
			socket.write(`GET /jobs/${id} HTTP/1.1\r\nhost: x\r\n\r\n`)
			return socket
		})
		await poll(() => begun.size >= 5, { what: "the first five are served", deadlineMs: 20_000 })
		for (let time = 0; time < 30; time++) expect((await ask("GET", "/health")).status).toBe(200)
		expect(begun.size).toBe(5)
		for (const socket of begun) socket.destroy()
		await poll(() => begun.size === 10, { what: "the next five are served", deadlineMs: 20_000 })
		for (const socket of slow) socket.destroy()
		// Whoever only asks for its state doesn't make Redis send it.
		const listed = (await ask("GET", "/jobs?user_id=heavy&status=completed")).body
		expect(listed).toMatchObject([{ id, result: null }])
		expect((await ask("DELETE", `/jobs/${id}`)).status).toBe(400)
	})

	test("a hundred clients that send a byte now and then hold up nobody", async () => {
		const { hostname, port } = new URL(manager.url)
		const slow = Array.from({ length: 100 }, () => {
			const socket = connect(Number(port), hostname)
			socket.on("error", () => undefined)
			socket.write("POST /jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
			return socket
		})
		const startedAt = performance.now()
		const { status } = await clientOf(manager.url)("POST", "/jobs", { user_id: "quick", workflow: { a: 1 } })
		expect(status).toBe(201)
		expect(performance.now() - startedAt).toBeLessThan(2000)
		for (const socket of slow) socket.destroy()
	})

	test("an event client that doesn't read is let go, and others hear everything", async () => {
		const ask = clientOf(manager.url)
		const { hostname, port } = new URL(manager.url)
		const deaf = connect(Number(port), hostname)
		let isGone = false
		deaf.on("error", () => undefined)
		deaf.on("close", () => {
			isGone = true
		})
		deaf.write(
			"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n" +
				"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		)
		deaf.pause()
		const clients = async () => Number(/clients (\d+)/.exec((await ask("GET", "/metrics")).text)?.[1])
		await poll(async () => (await clients()) === 1, { what: "it is connected", deadlineMs: 5000 })
		const listener = await openEvents(manager.url)
		// Errors of 10 000 letters fill what lies between them.
		let failed = 0
		while ((await clients()) > 1 && failed < 2000) {
			const { id } = (await ask("POST", "/jobs", { user_id: "x", workflow: { a: 1 }, priority: 0 })).body
			await ask("GET", `/workers/next-job?worker_id=w${failed}`)
			await ask("POST", `/workers/fail-job?job_id=${id}`, { error: "e".repeat(10_000) })
			failed += 1
		}
		expect(await clients()).toBe(1)
		await poll(() => listener.received.filter(({ data }) => data.status === "failed").length === failed, {
			what: "the other hears all",
			deadlineMs: 5000,
		})
		deaf.resume()
		await poll(() => isGone, { what: "the connection is closed", deadlineMs: 5000 })
		await listener.close()
	})
})

test("the bundle starts with plain Node, without node_modules, and says what is wrong with its environment", async () => {
	const directory = await mkdtemp(join(tmpdir(), "comfyume-bundle-"))
	await buildQueueManager(directory)
	const start = (environment: Record<string, string>) => {
		const child = spawn(process.execPath, [join(directory, "main.js")], {
			stdio: ["ignore", "pipe", "pipe"],
			cwd: directory,
			env: environment,
		})
		let output = ""
		for (const stream of [child.stdout, child.stderr]) {
			stream.on("data", (chunk) => {
				output += chunk
			})
		}
		return { child, output: () => output }
	}
	const wrong = start({ AUTH_MODE: "ajar" })
	expect(await new Promise((resolve) => wrong.child.once("exit", resolve))).toBe(2)
	expect(wrong.output()).toContain("AUTH_MODE")
	const right = start({
		AUTH_MODE: "open",
		PORT: "0",
		HOST: "127.0.0.1",
		REDIS_HOST: join(directory, "none"),
	})
	const url = await poll(() => /"url":"([^"]+)"/.exec(right.output())?.[1], {
		what: "it listens",
		deadlineMs: 10_000,
	})
	const { body } = await clientOf(url)("GET", "/health")
	expect([body.status, body.version]).toEqual(["unhealthy", expect.stringMatching(/^\d+\.\d+\.\d+$/)])
	right.child.kill("SIGTERM")
	expect(await new Promise((resolve) => right.child.once("exit", resolve))).toBe(0)
	await rm(directory, { recursive: true })
})
