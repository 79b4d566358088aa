// Redis asked directly: a real one, and what isn't one.
import { type ChildProcess, spawn } from "node:child_process"
import { createServer, type Server, type Socket } from "node:net"
import { afterAll, beforeAll, expect, test } from "vitest"
import { Secret } from "../../../src/lib/secret.ts"
import { whyNoPong } from "../../../src/lib/stack/redis-ping.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import { freePort } from "../../support/sshd.ts"

describeWith("redis", "Redis, asked", () => {
	let redis: ChildProcess
	let redisPort = 0
	let silent: Server
	const sockets = new Set<Socket>()
	const password = new Secret("made-up $ password")
	const place = () => ({ host: "127.0.0.1", port: redisPort })
	const portOf = (server: Server) => {
		const address = server.address()
		return typeof address === "object" && address !== null ? address.port : 0
	}
	beforeAll(async () => {
		redisPort = await freePort()
		const settings = `port ${redisPort}\nbind 127.0.0.1\nsave ""\nrequirepass "${password.reveal()}"\n`
		redis = spawn("redis-server", ["-"], { stdio: ["pipe", "ignore", "ignore"] })
		redis.stdin?.end(settings)
		await poll(async () => !/ECONNREFUSED/.test((await whyNoPong(place(), password)) ?? ""), {
			what: "Redis answers",
			deadlineMs: 30_000,
		})
		silent = createServer((socket) => void sockets.add(socket))
		await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve))
	})
	afterAll(async () => {
		for (const socket of sockets) socket.destroy()
		silent?.close()
		redis?.kill("SIGKILL")
	})

	test("says PONG to who knows its password, and why not to who doesn't", async () => {
		expect(await whyNoPong(place(), password)).toBeUndefined()
		const wrong = await whyNoPong(place(), new Secret("made-up and wrong"))
		expect(wrong).toMatch(/^WRONGPASS /)
		expect(wrong).not.toContain("made-up")
	})

	test("a closed port, and one at which nobody speaks, are named within their time", async () => {
		expect(await whyNoPong({ host: "127.0.0.1", port: await freePort() }, password)).toMatch(/ECONNREFUSED/)
		const port = portOf(silent)
		expect(await whyNoPong({ host: "127.0.0.1", port }, password, 200)).toBe("no answer in time")
	})
})
