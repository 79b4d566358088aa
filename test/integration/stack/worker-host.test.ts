// A GPU host as its operator makes it: tokens from the app server, files from one command, backup and restore of them; and
// how it asks for the queue manager and Redis elsewhere.
import { spawn } from "node:child_process"
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { createServer } from "node:net"
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { readEnvFile } from "../../../src/lib/formats/env-file.ts"
import { Secret } from "../../../src/lib/secret.ts"
import type { Stack } from "../../../src/lib/stack/description.ts"
import { appServerSeenFrom, askQueueManager, pingRedis } from "../../../src/lib/stack/queue-health.ts"
import { createWorld, inventory, type Saved, type World } from "../../support/cli.ts"
import { poll } from "../../support/poll.ts"
import { startQueueManager } from "../../support/queue-manager.ts"
import { startTestRedis } from "../../support/redis.ts"
import { freePort } from "../../support/sshd.ts"
import { stackFor } from "../../support/stack.ts"

describe("a GPU host's files", () => {
	let world: World
	let empty: Saved
	beforeAll(async () => {
		world = await createWorld()
		for (const name of ["models", "outputs", "inputs"]) mkdirSync(world.path(name))
		world.configure(
			(text) =>
				`${text.replace(
					"    share:",
					"      - { name: gpu-1, role: worker, workers: 2, connection: directory, directory: ./gpu }\n    share:",
				)}    stack:
      users: 1
      vpnAddress: 100.100.0.1
      paths: { models: ${world.path("models")}, shareOutputs: ${world.path("share-outputs")}, outputs: ${world.path("outputs")}, inputs: ${world.path("inputs")} }
`,
		)
		empty = await world.save()
	})
	afterAll(() => world?.[Symbol.asyncDispose]())
	beforeEach(async () => {
		await empty.load()
		rmSync(world.path("gpu"), { recursive: true, force: true })
		// What every host has.
		const fail2ban = world.path("gpu/etc/fail2ban")
		mkdirSync(fail2ban, { recursive: true })
		copyFileSync(world.path("server/etc/fail2ban/fail2ban.conf"), `${fail2ban}/fail2ban.conf`)
	})

	// Each host's own directory of the stack, as it would be on its machine.
	const at = (host: "server" | "gpu", file = "") => world.path(host, "etc/comfyume/stack", file)
	const generate = async (host: "app-1" | "gpu-1", ...words: string[]) => {
		const directory = at(host === "app-1" ? "server" : "gpu")
		const spoken = ["generate-users", "--host", host, "--directory", directory, "--yes", ...words]
		const ended = await world.run(spoken)
		// Whatever it says, it says no token and no key.
		for (const file of [at("server", ".env"), at("gpu", ".env")])
			for (const { name, value } of existsSync(file) ? readEnvFile(readFileSync(file, "utf8")).entries : [])
				if (/TOKEN|KEY|SECRET|PASSWORD/.test(name)) expect(ended.stdout + ended.stderr).not.toContain(value)
		return ended
	}
	const carry = () => generate("gpu-1", "--credentials", at("server", "workers/gpu-1.env"))

	test("come from one command, with the tokens that the app server made; a second run needs and changes nothing", async () => {
		expect((await generate("app-1")).exitCode).toBe(0)
		expect(statSync(at("server", "workers/gpu-1.env")).mode & 0o777).toBe(0o600)
		const first = await carry()
		expect(first.exitCode, first.stderr).toBe(0)
		expect(first.stderr).toContain("2 workers (gpu-1-1, gpu-1-2)")
		expect(first.stdout).toContain("new token: WORKER_TOKEN_1\nnew token: WORKER_TOKEN_2\n")
		const before = inventory(at("gpu"))
		expect([...before.keys()].sort()).toEqual(["/.env", "/compose.worker.yaml", "/extra_model_paths.yaml"])
		expect(before.get("/.env")).toMatch(/^file 600 /)
		const second = await generate("gpu-1")
		expect({ exitCode: second.exitCode, stdout: second.stdout }).toEqual({ exitCode: 0, stdout: "" })
		expect(second.stderr).not.toContain("applied")
		expect(inventory(at("gpu"))).toEqual(before)
		const key = readEnvFile(readFileSync(at("server", ".env"), "utf8")).entries.find(
			({ name }) => name === "TOKEN_KEY",
		)
		for (const file of before.keys())
			expect(readFileSync(at("gpu", file), "utf8")).not.toContain(key?.value ?? "")
	})

	test("are not written without tokens, nor in a dry run, nor for another host's", async () => {
		await generate("app-1")
		const without = await generate("gpu-1")
		expect(without.exitCode).toBe(2)
		expect(without.stderr).toContain("has no WORKER_TOKEN_1")
		expect(without.stderr).toContain("workers/gpu-1.env")
		const dry = await generate("gpu-1", "--credentials", at("server", "workers/gpu-1.env"), "--dry-run")
		expect(dry.exitCode, dry.stderr).toBe(0)
		expect(dry.stdout).toContain("new: compose.worker.yaml")
		const other = world.path("other.env")
		const text = readFileSync(at("server", "workers/gpu-1.env"), "utf8").replaceAll(":gpu-1-", ":gpu-2-")
		writeFileSync(other, text, { mode: 0o600 })
		const foreign = await generate("gpu-1", "--credentials", other)
		expect(foreign.exitCode).toBe(2)
		expect(foreign.stderr).toContain("is the token of gpu-2-1")
		expect(existsSync(at("gpu"))).toBe(false)
	})

	test("hold no users: what is about users is refused, and so is the env file alone", async () => {
		for (const words of [
			["generate-users", "--add", "user009"],
			["generate-users", "--csv", world.path("sheet.csv")],
			["env", "render"],
		]) {
			const { exitCode, stderr } = await world.run([...words, "--host", "gpu-1", "--directory", at("gpu")])
			expect({ words, exitCode }).toEqual({ words, exitCode: 2 })
			expect(stderr).toContain("gpu-1 is a GPU worker")
		}
		expect(existsSync(at("gpu"))).toBe(false)
	})

	test("follow a new key: the app server's next run writes new tokens, and the host takes them", async () => {
		await generate("app-1")
		await carry()
		const old = readFileSync(at("gpu", ".env"), "utf8")
		const rotated = await world.run([
			...["env", "render", "--host", "app-1", "--directory", at("server"), "--rotate", "TOKEN_KEY", "--yes"],
		])
		expect(rotated.exitCode, rotated.stderr).toBe(0)
		expect(rotated.stderr).toContain("comfyume generate-users")
		await generate("app-1")
		const taken = await carry()
		expect(taken.stdout).toContain("new token: WORKER_TOKEN_1")
		expect(readFileSync(at("gpu", ".env"), "utf8")).not.toBe(old)
	})

	test("come back with a restore, each host's own, and nothing is to be brought then", async () => {
		await generate("app-1")
		await carry()
		for (const host of ["app-1", "gpu-1"]) {
			const ended = await world.run(["backup", "--only", "stack", "--host", host, "--json"])
			expect(ended.exitCode, ended.stdout).toBe(0)
		}
		// The app server's is the newer one.
		const later = await world.run([
			"generate-users",
			"--host",
			"app-1",
			"--directory",
			at("server"),
			"--add",
			"user005",
			"--yes",
		])
		expect(later.exitCode, later.stderr).toBe(0)
		await world.run(["backup", "--only", "stack", "--host", "app-1", "--json"])
		const before = inventory(at("gpu"))
		rmSync(world.path("gpu/etc/comfyume"), { recursive: true })
		const restored = await world.run(["restore", "--only", "stack", "--host", "gpu-1", "--json"])
		expect(restored.exitCode, restored.stdout).toBe(0)
		expect(inventory(at("gpu"))).toEqual(before)
		expect((await generate("gpu-1")).stderr).not.toContain("applied")
	})
})

