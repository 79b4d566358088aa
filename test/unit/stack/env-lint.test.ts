// The lint against the ten inconsistencies that one audit found together, and their kin.
import { describe, expect, test } from "vitest"
import { lintEnvFile } from "../../../src/lib/stack/env-lint.ts"
import { renderedFor, stackFor } from "../../support/stack.ts"

const right = (changes: Parameters<typeof stackFor>[1] = {}) =>
	renderedFor(stackFor(2, changes)).find(({ path }) => path === ".env")?.text ?? ""
const withLines = (text: string, ...lines: string[]) => {
	const names = lines.map((line) => line.split("=")[0])
	const kept = text.split("\n").filter((line) => !names.includes(line.split("=")[0] ?? ""))
	return `${[...kept, ...lines].join("\n")}\n`
}
const kinds = (text: string) => lintEnvFile(text).map(({ kind, message }) => `${kind}: ${message}`)

const serverless = [
	"SERVERLESS_API_KEY=made-up",
	"SERVERLESS_ENDPOINT=https://containers.datacrunch.io/comfyume-test-vca-ftv-h200-spot",
]

describe("the lint", () => {
	test.each([
		[["REDIS_HOST="], "missing: REDIS_HOST"],
		[["REDIS_HOST=", "APP_SERVER_REDIS_HOST=mello"], "renamed: APP_SERVER_REDIS_HOST"],
		[["SERVERLESS_ENDPOINT=https://h200-spot.containers.verda.com"], "wrong: SERVERLESS_ENDPOINT"],
		[["R2_ENDPOINT=https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com"], "wrong: R2_ENDPOINT"],
		[["ADMIN_PASSWORD=pa$word"], "ambiguous: ADMIN_PASSWORD holds a $"],
		[["ADMIN_PASSWORD=pa#word"], "ambiguous: ADMIN_PASSWORD holds a #"],
		[["NGINX_CLIENT_MAX_BODY_SIZE=lots"], "wrong: NGINX_CLIENT_MAX_BODY_SIZE"],
		[["COMFYUI_VERSION=latest"], "wrong: COMFYUI_VERSION"],
		[["REDIS_BIND_IP=0.0.0.0"], "contradictory: Redis is published to the whole internet"],
		[["REDIS_BIND_IP=100.100.0.1"], "contradictory: Redis is published on the VPN"],
		[["INFERENCE_SERVER_REDIS_HOST=100.100.0.2"], "contradictory: GPU workers look for Redis"],
		[["INFERENCE_MODE=serverless"], "missing: SERVERLESS_API_KEY"],
		[
			["INFERENCE_MODE=serverless", ...serverless, "SERVERLESS_ACTIVE=b300-spot"],
			"contradictory: SERVERLESS_ACTIVE chooses SERVERLESS_ENDPOINT_B300_SPOT",
		],
		[["SERVERLESS_ACTIVE=h200-spot"], "contradictory: SERVERLESS_ACTIVE chooses an endpoint"],
		[["INFERENCE_MODE=sometimes"], "wrong: INFERENCE_MODE"],
		[["NUM_USERS=3", "USER_CREDENTIALS_USER001=user001:x"], "contradictory: NUM_USERS"],
		[
			["SERVERLESS_API_KEY=same-made-up", "VERDA_CLIENT_SECRET=same-made-up"],
			"contradictory: SERVERLESS_API_KEY is the cloud",
		],
		[["REDIS_PASSWORD=short"], "wrong: REDIS_PASSWORD"],
		[["REDIS_PROT=6379"], "unknown: REDIS_PROT"],
		[["DOMAIN=https://workshop.example.test"], "wrong: DOMAIN"],
		[["MODELS_PATH=models"], "wrong: MODELS_PATH"],
		[["REDIS_PORT=70000"], "wrong: REDIS_PORT"],
		[["REDIS_PORT 6379"], "unreadable: is not NAME=value"],
	])("finds %j", (lines, expected) => {
		const found = kinds(withLines(right({ inferenceMode: "redis" }), ...lines))
		expect(
			found.some((one) => one.startsWith(expected)),
			found.join("\n"),
		).toBe(true)
	})

	test("finds Windows line ends, a byte order mark and a name that stands twice", () => {
		const found = kinds(`\uFEFF${right().replaceAll("\n", "\r\n")}DEBUG=true\r\nDEBUG=false\r\n`)
		for (const expected of ["byte order mark", "CRLF", "DEBUG stands"])
			expect(found.some((one) => one.includes(expected))).toBe(true)
	})

	test("finds nothing in any stack's own file", () => {
		expect(lintEnvFile(right({ inferenceMode: "redis" }))).toEqual([])
		expect(lintEnvFile(right({ inferenceMode: "local" }))).toEqual([])
		expect(lintEnvFile(right({ inferenceMode: "redis", vpnAddress: "100.100.0.1" }))).toEqual([])
		expect(lintEnvFile(withLines(right({ inferenceMode: "serverless" }), ...serverless))).toEqual([])
	})

	test("never shows a value", () => {
		const found = JSON.stringify(
			lintEnvFile(withLines(right(), "ADMIN_PASSWORD=ver$y#secret", "REDIS_PASSWORD=ver$y", "DOMIAN=ver$y")),
		)
		expect(found).not.toContain("ver$y")
	})
})
