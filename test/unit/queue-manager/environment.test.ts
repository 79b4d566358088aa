// The environment is read as Compose leaves it, and what is shown of it holds no secret.
import { expect, test } from "vitest"
import {
	activeEndpoint,
	activeGpu,
	configuredEndpoints,
	endpointName,
	readEnvironment,
} from "../../../src/queue-manager/environment.ts"

const open = { AUTH_MODE: "open" }
const secrets = { PROXY_SECRET: "p".repeat(32), TOKEN_KEY: "t".repeat(32) }

test("an empty variable counts as not set", () => {
	const { PORT, QUEUE_MODE, REDIS_PASSWORD } = readEnvironment({
		...open,
		PORT: "",
		QUEUE_MODE: "",
		REDIS_PASSWORD: "",
	})
	expect([PORT, QUEUE_MODE, REDIS_PASSWORD]).toEqual([3000, "fifo", undefined])
})

test("every wrong variable is named, and no value is shown", () => {
	const wrong = { ...open, PORT: "http", QUEUE_MODE: "lifo", MAX_QUEUE_DEPTH: "-1", LOG_LEVEL: "hunter2" }
	expect(() => readEnvironment(wrong)).toThrow(/PORT.*QUEUE_MODE|QUEUE_MODE.*PORT/)
	expect(() => readEnvironment(wrong)).not.toThrow(/hunter2/)
})

test("nobody gets the proxy's mode without its secrets, and it is what one gets unasked", () => {
	expect(() => readEnvironment({})).toThrow(/PROXY_SECRET.*TOKEN_KEY/)
	expect(() => readEnvironment({ ...secrets, TOKEN_KEY: "short" })).toThrow(/TOKEN_KEY/)
	expect(readEnvironment(secrets).AUTH_MODE).toBe("proxy")
	expect(JSON.stringify(readEnvironment(secrets))).not.toContain("pppp")
})

test.each([
	["default", "serverless", "SERVERLESS_ENDPOINT"],
	["h200-spot", "H200-141GB-SPOT", "SERVERLESS_ENDPOINT_H200_SPOT"],
	["h200-on-demand", "H200-141GB", "SERVERLESS_ENDPOINT_H200_ON_DEMAND"],
	["b300-spot", "B300-288GB-SPOT", "SERVERLESS_ENDPOINT_B300_SPOT"],
	["b300-on-demand", "B300-288GB", "SERVERLESS_ENDPOINT_B300_ON_DEMAND"],
])("with SERVERLESS_ACTIVE=%s jobs run on %s, at its own endpoint", (active, gpu, variable) => {
	const environment = readEnvironment({
		...open,
		INFERENCE_MODE: "serverless",
		SERVERLESS_ACTIVE: active,
		[variable]: "https://gpus.example.test/this-one",
	})
	const chosen = activeEndpoint(environment, undefined)
	expect(activeGpu(environment, chosen)).toBe(gpu)
	expect(endpointName(configuredEndpoints(environment).get(chosen))).toBe("this-one")
	expect(activeGpu({ ...environment, INFERENCE_MODE: "local" }, chosen)).toBe("local")
	expect(configuredEndpoints({ ...environment, INFERENCE_MODE: "local" }).size).toBe(0)
})

test("what an instructor chose counts while it is configured, and not after", () => {
	const environment = readEnvironment({
		...open,
		INFERENCE_MODE: "serverless",
		SERVERLESS_ENDPOINT: "https://gpus.example.test/one",
		SERVERLESS_ENDPOINT_B300_SPOT: "https://gpus.example.test/two",
	})
	expect(activeEndpoint(environment, "b300-spot")).toBe("b300-spot")
	expect(activeEndpoint(environment, "h200-spot")).toBe("default")
	expect(activeEndpoint(environment, "no such")).toBe("default")
})

test.each([
	["https://gpus.example.test/deployments/h200-spot?key=hunter2", "h200-spot"],
	["https://user:hunter2@gpu-7.example.test/", "gpu-7"],
	["https://example.test/a%20b", "serverless"],
	["not an address: hunter2!", "serverless"],
])("the name of an endpoint tells neither its address nor a key: %s", (endpoint, name) => {
	expect(endpointName(endpoint)).toBe(name)
})
