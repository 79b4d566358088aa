// A GPU host of its own on a real Docker Engine: two workers and their agents, from the files that one command wrote, and a
// real queue manager at an address that stands in for the VPN's. ComfyUI is a stand-in, and the GPUs are taken out.
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import { eventSchema } from "../../src/lib/plan/events.ts"
import { describeWith, dockerPrograms } from "../support/parts.ts"
import { poll } from "../support/poll.ts"
import { startQueueManager, type TestQueueManager } from "../support/queue-manager.ts"
import { startTestRedis, type TestRedis } from "../support/redis.ts"
import { run } from "../support/run.ts"
import { openStackWorld, releaseRoot, type StackWorld } from "../support/stack-world.ts"

const vpnAddress = "100.100.0.1"
const everything = ["comfy-worker-1", "comfy-worker-2", "comfy-worker-agent-1", "comfy-worker-agent-2"]

describeWith("docker", "a GPU host of its own", () => {
	let world: StackWorld
	let redis: TestRedis
	let manager: TestQueueManager

	beforeAll(async () => {
		world = await openStackWorld({ users: 1 })
		// A bridge whose own address is in Tailscale's range: containers reach it as they reach a VPN's, by the host.
		await world.docker("network", "create", "--subnet", "100.100.0.0/24", "--gateway", vpnAddress, "tailnet")
		const configuration = readFileSync(world.path("comfyume.yaml"), "utf8")
			.replace(/^ {4}hosts: \[(.*)\]$/m, (_, app: string) => {
				const gpu = `{ name: gpu-1, role: worker, workers: 2, connection: directory, directory: ${world.path("gpu")} }`
				return `    hosts: [${app}, ${gpu}]`
			})
			.replace("    stack:\n", `    stack:\n      vpnAddress: ${vpnAddress}\n`)
		writeFileSync(world.path("comfyume.yaml"), configuration)
		// The same environment, as the GPU host's own configuration has it: on this machine two hosts have one disk.
		mkdirSync(world.path("gpu-configuration"))
		writeFileSync(
			world.path("gpu-configuration/comfyume.yaml"),
			configuration.replace(`${world.directory}/stack\n`, `${world.directory}/gpu-stack\n`),
		)
		withoutGpus()
		const rendered = await world.comfyume("generate-users", "--host", "app-1", "--yes")
		expect(rendered.exitCode, rendered.stderr).toBe(0)
		const secret = (name: string) => world.entries(".env").find((one) => one.name === name)?.value ?? ""
		redis = await startTestRedis()
		manager = await startQueueManager({
			...{ HOST: vpnAddress, PORT: "3000", AUTH_MODE: "proxy", REDIS_HOST: redis.socket },
			...{ TOKEN_KEY: secret("TOKEN_KEY"), PROXY_SECRET: secret("PROXY_SECRET"), INFERENCE_MODE: "redis" },
			...{ OUTPUTS_PATH: world.path("outputs"), INPUTS_PATH: world.path("inputs") },
			SFS_OUTPUT_DIR: world.path("share/outputs"),
		})
	})
	afterAll(async () => {
		await world?.engine.removeEverything()
		await manager?.[Symbol.asyncDispose]()
		await redis?.[Symbol.asyncDispose]()
		await world?.[Symbol.asyncDispose]()
	})

	/** The host's `docker`: Docker refuses to reserve GPUs that are not there, and more processors than there are. */
	function withoutGpus(): void {
		const override = world.path("no-gpu.yaml")
		const worker = (n: number) => `  worker-${n}:\n    deploy: !reset null\n    cpus: 1\n`
		writeFileSync(override, `services:\n${worker(1)}${worker(2)}`)
		mkdirSync(world.path("gpu/usr/local/bin"), { recursive: true })
		const script = `#!/bin/sh
[ "$1" = compose ] || exec "${join(dockerPrograms(), "docker")}" "$@"
for word; do
	shift
	set -- "$@" "$word"
	[ "$before" != --file ] || set -- "$@" --file "${override}"
	before=$word
done
exec "${join(dockerPrograms(), "docker")}" "$@"
`
		writeFileSync(world.path("gpu/usr/local/bin/docker"), script, { mode: 0o755 })
	}

	/** On the GPU host. */
	const comfyume = async (...words: string[]) => {
		const configuration = world.path("gpu-configuration/comfyume.yaml")
		const spoken = ["--env", "sandbox", "--config", configuration, "--host", "gpu-1"]
		const ended = await run(join(releaseRoot, "bin/comfyume"), [...words, ...spoken], {
			workingDirectory: world.directory,
			environment: { ...world.engine.environment, HOME: world.directory },
			allowedExitCodes: "any",
			timeoutMs: 300_000,
		})
		const events = words.includes("--json")
			? ended.stdout
					.split("\n")
					.filter(Boolean)
					.map((line) => eventSchema.parse(JSON.parse(line)))
			: []
		const outcomes = Object.fromEntries(
			events.flatMap((event) => (event.event === "step" ? [[event.step, event.outcome]] : [])),
		)
		return { ...ended, events, outcomes }
	}
	const running = async () => {
		const lines = await world.engine.lines("ps", "--no-trunc", "--format", "{{.Names}} {{.ID}}")
		return new Map(lines.map((line) => line.split(" ") as [string, string]))
	}
	const ask = (path: string, init: RequestInit = {}) => {
		const token = world.entries(".env").find(({ name }) => name === "FRONTEND_TOKEN_USER001")?.value
		const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" }
		return fetch(`http://${vpnAddress}:3000${path}`, { ...init, headers })
	}

	test("says what is to be done before anything was rendered", async () => {
		const { exitCode, stderr } = await comfyume("start")
		expect(exitCode).toBe(2)
		expect(stderr).toContain("not every worker has a token")
		expect(stderr).toContain("--credentials FILE")
		const status = await comfyume("status", "--json")
		expect(status.exitCode, status.stdout).toBe(3)
		expect(status.stdout).toContain("not every worker has a token")
	})

	test("is started by one command, side by side, and a second one touches nothing", async () => {
		const written = await comfyume("generate-users", "--credentials", world.path("stack/workers/gpu-1.env"))
		expect(written.exitCode, written.stderr).toBe(0)
		const first = await comfyume("start", "--json")
		expect(first.exitCode, first.stdout + first.stderr).toBe(0)
		expect(first.outcomes).toMatchObject({
			...{ "worker-1": "applied", "worker-agent-1": "applied" },
			...{ "worker-2": "applied", "worker-agent-2": "applied" },
		})
		for (const name of ["redis", "queue-manager", "nginx", "certificate-there", "user001"])
			expect(first.outcomes).not.toHaveProperty(name)
		const before = await running()
		expect([...before.keys()].sort()).toEqual(everything)
		const second = await comfyume("start", "--json")
		expect(second.exitCode, second.stdout).toBe(0)
		expect(Object.values(second.outcomes).filter((outcome) => outcome === "applied")).toEqual([])
		expect(await running()).toEqual(before)
	})

	test("is known to the queue manager by both workers' tokens, and its status says so", async () => {
		const found = await poll(
			async () => {
				const status = await comfyume("status", "--json")
				return status.stdout.includes("2 workers") ? status : undefined
			},
			{ what: "both workers are there", deadlineMs: 60_000, intervalMs: 500 },
		)
		expect(found.exitCode, found.stdout).toBe(0)
		expect(found.outcomes).not.toHaveProperty("door")
		const containers = found.events.flatMap((event) => (event.event === "container" ? [event] : []))
		expect(containers.map(({ container }) => container).sort()).toEqual(everything)
	})

	test("runs a user's jobs, and what it made lies where the app server looks for it", async () => {
		const workflow = (batch: number) => ({
			"5": { class_type: "EmptyImage", inputs: { width: 8, height: 8 } },
			"9": { class_type: "SaveImage", inputs: { images: ["5", 0], filename_prefix: "Film", batch } },
		})
		const ids: string[] = []
		for (const batch of [1, 2, 3, 4]) {
			const body = JSON.stringify({ user_id: "user001", workflow: workflow(batch) })
			const submitted = await ask("/api/jobs", { method: "POST", body })
			expect(submitted.status, await submitted.clone().text()).toBe(201)
			ids.push(((await submitted.json()) as { id: string }).id)
		}
		const claimedBy = new Set<string>()
		for (const id of ids) {
			const job = await poll(
				async () => {
					const found = (await (await ask(`/api/jobs/${id}`)).json()) as { status: string; worker_id: string }
					return ["completed", "failed"].includes(found.status) ? found : undefined
				},
				{ what: "the job ends", deadlineMs: 60_000, intervalMs: 200 },
			)
			expect(job, JSON.stringify(job)).toMatchObject({ status: "completed" })
			claimedBy.add(job.worker_id)
		}
		for (const worker of claimedBy) expect(["gpu-1-1", "gpu-1-2"]).toContain(worker)
		const pictures = readdirSync(world.path("outputs/user001")).filter((name) => name.endsWith(".png"))
		// Each job made as many as its batch says.
		expect(pictures.length).toBe(1 + 2 + 3 + 4)
	})

	test("lets ComfyUI reach its own agent's network alone, and read models only", async () => {
		const reaches = async (host: string, port: number) => {
			const script = `import socket; socket.create_connection(("${host}", ${port}), 2)`
			const asked = ["python3", "-c", script, { allowedExitCodes: "any" as const }]
			return (await world.inside("comfy-worker-1", ...asked)).exitCode === 0
		}
		expect(await reaches("comfy-worker-1", 8188)).toBe(true)
		expect(await reaches("comfy-worker-2", 8188)).toBe(false)
		expect(await reaches(vpnAddress, 3000)).toBe(false)
		const denied = await world.inside("comfy-worker-1", "touch", "/models/x", { allowedExitCodes: "any" })
		expect(denied.stderr).toContain("Read-only file system")
		const ports = await world.engine.lines("ps", "--format", "{{.Ports}}")
		expect(ports.join("")).not.toContain("->")
	})

	test("is whole again after half of it was lost, and only that is made", async () => {
		const before = await running()
		await world.docker("rm", "--force", "comfy-worker-agent-2")
		await world.docker("kill", "comfy-worker-2")
		const status = await comfyume("status", "--json")
		expect(status.exitCode).toBe(3)
		const again = await comfyume("start", "--json")
		expect(again.exitCode, again.stdout).toBe(0)
		expect(again.outcomes).toMatchObject({
			...{ "worker-1": "satisfied", "worker-agent-1": "satisfied" },
			...{ "worker-2": "applied", "worker-agent-2": "applied" },
		})
		const after = await running()
		for (const name of ["comfy-worker-1", "comfy-worker-agent-1"])
			expect(after.get(name)).toBe(before.get(name))
	})

	test("is stopped, agents first, and one worker is started or made anew by its name", async () => {
		const logs = await comfyume("logs", "worker-agent-1")
		expect(logs.exitCode, logs.stderr).toBe(0)
		const stopped = await comfyume("stop", "--json")
		expect(stopped.exitCode, stopped.stdout).toBe(0)
		const order = stopped.events.flatMap((event) => (event.event === "step" ? [event.step] : []))
		expect(order).toEqual(["worker-agent-1", "worker-agent-2", "worker-1", "worker-2"])
		expect((await running()).size).toBe(0)
		const one = await comfyume("start", "--only", "worker-agent-1", "--json")
		expect(one.exitCode, one.stdout).toBe(0)
		expect([...(await running()).keys()].sort()).toEqual(["comfy-worker-1", "comfy-worker-agent-1"])
		const before = await running()
		const anew = await comfyume("restart", "worker-1", "--json")
		expect(anew.exitCode, anew.stdout).toBe(0)
		expect((await running()).get("comfy-worker-1")).not.toBe(before.get("comfy-worker-1"))
	})

	test("is started by a restore too, with the tokens that have come back", async () => {
		const env = world.path("gpu-stack/.env")
		const kept = readFileSync(env)
		rmSync(world.path("gpu-stack"), { recursive: true })
		const without = await comfyume("restore", "--only", "containers", "--json")
		expect(without.exitCode, without.stdout).toBe(2)
		expect(without.stdout).toContain("has no WORKER_TOKEN_1")
		mkdirSync(world.path("gpu-stack"))
		writeFileSync(env, kept, { mode: 0o600 })
		const restored = await comfyume("restore", "--only", "containers", "--json")
		expect(restored.exitCode, restored.stdout).toBe(0)
		expect([...(await running()).keys()].sort()).toEqual(everything)
		expect(readFileSync(env)).toEqual(kept)
	})
})
