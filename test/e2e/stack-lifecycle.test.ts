// start, stop, restart, status and logs with a real Docker Engine and the real compose files.
import { mkdirSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:net"
import { afterAll, beforeAll, expect, test } from "vitest"
import { startDocker } from "../support/docker.ts"
import { describeWith } from "../support/parts.ts"
import { poll } from "../support/poll.ts"
import { processesWith } from "../support/processes.ts"
import { type Engine, openWorkshop, standInImages, type Workshop } from "../support/small-stack.ts"

describeWith("docker", "the stack's containers", () => {
	let engine: Engine
	let images: Awaited<ReturnType<typeof standInImages>>
	let workshop: Workshop
	const users = ["user001", "user002", "user003", "user004", "user005", "user006"]
	const everything = ["redis", "queue-manager", "auth-gate", "admin", "nginx", ...users]
	const outcomesOf = (names: readonly string[], outcome: string) =>
		Object.fromEntries(names.map((name) => [name, outcome]))

	beforeAll(async () => {
		engine = await startDocker()
		images = await standInImages(engine)
		workshop = await openWorkshop(engine, { users: users.length })
		expect((await workshop.run(["generate-users"])).exitCode).toBe(0)
	})
	afterAll(async () => {
		await workshop?.[Symbol.asyncDispose]()
		await images?.[Symbol.asyncDispose]()
		await engine?.[Symbol.asyncDispose]()
	})

	test("a dry run says what each container would do, and starts none", async () => {
		const { exitCode, outcomes } = await workshop.run(["start", "--dry-run", "--json"])
		expect(exitCode).toBe(0)
		expect(outcomes).toMatchObject(outcomesOf(everything, "planned"))
		expect((await workshop.running()).size).toBe(0)
	})

	test("start brings all up in order, batches side by side, and a second start changes nothing", async () => {
		const first = await workshop.run(["start", "--json"])
		expect(first.outcomes).toMatchObject(outcomesOf(everything, "applied"))
		expect(first.exitCode).toBe(0)
		const before = await workshop.running()
		expect([...before.keys()].sort()).toEqual(everything.map((name) => `comfy-${name}`).sort())
		const startedAt = new Map<string, string>()
		for (const name of everything)
			startedAt.set(name, (await workshop.inspect(`comfy-${name}`)).State.StartedAt)
		const at = (name: string) => startedAt.get(name) ?? ""
		for (const [earlier, later] of [
			["redis", "queue-manager"],
			["queue-manager", "user001"],
			["user001", "user002"],
			["user004", "user005"],
			["auth-gate", "nginx"],
		] as const)
			expect(`${earlier} ${at(earlier) < at(later)}`).toBe(`${earlier} true`)
		// The second batch's leader didn't wait for the first batch.
		expect(at("user006") < at("user003")).toBe(true)

		const second = await workshop.run(["start", "--json"])
		expect(second.exitCode).toBe(0)
		expect(second.outcomes).toMatchObject(outcomesOf(everything, "satisfied"))
		expect(await workshop.running()).toEqual(before)
	})

	test("status says that all is well, in a table and as events", async () => {
		const { exitCode, stdout, stderr } = await workshop.run(["status"])
		expect(`${exitCode} ${stderr}`).toMatch(/^0 /)
		expect(stdout.split("\n")[0]).toMatch(/^container +state +since$/)
		expect(stderr).toContain("4 waiting, 1 worker, redis")
		expect(stderr).toMatch(
			/Door: https:\/\/workshop\.example\.test:\d+ answers, certificate valid for (89|90) days/,
		)
		const { events } = await workshop.run(["status", "--json"])
		const containers = events.filter((event) => event.event === "container")
		expect(containers).toHaveLength(everything.length)
		expect(containers[0]).toMatchObject({
			...{ container: "comfy-redis", service: "redis", expected: true, right: true, restarts: 0 },
			...{ state: "running", health: "healthy", imageCurrent: true, configurationCurrent: true },
		})
	})

	test("what an env file or a build has changed is made anew by start, and nothing else", async () => {
		const before = await workshop.run(["env", "render", "--rotate", "PROXY_SECRET"])
		expect(before.exitCode).toBe(0)
		await images.rebuild("comfyume-admin:local")
		const old = await workshop.run(["status", "--json"])
		expect(old.exitCode).toBe(3)
		const outdated = old.events.flatMap((event) =>
			event.event === "container" && !event.right ? [event] : [],
		)
		expect(outdated.map(({ container }) => container).sort()).toEqual(["comfy-admin", "comfy-queue-manager"])
		expect(outdated).toContainEqual(
			expect.objectContaining({ container: "comfy-admin", imageCurrent: false }),
		)
		const ids = await workshop.running()
		const { exitCode, outcomes } = await workshop.run(["start", "--json"])
		expect(exitCode).toBe(0)
		expect(Object.keys(outcomes).filter((name) => outcomes[name] === "applied")).toEqual([
			"queue-manager",
			"admin",
		])
		const now = await workshop.running()
		const changed = [...now].filter(([name, id]) => ids.get(name) !== id).map(([name]) => name)
		expect(changed.sort()).toEqual(["comfy-admin", "comfy-queue-manager"])
		// nginx holds the secret in a file of its own, which compose's hash of its configuration doesn't know.
		expect((await workshop.run(["generate-users"])).exitCode).toBe(0)
		const stale = await workshop.run(["status", "--json"])
		expect(
			stale.events.flatMap((event) => (event.event === "container" && !event.right ? [event] : [])),
		).toEqual([expect.objectContaining({ container: "comfy-nginx", configurationCurrent: false })])
		const last = await workshop.run(["start", "--json"])
		expect(last.exitCode).toBe(0)
		expect(Object.keys(last.outcomes).filter((name) => last.outcomes[name] === "applied")).toEqual(["nginx"])
		expect((await workshop.run(["status"])).exitCode).toBe(0)
	})

	test("restart makes what was named anew, and waits for its health", async () => {
		const before = await workshop.running()
		const { exitCode, outcomes } = await workshop.run(["restart", "user003", "admin", "--json"])
		expect(exitCode).toBe(0)
		expect(outcomes).toMatchObject({ user003: "applied", admin: "applied" })
		const after = await workshop.running()
		const changed = [...after].filter(([name, id]) => before.get(name) !== id).map(([name]) => name)
		expect(changed.sort()).toEqual(["comfy-admin", "comfy-user003"])
		expect((await workshop.inspect("comfy-user003")).State.Health?.Status).toBe("healthy")
		const wrong = await workshop.run(["restart", "user03"])
		expect(wrong.exitCode).toBe(2)
		expect(wrong.stderr).toContain("did you mean user003?")
	})

	test("a leader that never becomes healthy stops its own batch, and a crash loop is named with its last lines", async () => {
		await workshop.run(["stop", "user001", "user002", "user006"])
		workshop.mark("user001", "sick")
		workshop.mark("user006", "crash")
		try {
			const { exitCode, outcomes, stderr } = await workshop.run(["start", "--wait", "8", "--quiet"])
			expect(exitCode).toBe(3)
			expect(outcomes).toEqual({})
			expect(stderr).toContain("frontend of user001: comfy-user001 is not healthy after 8 s")
			expect(stderr).toContain("frontend of user006: comfy-user006 is not healthy: it starts again and again")
			expect(stderr).toContain("frontend of user006: log: it breaks with [secret]")
			expect(stderr).toContain("blocked: frontend of user002: waits for user001, which failed")
			expect(stderr).toContain("try: comfyume logs user006 --env sandbox")
			const running = await workshop.running()
			expect(running.has("comfy-user002")).toBe(false)
			expect(running.has("comfy-nginx")).toBe(true)
			const { stdout } = await workshop.run(["status"])
			const [, first, second] = stdout.split("\n")
			// What is not right comes first.
			expect(`${first}\n${second}`).toMatch(/comfy-user00/)
			// The second user of a batch whose leader is down can be asked for by name.
			expect((await workshop.run(["start", "--only", "user002", "--wait", "30"])).exitCode).toBe(0)
			expect((await workshop.running()).has("comfy-user002")).toBe(true)
		} finally {
			workshop.unmark("user001", "sick")
			workshop.unmark("user006", "crash")
		}
		expect((await workshop.run(["start"])).exitCode).toBe(0)
		expect((await workshop.running()).size).toBe(everything.length)
	})

	test("what Docker would stumble over is said before, with what to type", async () => {
		await workshop.run(["stop"])
		// As Docker leaves it where a file is missing.
		const key = workshop.path("certificates/key.pem")
		rmSync(key)
		mkdirSync(key)
		await engine.docker("tag", "comfyume-frontend:v0.11.0", "test-kept:1")
		await engine.docker("image", "rm", "--force", "comfyume-frontend:v0.11.0")
		const occupant = createServer().listen(6379, "127.0.0.1")
		try {
			const { exitCode, stderr } = await workshop.run(["start", "--dry-run"])
			expect(exitCode).toBe(3)
			expect(stderr).toMatch(/redis: port 6379 is taken by \S+ \(process \d+.*\)/)
			expect(stderr).toContain(`try: ss -ltnp 'sport = :6379'`)
			expect((await workshop.running()).size).toBe(0)
		} finally {
			await new Promise((resolve) => occupant.close(resolve))
		}
		const part = ["--only", "nginx,user001,user002"]
		const { exitCode, outcomes, events } = await workshop.run(["start", "--json", ...part])
		expect(exitCode).toBe(3)
		expect(outcomes).toMatchObject({
			...{ redis: "applied", "queue-manager": "applied", "auth-gate": "applied" },
			...{ nginx: "failed", user001: "failed", user002: "blocked" },
		})
		const because = (step: string) =>
			events.findLast((event) => event.event === "step" && event.step === step)
		expect(because("nginx")).toMatchObject({
			because: `${key} is a directory, and a file belongs there`,
			hint: expect.stringContaining(`rmdir ${key}`),
		})
		expect(because("user001")).toMatchObject({
			because: "there is no image comfyume-frontend:v0.11.0 on app-1",
			hint: expect.stringMatching(/^comfyume start .*--build$/),
		})
		// Where it is going to be built, nobody complains that it isn't there.
		const building = await workshop.run(["start", "--json", "--dry-run", "--build", "--only", "user001"])
		expect(building.outcomes).toMatchObject({ "image-frontend": "planned" })
		expect(building.outcomes["user001"]).not.toBe("failed")
		rmSync(key, { recursive: true })
		writeFileSync(key, "")
		expect((await workshop.run(["start", "--only", "nginx"])).stderr).toContain(`${key} is empty`)
		await engine.docker("tag", "test-kept:1", "comfyume-frontend:v0.11.0")
		await engine.docker("image", "rm", "test-kept:1")
	})

	test("a container of another project under one of our names is left alone", async () => {
		await workshop.run(["stop"])
		await engine.docker("rm", "comfy-user006", { allowedExitCodes: "any" })
		const words = ["--label", "com.docker.compose.project=comfy-multi", "comfyume-admin:local"]
		await engine.docker("run", "--detach", "--name", "comfy-user006", ...words)
		const theirs = (await workshop.running()).get("comfy-user006")
		const { exitCode, stderr } = await workshop.run(["start", "--only", "user006"])
		expect(exitCode).toBe(8)
		expect(stderr).toContain("belongs to the compose project comfy-multi")
		await workshop.run(["stop"])
		await workshop.run(["stop", "--now"])
		expect((await workshop.running()).get("comfy-user006")).toBe(theirs)
		await engine.docker("rm", "--force", "comfy-user006")
	})

	test("stop ends users before what serves them and Redis last, and takes nothing away", async () => {
		const set = await workshop.run(["start", "--only", "user002,user003"])
		expect(`${set.exitCode} ${set.stderr}`).toMatch(/^0 /)
		const volumes = await engine.lines("volume", "ls", "--quiet")
		const other = (
			await engine.docker("run", "--detach", "--name", "somebody", "comfyume-admin:local")
		).stdout.trim()
		const { exitCode, outcomes } = await workshop.run(["stop", "--json"])
		expect(exitCode).toBe(0)
		expect(outcomes).toMatchObject({ user002: "applied", user003: "applied", redis: "applied" })
		const ended = new Map<string, string>()
		for (const name of ["user002", "user003", "queue-manager", "redis"])
			ended.set(name, (await workshop.inspect(`comfy-${name}`)).State.FinishedAt)
		const at = (name: string) => ended.get(name) ?? ""
		expect(at("user002") < at("queue-manager") && at("user003") < at("queue-manager")).toBe(true)
		expect(at("queue-manager") < at("redis")).toBe(true)
		// It drained, and wasn't killed.
		expect((await workshop.inspect("comfy-queue-manager")).State.ExitCode).toBe(0)
		expect([...(await workshop.running()).values()]).toEqual([other])
		expect(await engine.lines("volume", "ls", "--quiet")).toEqual(volumes)
		const again = await workshop.run(["stop", "--json"])
		expect(again.exitCode).toBe(0)
		expect(new Set(Object.values(again.outcomes))).toEqual(new Set(["satisfied"]))
		await engine.docker("rm", "--force", "somebody")
	})

	test("stop --now ends everything though the files are broken and another run holds the lock", async () => {
		expect((await workshop.run(["start", "--only", "user002,user003"])).exitCode).toBe(0)
		workshop.mark("user004", "sick")
		const blocking = workshop.start(["start", "--only", "user004", "--wait", "120"])
		await poll(async () => (await workshop.running()).has("comfy-user004"), {
			...{ what: "the start that hangs", deadlineMs: 60_000 },
		})
		writeFileSync(workshop.path("stack/compose.yaml"), "services: [\n")
		writeFileSync(workshop.path("stack/credentials.env"), "USER_CREDENTIALS_USER001=nonsense\n")
		expect((await workshop.run(["stop"])).exitCode).toBe(5)
		const { exitCode, stderr } = await workshop.run(["stop", "--now"])
		expect(`${exitCode} ${stderr}`).toMatch(/^0 /)
		expect((await workshop.running()).size).toBe(0)
		// What it was waiting for has ended: no use in waiting on.
		expect((await blocking.ended).exitCode).toBe(3)
	})
})

describeWith("docker", "logs", () => {
	let engine: Engine
	let images: Awaited<ReturnType<typeof standInImages>>
	let workshop: Workshop
	beforeAll(async () => {
		engine = await startDocker()
		images = await standInImages(engine)
		workshop = await openWorkshop(engine, { users: 2 })
		await workshop.run(["generate-users"])
		expect((await workshop.run(["start", "--only", "user001,user002"])).exitCode).toBe(0)
	})
	afterAll(async () => {
		await workshop?.[Symbol.asyncDispose]()
		await images?.[Symbol.asyncDispose]()
		await engine?.[Symbol.asyncDispose]()
	})

	test("come in the order of their lines, each with who said it, and nothing else on stdout", async () => {
		const { exitCode, stdout, stderr } = await workshop.run(["logs", "user002", "queue-manager", "user001"])
		expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" })
		expect(stdout).toBe(
			"comfy-queue-manager | stand-in of 3000 starts\ncomfy-user001 | stand-in of user001 starts\ncomfy-user002 | stand-in of user002 starts\n",
		)
		const { events } = await workshop.run(["logs", "user001", "--tail", "1", "--json"])
		expect(events.filter((event) => event.event === "log")).toEqual([
			expect.objectContaining({
				...{ container: "comfy-user001", text: "stand-in of user001 starts" },
				saidAt: expect.stringMatching(/^\d{4}-/),
			}),
		])
		const wrong = await workshop.run(["logs", "usr001"])
		expect(wrong.exitCode).toBe(2)
		expect(wrong.stderr).toContain("did you mean user001?")
	})

	test("are followed until Ctrl-C, which ends with 130 and leaves nothing reading", async () => {
		const { child, ended } = workshop.start(["logs", "--follow", "user001", "user002"])
		let said = ""
		child.stdout?.on("data", (text: string) => {
			said += text
		})
		await poll(() => said.includes("user001 | stand-in"), { what: "what was said", deadlineMs: 30_000 })
		await engine.docker("restart", "--time", "1", "comfy-user002")
		await poll(
			() => (said.match(/user002 \| stand-in/g) ?? []).length > 1 || said.includes("user002 | ends"),
			{
				...{ what: "what is said anew", deadlineMs: 30_000 },
			},
		)
		child.kill("SIGINT")
		expect((await ended).exitCode).toBe(130)
		expect(await processesWith("logs --timestamps --follow comfy-user001")).toEqual([])
	})
})
