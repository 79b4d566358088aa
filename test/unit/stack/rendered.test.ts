// What is rendered, looked at as text and as structure: golden files for two users, and promises for 1, 20 and 500.
import { fileURLToPath } from "node:url"
import { describe, expect, test } from "vitest"
import { parse } from "yaml"
import { readEnvFile } from "../../../src/lib/formats/env-file.ts"
import { readServiceToken } from "../../../src/lib/formats/service-token.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { containersOf } from "../../../src/lib/stack/description.ts"
import { lintEnvFile } from "../../../src/lib/stack/env-lint.ts"
import { renderedFor, stackFor } from "../../support/stack.ts"

const golden = fileURLToPath(new URL("../../golden", import.meta.url))

type Service = {
	container_name: string
	image: string
	pull_policy?: string
	user?: string
	profiles?: string[]
	networks: string[]
	ports?: string[]
	read_only: boolean
	security_opt: string[]
	cap_drop: string[]
	restart: string
	mem_limit: string
	cpus: number
	environment?: Record<string, string>
	volumes?: { type: string; source: string; target: string; read_only?: boolean }[]
	depends_on?: Record<string, { condition: string }>
	healthcheck: { test: string[]; start_interval: string }
}
type Compose = { services: Record<string, Service>; networks: Record<string, { internal?: boolean }> }

function composeOf(users: number, changes: Parameters<typeof stackFor>[1] = {}) {
	const stack = stackFor(users, changes)
	const files = new Map(renderedFor(stack).map(({ path, text }) => [path, text]))
	const base = parse(files.get("compose.yaml") ?? "") as Compose
	const frontends = parse(files.get("compose.users.yaml") ?? "") as Compose
	return {
		stack,
		files,
		frontends: frontends.services,
		services: { ...base.services, ...frontends.services },
		networks: { ...base.networks, ...frontends.networks },
	}
}

describe.each([
	["container", { nginx: "container", inferenceMode: "serverless" }],
	["host", { nginx: "host", inferenceMode: "redis", vpnAddress: "100.100.0.1" }],
] as const)("two users with nginx in the %s mode", (name, changes) => {
	test("are rendered as the golden files say", async () => {
		for (const { path, text } of renderedFor(stackFor(2, changes)))
			await expect(text).toMatchFileSnapshot(`${golden}/${name}/${path.replace(/^\./, "dot")}`)
	})

	test("are rendered the same again", () => {
		const once = renderedFor(stackFor(2, changes))
		expect(renderedFor(stackFor(2, changes))).toEqual(once)
	})
})

