// A GPU host of its own: what is rendered for it, whose tokens it takes, and what never gets there.
import { fileURLToPath } from "node:url"
import { describe, expect, test } from "vitest"
import { parse } from "yaml"
import type { HostConfiguration } from "../../../src/lib/config/environment.ts"
import { stackOf } from "../../../src/lib/config/environment.ts"
import { readEnvFile } from "../../../src/lib/formats/env-file.ts"
import { readServiceToken, serviceToken } from "../../../src/lib/formats/service-token.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { containersOf, describeStack, directoriesOf } from "../../../src/lib/stack/description.ts"
import { lintEnvFile } from "../../../src/lib/stack/env-lint.ts"
import { renderWorkerEnvironment } from "../../../src/lib/stack/env-worker.ts"
import { renderWorkerFiles } from "../../../src/lib/stack/render.ts"
import { composePlaces, placesOf, servicesOf } from "../../../src/lib/stack/services.ts"
import { imageSteps } from "../../../src/lib/steps/stack-images.ts"
import { testEnvironment } from "../../support/front-door.ts"
import { renderedFor } from "../../support/stack.ts"

const golden = fileURLToPath(new URL("../../golden/worker", import.meta.url))

type Service = {
	container_name: string
	image: string
	restart: string
	mem_limit: string
	read_only: boolean
	cap_drop: string[]
	security_opt: string[]
	networks: string[]
	ports?: string[]
	environment?: Record<string, string>
	volumes: { source: string; target: string; read_only?: boolean }[]
	deploy?: { resources: { reservations: { devices: { count?: string; device_ids?: string[] }[] } } }
	depends_on?: Record<string, unknown>
	healthcheck: { test: string[] }
}
type Compose = { services: Record<string, Service>; networks: Record<string, { internal?: boolean }> }

const host = (workers: number, name = "gpu-1"): HostConfiguration => ({
	...{ name, role: "worker", hostKeys: [], tailnet: "join", firewall: [], workers },
	...{ connection: "ssh", address: "203.0.113.20", port: 22, user: "root", keyFiles: [] },
})
const environmentWith = (workers: number, vpnAddress: string | undefined = "100.100.0.1") => ({
	...testEnvironment({ ...stackOf(testEnvironment(undefined)), vpnAddress }),
	hosts: [host(workers)],
})
const stackWith = (workers: number) => describeStack(environmentWith(workers), [], host(workers))

/** What the app server of the same environment writes for gpu-1. */
function handedBy(workers: number, existing = ""): { text: string; key: Secret } {
	const files = renderedFor(describeStack(environmentWith(workers), [1]), existing)
	const text = files.find(({ path }) => path === "workers/gpu-1.env")?.text ?? ""
	const key = readEnvFile(files.find(({ path }) => path === ".env")?.text ?? "").entries.find(
		({ name }) => name === "TOKEN_KEY",
	)
	return { text, key: new Secret(key?.value ?? "") }
}

function renderedWith(workers: number, existing = "", text = handedBy(workers).text) {
	const stack = stackWith(workers)
	const environment = renderWorkerEnvironment(stack, {
		existing,
		...(text === "" ? {} : { handed: { where: "gpu-1.env", entries: readEnvFile(text).entries } }),
	})
	const files = renderWorkerFiles(stack, environment.text)
	const compose = parse(files.find(({ path }) => path === "compose.worker.yaml")?.text ?? "") as Compose
	return { stack, environment, files, compose }
}

