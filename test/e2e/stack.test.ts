// The whole stack on a real Docker Engine: 25 containers for 20 users, behind nginx's own container. ComfyUI is a stand-in.
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import { quoteForEnvFile } from "../../src/lib/stack/env-render.ts"
import { describeWith } from "../support/parts.ts"
import { poll } from "../support/poll.ts"
import { openStackWorld, type StackWorld } from "../support/stack-world.ts"

const everyone = Array.from({ length: 20 }, (_, index) => `user${String(index + 1).padStart(3, "0")}`)
const awkward = `a$b\${HOME}$$c #d "e" \\n f\`g\` !h&;|<>*?`

describeWith("docker", "the whole stack", () => {
	let world: StackWorld

	beforeAll(async () => {
		world = await openStackWorld()
		world.addToEnvironment(`SERVERLESS_API_KEY=${quoteForEnvFile("SERVERLESS_API_KEY", awkward)}`)
		const rendered = await world.comfyume("generate-users")
		expect(rendered.exitCode, rendered.stderr).toBe(0)
		await world.compose("up", "--detach", "--wait", "--wait-timeout", "280")
	})
	afterAll(() => world?.[Symbol.asyncDispose]())

	const inspect = async <T>(format: string): Promise<Map<string, T>> => {
		const names = await world.engine.lines("ps", "--all", "--format", "{{.Names}}")
		const lines = await world.engine.lines("inspect", "--format", `{{.Name}} ${format}`, ...names)
		return new Map(
			lines.map((line) => {
				const space = line.indexOf(" ")
				return [line.slice(1, space), JSON.parse(line.slice(space + 1)) as T]
			}),
		)
	}

	test("has 25 healthy containers, each without rights that it wasn't given", async () => {
		const health = await inspect<string>("{{json .State.Health.Status}}")
		expect(health.size).toBe(25)
		expect([...health].filter(([, state]) => state !== "healthy")).toEqual([])
		type HostConfig = {
			Privileged: boolean
			CapAdd: string[] | null
			CapDrop: string[] | null
			SecurityOpt: string[] | null
			ReadonlyRootfs: boolean
			PidMode: string
			NetworkMode: string
			Binds: string[] | null
			Memory: number
		}
		for (const [name, config] of await inspect<HostConfig>("{{json .HostConfig}}")) {
			expect(config, name).toMatchObject({
				Privileged: false,
				CapDrop: ["ALL"],
				SecurityOpt: ["no-new-privileges:true"],
				ReadonlyRootfs: !name.startsWith("comfy-user"),
				PidMode: "",
			})
			const added = name === "comfy-nginx" ? ["CHOWN", "NET_BIND_SERVICE", "SETGID", "SETUID"] : []
			expect((config.CapAdd ?? []).map((one) => one.replace(/^CAP_/, "")).sort(), name).toEqual(added)
			expect(config.Memory, name).toBeGreaterThan(0)
		}
		// The kernel's own word of a frontend: user 1000, and no capability in any set.
		const { stdout } = await world.inside(
			"comfy-user003",
			"grep",
			"-E",
			"^(Uid|Cap|NoNewPrivs)",
			"/proc/1/status",
		)
		expect(stdout).toMatch(/^Uid:\s+1000\s+1000\s+1000\s+1000$/m)
		expect(stdout.match(/^Cap(Prm|Eff|Bnd|Amb):\s+0{16}$/gm)).toHaveLength(4)
		expect(stdout).toMatch(/^NoNewPrivs:\s+1$/m)
	})

	test("shuts its door to everybody without the right password", async () => {
		const door = "/user004/"
		expect((await world.ask(door)).status).toBe(401)
		// The second one too: no answer has handed out something that opens.
		expect((await world.ask(door)).status).toBe(401)
		expect((await world.ask(door, { as: "user004:wrong" })).status).toBe(401)
		expect((await world.ask(door, { as: world.as("user003") })).status).toBe(403)
		expect((await world.ask("/health/ping")).text).toBe("healthy\n")
		for (const user of everyone) {
			const answer = await world.ask(`/${user}/`, { as: world.as(user) })
			expect(answer.status, user).toBe(200)
			expect(answer.text).toContain("stand-in")
		}
	})

	test("hands on paths as they came, WebSockets, and nobody's forged name", async () => {
		const as = world.as("user003")
		const saved = await world.ask("/user003/userdata/workflows%2Fmy%20own.json", {
			...{ method: "POST", as, body: '{"nodes": []}' },
			headers: { "x-comfyume-user": "user004", "x-comfyume-proxy": "forged", "x-comfyume-role": "admin" },
		})
		expect(saved.status).toBe(200)
		const last = await world.ask("/user003/stand-in/last", { as })
		const seen = JSON.parse(last.text) as { url: string; headers: Record<string, string> }
		expect(seen.url).toBe("/userdata/workflows%2Fmy%20own.json")
		for (const name of ["x-comfyume-user", "x-comfyume-proxy", "x-comfyume-role", "authorization"])
			expect(seen.headers).not.toHaveProperty(name)
		const file = world.path("stack/user_data/user003/default/workflows/my own.json")
		expect(readFileSync(file, "utf8")).toBe('{"nodes": []}')
		expect(statSync(file).uid).toBe(1000)
		const authorization = `Basic ${Buffer.from(as).toString("base64")}`
		expect(await world.echo("/user003/ws?clientId=hello", { authorization })).toContain('"sid":"hello"')
		expect(await world.echo("/user003/ws?clientId=hello", {})).toBe("no WebSocket: 401")
		// At the queue manager the forged name would count.
		const jobs = await world.ask("/api/jobs", { headers: { "x-comfyume-user": "admin" } })
		expect(jobs.status).toBe(401)
	})

	test("takes an upload of 5 GB in one piece", async () => {
		const answer = await world.pour("/user005/stand-in/count", world.as("user005"), 5 * 1024)
		expect(answer).toEqual({ status: 200, text: JSON.stringify({ bytes: 5 * 1024 ** 3 }) })
	})

	test("keeps frontends apart: from Redis, from the gate, from one another, and from others' files", async () => {
		const reaches = async (from: string, host: string, port: number) => {
			const script = `import socket, sys; socket.create_connection(("${host}", ${port}), 2)`
			const { exitCode } = await world.inside(from, "python3", "-c", script, { allowedExitCodes: "any" })
			return exitCode === 0
		}
		const addresses = await inspect<Record<string, { IPAddress: string }>>(
			"{{json .NetworkSettings.Networks}}",
		)
		const of = (name: string) => Object.values(addresses.get(name) ?? {}).map(({ IPAddress }) => IPAddress)
		expect(await reaches("comfy-user003", "comfy-queue-manager", 3000)).toBe(true)
		const refused: [string, number][] = [
			["comfy-redis", 6379],
			["comfy-auth-gate", 8090],
			["comfy-admin", 8080],
			["comfy-user004", 8188],
			// By address too: names alone would be no wall.
			...of("comfy-redis").map((address): [string, number] => [address, 6379]),
			...of("comfy-auth-gate").map((address): [string, number] => [address, 8090]),
			...of("comfy-user004").map((address): [string, number] => [address, 8188]),
		]
		expect(refused.length).toBe(7)
		for (const [host, port] of refused)
			expect(await reaches("comfy-user003", host, port), `${host}:${port}`).toBe(false)

		writeFileSync(world.path("outputs/user004/secret.png"), "user004's")
		const { stdout } = await world.inside(
			...["comfy-user003", "find", "/outputs", "/inputs", "/models", "/comfyui/user", "-name", "secret.png"],
		)
		expect(stdout).toBe("")
		const denied = await world.inside("comfy-user003", "touch", "/models/shared/x", {
			allowedExitCodes: "any",
		})
		expect(denied.stderr).toContain("Read-only file system")
	})

	test("hands on values of the env file to the letter", async () => {
		const print = "process.stdout.write(process.env.SERVERLESS_API_KEY)"
		const { stdout } = await world.inside("comfy-queue-manager", "node", "-e", print)
		expect(stdout).toBe(awkward)
	})

	test("names a user's own model the same in the frontend and on a worker, and nobody else's", async () => {
		for (const user of ["user003", "user004"])
			writeFileSync(world.path("share/models/users", user, "loras/mine.safetensors"), `${user}'s`)
		expect(JSON.parse((await world.inside("comfy-user003", "python3", "-c", listLoras)).stdout)).toEqual([
			"everyones.safetensors",
			"user003/mine.safetensors",
		])
		const models = `${world.path("share/models")}:/models:ro`
		const paths = `${world.path("stack/frontend/extra_model_paths.yaml")}:/comfyui/extra_model_paths.yaml:ro`
		const image = "comfyume-worker:v0.11.0"
		const worker = await world.docker(
			...["run", "--rm", "--volume", models, "--volume", paths, image, "python3", "-c", listLoras],
		)
		expect(JSON.parse(worker.stdout)).toEqual([
			"everyones.safetensors",
			"user003/mine.safetensors",
			"user004/mine.safetensors",
		])
	})

	test("brings what a GPU worker made to the user who asked for it, and to nobody else", async () => {
		// There is no GPU here, and Docker refuses to reserve one, or more processors than there are.
		writeFileSync(world.path("no-gpu.yaml"), "services:\n  worker:\n    deploy: !reset null\n    cpus: 1\n")
		await world.compose(
			...["--file", world.path("no-gpu.yaml"), "--profile", "gpu", "up", "--detach", "--wait"],
			...["--wait-timeout", "120", "worker", "worker-agent"],
		)
		const workflow = {
			"5": { class_type: "EmptyImage", inputs: { width: 8, height: 8 } },
			"9": { class_type: "SaveImage", inputs: { images: ["5", 0], filename_prefix: "Film", batch: 1 } },
		}
		const as = world.as("user003")
		const submitted = await world.ask("/api/jobs", {
			...{ method: "POST", as, headers: { "content-type": "application/json" } },
			body: JSON.stringify({ user_id: "user003", workflow }),
		})
		expect(submitted.status, submitted.text).toBe(201)
		const { id } = JSON.parse(submitted.text) as { id: string }
		const job = await poll(
			async () => {
				const { text } = await world.ask(`/api/jobs/${id}`, { as })
				const found = JSON.parse(text) as { status: string; result?: { outputs: unknown } }
				return found.status === "completed" || found.status === "failed" ? found : undefined
			},
			{ what: "the job ends", deadlineMs: 60_000, intervalMs: 200 },
		)
		expect(job, JSON.stringify(job)).toMatchObject({ status: "completed" })
		expect(readdirSync(world.path("outputs/user003"))).toContain("Film_00001_.png")
		const owner = statSync(world.path("outputs/user003/Film_00001_.png"))
		expect(owner.uid).toBe(1000)
		for (const user of everyone.filter((name) => name !== "user003"))
			expect(readdirSync(world.path("outputs", user)).filter((name) => name !== "secret.png")).toEqual([])
		// In the frontend's own view, and at its door.
		await world.inside("comfy-user003", "test", "-s", "/outputs/Film_00001_.png")
		expect((await world.ask("/outputs/user003/Film_00001_.png", { as })).status).toBe(200)
		expect((await world.ask("/outputs/user003/Film_00001_.png", { as: world.as("user004") })).status).toBe(
			403,
		)
	})

	test("costs the user of a stopped frontend a 502, and nobody else anything, nginx's new start included", async () => {
		await world.docker("stop", "--time", "1", "comfy-user007")
		await world.inside("comfy-nginx", "nginx", "-t", "-c", "/etc/nginx/comfyume/nginx.conf")
		await world.docker("restart", "--time", "1", "comfy-nginx")
		const status = async (user: string) => {
			const answer = await world.ask(`/${user}/`, { as: world.as(user) }).catch(() => ({ status: 0 }))
			return answer.status
		}
		await poll(async () => (await status("user008")) === 200, { what: "nginx is back", deadlineMs: 30_000 })
		expect(await status("user007")).toBe(502)
		await world.docker("start", "comfy-user007")
		await poll(async () => (await status("user007")) === 200, { what: "user007 is back", deadlineMs: 60_000 })
	})

	test("finds a user's old data when somebody who was removed is added again", async () => {
		const keep = world.path("stack/user_data/user020/default/workflows/kept.json")
		mkdirSync(join(keep, ".."), { recursive: true })
		writeFileSync(keep, "kept")
		const up = async () => {
			await world.compose("up", "--detach", "--wait", "--wait-timeout", "200", "--remove-orphans")
		}
		expect((await world.comfyume("generate-users", "--remove", "user020")).exitCode).toBe(0)
		await up()
		expect(await world.engine.lines("ps", "--all", "--quiet", "--filter", "name=comfy-user020")).toEqual([])
		expect(existsSync(keep)).toBe(true)
		expect((await world.comfyume("generate-users", "--add", "user020")).exitCode).toBe(0)
		await up()
		const { stdout } = await world.inside("comfy-user020", "cat", "/comfyui/user/default/workflows/kept.json")
		expect(stdout).toBe("kept")
		const answer = await poll(
			async () => {
				const asked = await world.ask("/user020/", { as: world.as("user020") })
				return asked.status === 200 ? asked : undefined
			},
			{ what: "user020's door opens", deadlineMs: 30_000, intervalMs: 200 },
		)
		expect(answer.text).toContain("stand-in")
	})
})

// What ComfyUI v0.11's folder_paths.recursive_search does with the directories that the file names for loras.
const listLoras = `
import json, os, re
bases = re.findall(r"base_path: (\\S+)", open("/comfyui/extra_model_paths.yaml").read())
found = []
for base in bases:
    top = os.path.join(base, "loras")
    for directory, _, names in os.walk(top, followlinks=True, topdown=True):
        for name in names:
            if os.path.splitext(name)[-1].lower() in {".safetensors"}:
                found.append(os.path.relpath(os.path.join(directory, name), top))
print(json.dumps(sorted(found)))
`