describe.each([1, 20, 500])("a stack of %i users", (users) => {
	const { services, frontends, networks, stack, files } = composeOf(users)
	const all = Object.entries(services)

	test("has the platform's containers, the gate, and one frontend for each user", () => {
		const started = all.filter(([, { profiles }]) => profiles === undefined)
		expect(started.map(([, { container_name }]) => container_name).sort()).toEqual(containersOf(stack).sort())
		// Redis, queue manager, nginx, admin and the users are the platform's 24 for 20; the gate is one more.
		expect(started.length).toBe(users + 5)
		expect(Object.keys(frontends).length).toBe(users)
		expect(new Set(all.map(([, { container_name }]) => container_name)).size).toBe(all.length)
	})

	test("gives no container more than it needs", () => {
		for (const [name, service] of all) {
			expect({ name, ...service }).toMatchObject({
				security_opt: ["no-new-privileges:true"],
				cap_drop: ["ALL"],
				restart: "unless-stopped",
				mem_limit: expect.stringMatching(/^\d+m$/),
				cpus: expect.any(Number),
				healthcheck: { start_interval: "1s" },
			})
			expect(service.healthcheck.test.join(" ")).toContain("127.0.0.1")
			expect(JSON.stringify(service)).not.toMatch(/localhost|docker\.sock|privileged: true|:latest/)
		}
		const writable = all.filter(([, { read_only }]) => !read_only).map(([name]) => name)
		expect(writable.sort()).toEqual([...Object.keys(frontends), "worker"].sort())
	})

	test("asks no registry for an image that is built here", () => {
		for (const [, { image, pull_policy }] of all)
			if (image.startsWith("comfyume")) expect(pull_policy).toBe("never")
	})

	test("keeps frontends from Redis and from each other", () => {
		const shared = new Set(services["redis"]?.networks)
		for (const [name, { networks: own }] of Object.entries(frontends)) {
			expect(own).toEqual([name])
			expect(shared.has(name)).toBe(false)
			const others = all.filter(([, service]) => service.networks.includes(name)).map(([other]) => other)
			expect(others.sort()).toEqual(["nginx", "queue-manager", name].sort())
		}
		expect(services["auth-gate"]?.networks).toEqual(["gate"])
		expect(networks["gate"]?.internal).toBe(true)
		const subnets = stack.users.map(({ subnet }) => subnet)
		expect(new Set(subnets).size).toBe(users)
		for (const subnet of subnets) expect(subnet).toMatch(/^10\.213\.([0-9]|[12]\d|3[01])\.\d{1,3}\/28$/)
	})

	test("shows each frontend its own user's files only, and models read-only", () => {
		for (const [name, { volumes = [], environment }] of Object.entries(frontends)) {
			expect(environment).toMatchObject({
				USER_ID: name,
				QUEUE_MANAGER_TOKEN: expect.stringContaining(`FRONTEND_TOKEN_${name.toUpperCase()}`),
			})
			for (const { source, read_only } of volumes) {
				const of = /user\d{3}/.exec(source)?.[0]
				expect(of === undefined ? read_only : of === name).toBe(true)
			}
			expect(volumes.map(({ target }) => target)).toContain("/outputs")
		}
	})

	test("lets workers write to the share alone, and the queue manager bring it from there to the users", () => {
		const { paths } = stack.configuration
		const mountsOf = (name: string) =>
			Object.fromEntries((services[name]?.volumes ?? []).map(({ source, target }) => [target, source]))
		expect(mountsOf("queue-manager")).toEqual({
			"/outputs": paths.outputs,
			"/inputs": paths.inputs,
			"/mnt/sfs/outputs": paths.shareOutputs,
		})
		expect(services["queue-manager"]?.environment).toMatchObject({
			OUTPUTS_PATH: "/outputs",
			INPUTS_PATH: "/inputs",
			SFS_OUTPUT_DIR: "/mnt/sfs/outputs",
		})
		for (const name of ["worker", "worker-agent"]) {
			expect(mountsOf(name)["/outputs"]).toBe(paths.shareOutputs)
			expect(Object.values(mountsOf(name))).not.toContain(paths.outputs)
		}
	})

	test("publishes nothing but nginx's two ports and, on loopback, what operators ask", () => {
		const published = all.flatMap(([, { ports = [] }]) => ports)
		expect(published.sort()).toEqual(["127.0.0.1:3000:3000", "127.0.0.1:6379:6379", "443:443", "80:80"])
	})

	test("starts in batches of five behind leaders who wait for the queue manager only", () => {
		for (const [index, name] of Object.keys(frontends).entries()) {
			const before = index % 5 === 0 ? "queue-manager" : `user${String(index).padStart(3, "0")}`
			expect(frontends[name]?.depends_on).toEqual({ [before]: { condition: "service_healthy" } })
		}
	})

	test("has an env file that the lint finds nothing in, and tokens that the queue manager reads", () => {
		const text = files.get(".env") ?? ""
		expect(lintEnvFile(text)).toEqual([])
		const values = new Map(readEnvFile(text).entries.map(({ name, value }) => [name, value]))
		const key = new Secret(values.get("TOKEN_KEY") ?? "")
		for (const { id, tokenVariable } of stack.users)
			expect(readServiceToken(key, values.get(tokenVariable) ?? "", 1)).toEqual({
				role: "frontend",
				name: id,
			})
		expect(readServiceToken(key, values.get("WORKER_TOKEN") ?? "", 1)).toEqual({
			role: "worker",
			name: "worker-1",
		})
	})

	test("has every variable that compose asks for in its env file", () => {
		const asked = [...(files.get("compose.yaml") ?? "").matchAll(/\$\{(\w+):\?/g)].map(([, name]) => name)
		const users = [...(files.get("compose.users.yaml") ?? "").matchAll(/\$\{(\w+):\?/g)].map(
			([, name]) => name,
		)
		const there = readEnvFile(files.get(".env") ?? "").entries.map(({ name }) => name)
		expect(asked.length + users.length).toBeGreaterThan(5)
		for (const name of [...asked, ...users]) expect(there).toContain(name)
	})

	test("shows secrets in secret files only", () => {
		for (const { path, text, secret, mode } of renderedFor(stack)) {
			expect({ path, mode }).toEqual({ path, mode: secret ? 0o600 : 0o644 })
			if (!secret) expect(text).not.toContain("made-up-secret")
		}
	})

	test("has a door for every user, and locations that set a header set all of them", () => {
		const site = files.get("nginx/comfyume.conf") ?? ""
		for (const { id, container } of stack.users) expect(site).toContain(`\t${id} ${container}:8188;\n`)
		const locations = site
			.split(/\n\t(?=location )/)
			.slice(1)
			.map((text) => text.split("\n\t}\n")[0] ?? "")
		const withHeaders = locations.filter((text) => text.includes("add_header"))
		expect(withHeaders.length).toBeGreaterThanOrEqual(5)
		for (const text of withHeaders)
			for (const header of [
				"X-Content-Type-Options",
				"X-Frame-Options",
				"Referrer-Policy",
				"Strict-Transport-Security",
			])
				expect(text).toContain(`add_header ${header} `)
		// Whatever passes something on is behind the gate, or is the gate.
		for (const text of locations.filter((one) => one.includes("proxy_pass")))
			expect(text).toMatch(/auth_request \/_comfyume\/check;|proxy_pass http:\/\/\$comfyume_gate/)
	})
})

describe("the ways that Redis stands", () => {
	const lines = (changes: Parameters<typeof stackFor>[1]) => {
		const { stack, files, services } = composeOf(1, changes)
		const values = new Map(
			readEnvFile(files.get(".env") ?? "").entries.map(({ name, value }) => [name, value]),
		)
		return { stack, values, ports: services["redis"]?.ports, queue: services["queue-manager"]?.ports }
	}

	test("A, all on one machine: on loopback only", () => {
		const { stack, values, ports } = lines({ inferenceMode: "redis" })
		expect(stack.redisOption).toBe("A")
		expect(ports).toEqual(["127.0.0.1:6379:6379"])
		expect(values.get("INFERENCE_SERVER_REDIS_HOST")).toBe("comfy-redis")
	})

	test("B, workers elsewhere: on the VPN's address, for Redis and the queue manager alike", () => {
		const { stack, values, ports, queue } = lines({ inferenceMode: "redis", vpnAddress: "100.100.0.1" })
		expect(stack.redisOption).toBe("B")
		expect(ports).toEqual(["127.0.0.1:6379:6379", "100.100.0.1:6379:6379"])
		expect(queue).toContain("100.100.0.1:3000:3000")
		expect(values.get("REDIS_BIND_IP")).toBe("100.100.0.1")
		expect(values.get("INFERENCE_SERVER_REDIS_HOST")).toBe("100.100.0.1")
	})

	test("C, serverless: on loopback only", () => {
		const { stack, values } = lines({ inferenceMode: "serverless" })
		expect(stack.redisOption).toBe("C")
		expect(values.get("REDIS_BIND_IP")).toBe("127.0.0.1")
	})
})

test("with nginx on the host its container is gone, and everything it needs listens on loopback", () => {
	const { services, stack, files } = composeOf(20, { nginx: "host" })
	expect(services).not.toHaveProperty("nginx")
	expect(containersOf(stack).length).toBe(24)
	expect(files.has("nginx/nginx.conf")).toBe(false)
	const published = Object.values(services).flatMap(({ ports = [] }) => ports)
	expect(published).toContain("127.0.0.1:8207:8188")
	for (const port of published) expect(port).toMatch(/^127\.0\.0\.1:/)
	const site = files.get("nginx/host.conf") ?? ""
	expect(site).toContain("\tuser020 127.0.0.1:8207;\n")
	expect(site).not.toMatch(/^resolver/m)
	expect(site).not.toContain("comfy-queue-manager")
})