describe("a GPU host with two workers", () => {
	const { stack, environment, files, compose } = renderedWith(2)

	test("is rendered as the golden files say, and the same again", async () => {
		expect(renderedWith(2).files).toEqual(files)
		expect(files.map(({ path, mode }) => [path, mode])).toEqual([
			[".env", 0o600],
			["extra_model_paths.yaml", 0o644],
			["compose.worker.yaml", 0o644],
		])
		for (const { path, text } of files)
			await expect(text).toMatchFileSnapshot(`${golden}/${path.replace(/^\./, "dot")}`)
	})

	test("runs ComfyUI and an agent for each, and no part of the app server's stack", () => {
		expect(Object.keys(compose.services)).toEqual([
			...["worker-1", "worker-agent-1", "worker-2", "worker-agent-2"],
		])
		expect(containersOf(stack)).toEqual(
			Object.values(compose.services).map(({ container_name }) => container_name),
		)
		expect(servicesOf(stack).map(({ name, container, image }) => ({ name, container, image }))).toEqual(
			Object.entries(compose.services).map(([name, { container_name, image }]) => ({
				...{ name, container: container_name, image },
			})),
		)
		expect(servicesOf(stack, { gpu: true })).toEqual(servicesOf(stack))
		expect(servicesOf(stack).map(({ after }) => after)).toEqual([[], ["worker-1"], [], ["worker-2"]])
	})

	test("gives each worker a GPU, a name, a token and a network of its own", () => {
		const of = (name: string) => compose.services[name] as Service
		const gpus = ["worker-1", "worker-2"].map(
			(name) => of(name).deploy?.resources.reservations.devices[0]?.device_ids,
		)
		expect(gpus).toEqual([["0"], ["1"]])
		for (const n of [1, 2]) {
			expect(of(`worker-agent-${n}`).environment).toEqual({
				QUEUE_MANAGER_URL: "http://100.100.0.1:3000",
				COMFYUI_URL: `http://comfy-worker-${n}:8188`,
				WORKER_ID: `gpu-1-${n}`,
				WORKER_TOKEN: `\${WORKER_TOKEN_${n}:?is not in .env; comfyume env render writes it}`,
				OUTPUTS_PATH: "/outputs",
			})
			// ComfyUI runs its users' workflows: it reaches its agent, and nothing else.
			expect(of(`worker-${n}`).networks).toEqual([`worker-${n}`])
			expect(compose.networks[`worker-${n}`]).toEqual({ internal: true })
			expect(of(`worker-agent-${n}`).networks).toEqual([`worker-${n}`, "vpn"])
			expect(of(`worker-agent-${n}`).depends_on).toEqual({ [`worker-${n}`]: expect.anything() })
		}
		const states = Object.values(compose.services).flatMap(({ volumes }) =>
			volumes.filter(({ target }) => target.includes("state") || target.includes("agent")),
		)
		expect(new Set(states.map(({ source }) => source)).size).toBe(2)
	})

	test("publishes nothing, gives no container more than it needs, and reads models only", () => {
		for (const [name, service] of Object.entries(compose.services)) {
			expect({ name, ...service }).toMatchObject({
				security_opt: ["no-new-privileges:true"],
				cap_drop: ["ALL"],
				restart: "unless-stopped",
				mem_limit: expect.stringMatching(/^\d+m$/),
				read_only: name.includes("agent"),
			})
			expect(service).not.toHaveProperty("ports")
			expect(service.healthcheck.test.join(" ")).toContain("127.0.0.1")
			for (const volume of service.volumes)
				expect({ name, ...volume }).toMatchObject(
					volume.target === "/models" || volume.target.startsWith("/etc") ? { read_only: true } : {},
				)
		}
	})

	test("has an env file that the lint finds nothing in, with tokens that the queue manager reads", () => {
		expect(lintEnvFile(environment.text)).toEqual([])
		const { key } = handedBy(2)
		const values = readEnvFile(environment.text).entries
		for (const { tokenVariable, id } of stack.workers)
			expect(
				readServiceToken(key, values.find(({ name }) => name === tokenVariable)?.value ?? "", 1),
			).toEqual({ role: "worker", name: id })
		const compose = files.find(({ path }) => path === "compose.worker.yaml")?.text ?? ""
		const asked = [...compose.matchAll(/\$\{(\w+):\?/g)].map(([, name]) => name)
		expect(asked).toEqual(["WORKER_TOKEN_1", "WORKER_TOKEN_2"])
		for (const name of asked) expect(values.map((entry) => entry.name)).toContain(name)
	})

	test("never has the key that tokens are made with, or another secret of the app server", () => {
		const { key } = handedBy(2)
		for (const { text } of files) {
			expect(text).not.toContain(key.reveal())
			expect(text).not.toMatch(/^(TOKEN_KEY|PROXY_SECRET|AUTH_COOKIE_SECRET|REDIS_PASSWORD|FRONTEND_)/m)
		}
		// Also when somebody has copied the app server's there.
		const appServers = renderedFor(describeStack(environmentWith(2), [1])).find(
			({ path }) => path === ".env",
		)?.text
		const over = renderedWith(2, appServers)
		expect(over.environment.dropped).toEqual(
			expect.arrayContaining([
				...["TOKEN_KEY", "PROXY_SECRET", "AUTH_COOKIE_SECRET", "WORKER_TOKEN", "FRONTEND_TOKEN_USER001"],
			]),
		)
		expect(over.environment.text).not.toContain(key.reveal())
		expect(lintEnvFile(over.environment.text)).toEqual([])
		expect(lintEnvFile(`${environment.text}TOKEN_KEY=${key.reveal()}\n`)).toEqual([
			expect.objectContaining({ kind: "contradictory", message: expect.stringContaining("TOKEN_KEY") }),
		])
	})

	test("has every mounted file and directory looked at before a start", () => {
		const { directory, paths } = stack.configuration
		expect(composePlaces(stack).map(({ path }) => path)).toEqual([
			`${directory}/compose.worker.yaml`,
			`${directory}/.env`,
		])
		for (const service of servicesOf(stack)) {
			const binds = compose.services[service.name]?.volumes.filter(({ source }) => source.startsWith("/"))
			expect(
				placesOf(stack, service)
					.map(({ path }) => path)
					.sort(),
			).toEqual(binds?.map(({ source }) => source).sort())
		}
		expect(directoriesOf(stack).map(({ path }) => path)).toEqual([paths.shareOutputs])
	})

	test("builds its workers' images, and a host without a GPU none of them", () => {
		const nowhere = {} as Parameters<typeof imageSteps>[0]
		const options = { packageRoot: "/nowhere", revision: "tests" }
		const ids = (of: typeof stack) => imageSteps(nowhere, of, options).map(({ id }) => id)
		expect(ids(stack)).toEqual(["image-worker", "image-worker-agent"])
		expect(ids(describeStack(environmentWith(2), [1]))).not.toContain("image-worker")
	})
})

test("one worker has all GPUs of the machine", () => {
	const { compose } = renderedWith(1)
	const devices = compose.services["worker-1"]?.deploy?.resources.reservations.devices
	expect(devices).toEqual([{ driver: "nvidia", count: "all", capabilities: ["gpu"] }])
})

describe("the tokens", () => {
	const before = renderedWith(2).environment.text

	test("that are there are kept, to the letter, when nobody brings others", () => {
		const again = renderWorkerEnvironment(stackWith(2), { existing: before })
		expect(again.text).toBe(before)
		expect(again.taken).toEqual([])
	})

	test("that are brought replace those that are there", () => {
		const other = new Secret("another-made-up-key-of-the-tests-0123456789")
		const text = [1, 2]
			.map((n) => `WORKER_TOKEN_${n}=${serviceToken(other, "worker", `gpu-1-${n}`, 1)}\n`)
			.join("")
		const { environment } = renderedWith(2, before, text)
		expect(environment.taken).toEqual(["WORKER_TOKEN_1", "WORKER_TOKEN_2"])
		for (const line of text.trim().split("\n")) expect(environment.text).toContain(line)
	})

	test("keep what people put beside them", () => {
		const { environment } = renderedWith(2, `${before}HF_TOKEN=hf_made_up\n`)
		expect(environment.text).toContain("HF_TOKEN=hf_made_up\n")
	})

	test("of a worker that is no more are left out", () => {
		const { environment } = renderedWith(1, before)
		expect(environment.dropped).toEqual(["WORKER_TOKEN_2"])
		expect(environment.text).not.toContain("gpu-1-2")
	})

	test.each([
		["of another host", /is the token of gpu-2-1, and has to be that of gpu-1-1/, "worker", "gpu-2-1"],
		["of a frontend", /no worker's token/, "frontend", "gpu-1-1"],
	] as const)("%s are refused, and not shown", (_, says, role, name) => {
		const token = serviceToken(new Secret("k".repeat(32)), role, name, 1)
		const refused = () => renderedWith(1, "", `WORKER_TOKEN_1=${token}\n`)
		expect(refused).toThrow(says)
		try {
			refused()
		} catch (error) {
			expect(`${error} ${JSON.stringify(error)}`).not.toContain(token.split(":")[3])
		}
	})

	test.each([
		["none at all", "", ""],
		["one too few", "", handedBy(1).text],
	])("that are missing, %s, are said to come from the app server", (_, existing, text) => {
		expect(() => renderedWith(2, existing, text)).toThrow(
			expect.objectContaining({
				exitCode: 2,
				message: expect.stringMatching(/has no WORKER_TOKEN_[12]/),
				hint: expect.stringContaining("workers/gpu-1.env"),
			}),
		)
	})

	test("are made anew with the key", () => {
		const first = handedBy(2)
		expect(handedBy(2, "TOKEN_KEY=another-made-up-key-of-the-tests-0123456789\n").text).not.toBe(first.text)
		expect(handedBy(2).text).toBe(first.text)
	})
})

test("without the app server's address in the VPN nothing is rendered, and what to write is said", () => {
	const { stack, ...rest } = environmentWith(1)
	const { vpnAddress: _, ...without } = stack ?? stackOf(rest as never)
	expect(() => describeStack({ ...rest, stack: without }, [], host(1))).toThrow(
		expect.objectContaining({ exitCode: 2, hint: expect.stringContaining("vpnAddress") }),
	)
})