describe("the app server, asked from elsewhere", () => {
	const password = new Secret("made-up-password-of-redis")
	const from = (role: Stack["role"], ports: { redis?: number; queueManager?: number }) => {
		const stack = stackFor(1)
		return {
			...stack,
			role,
			configuration: { ...stack.configuration, vpnAddress: "127.0.0.1" },
			services: {
				...stack.services,
				redis: { ...stack.services.redis, hostPort: ports.redis ?? 1 },
				queueManager: { ...stack.services.queueManager, hostPort: ports.queueManager ?? 1 },
			},
		}
	}
	const open: AsyncDisposable[] = []
	afterEach(async () => {
		for (const one of open.splice(0).reverse()) await one[Symbol.asyncDispose]()
	})

	/** A real Redis on a port; without a password where none is given. */
	async function redisOnPort(secret?: Secret): Promise<number> {
		const port = await freePort()
		const config = `port ${port}\nbind 127.0.0.1\nsave ""\n${secret === undefined ? "" : `requirepass ${secret.reveal()}\n`}`
		const server = spawn("redis-server", ["-"], { stdio: ["pipe", "ignore", "ignore"] })
		server.stdin.end(config)
		open.push({
			async [Symbol.asyncDispose]() {
				const ended = new Promise((resolve) => server.once("exit", resolve))
				server.kill("SIGKILL")
				await ended
			},
		})
		const answers = async () => {
			const asked = await pingRedis(from("worker", { redis: port }), secret)
			return !("why" in asked && /ECONNREFUSED/.test(asked.why))
		}
		await poll(answers, { what: "Redis answers", deadlineMs: 20_000 })
		return port
	}

	/** Takes connections and never says a word. */
	async function blackHole(): Promise<number> {
		const sockets = new Set<{ destroy(): void }>()
		const server = createServer((socket) => void sockets.add(socket))
		await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
		open.push({
			async [Symbol.asyncDispose]() {
				for (const socket of sockets) socket.destroy()
				await new Promise((resolve) => server.close(resolve))
			},
		})
		const address = server.address()
		return typeof address === "object" && address !== null ? address.port : 0
	}

	test("is looked for at home, and on a GPU host at its address in the VPN", () => {
		const { configuration } = stackFor(1, { vpnAddress: "100.100.0.1" })
		expect(appServerSeenFrom({ role: "app", configuration })).toBe("127.0.0.1")
		expect(appServerSeenFrom({ role: "worker", configuration })).toBe("100.100.0.1")
	})

	test("Redis says PONG to its password, refuses another, and is shut to who has none", async () => {
		const stack = from("worker", { redis: await redisOnPort(password) })
		expect(await pingRedis(stack, password)).toMatchObject({ answer: "pong" })
		const wrong = new Secret("another-made-up-password")
		const refused = await pingRedis(stack, wrong)
		expect(refused).toMatchObject({ why: expect.stringContaining("WRONGPASS") })
		expect(JSON.stringify(refused)).not.toContain(wrong.reveal())
		expect(await pingRedis(stack, undefined)).toMatchObject({ answer: "shut" })
	})

	test("a Redis without a password is no right answer, with one or without", async () => {
		const stack = from("worker", { redis: await redisOnPort() })
		expect(await pingRedis(stack, undefined)).toMatchObject({ why: "it lets in whoever asks" })
		expect(await pingRedis(stack, password)).toMatchObject({ why: expect.stringContaining("ERR AUTH") })
	})

	test("what doesn't answer is said as that: a closed port, and one that is silent, in time", async () => {
		const closed = await freePort()
		const signal = new AbortController().signal
		expect(await pingRedis(from("worker", { redis: closed }), password)).toMatchObject({
			why: expect.stringContaining("ECONNREFUSED"),
		})
		expect(await askQueueManager(from("worker", { queueManager: closed }), { signal })).toMatchObject({
			address: `http://127.0.0.1:${closed}/health`,
			why: expect.stringContaining("ECONNREFUSED"),
		})
		const silent = await blackHole()
		const before = performance.now()
		expect(await pingRedis(from("worker", { redis: silent }), password, 200)).toMatchObject({
			why: "no answer in time",
		})
		expect(
			await askQueueManager(from("worker", { queueManager: silent }), { signal, timeoutMs: 200 }),
		).toMatchObject({ why: expect.stringContaining("timeout") })
		expect(performance.now() - before).toBeLessThan(5000)
	})

	test("the real queue manager tells of its health, and of a Redis that it has lost", async () => {
		const redis = await startTestRedis()
		open.push(redis)
		const manager = await startQueueManager({ REDIS_HOST: redis.socket, INFERENCE_MODE: "redis" })
		open.push(manager)
		const stack = from("worker", { queueManager: Number(new URL(manager.url).port) })
		const signal = new AbortController().signal
		expect(await askQueueManager(stack, { signal })).toMatchObject({
			health: { status: "healthy", redis_connected: true, inference_mode: "redis" },
		})
		await redis.kill()
		const lost = await poll(
			async () => {
				const asked = await askQueueManager(stack, { signal })
				return "health" in asked && asked.health.status !== "healthy" ? asked : undefined
			},
			{ what: "the queue manager misses Redis", deadlineMs: 30_000 },
		)
		expect(lost).toMatchObject({ health: { status: "unhealthy", redis_connected: false } })
	})

	test("an aborted question is no answer", async () => {
		const stop = new AbortController()
		stop.abort(new Error("stopped"))
		await expect(
			askQueueManager(from("worker", { queueManager: await blackHole() }), { signal: stop.signal }),
		).rejects.toThrow("stopped")
	})
})
