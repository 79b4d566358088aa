import { describe, expect, test } from "vitest"
import { checkR2Endpoint } from "../../../src/lib/formats/r2-endpoint.ts"

const account = "0123456789abcdef0123456789abcdef"
const right = `https://${account}.eu.r2.cloudflarestorage.com`

describe("an R2 endpoint", () => {
	test("is right with .eu behind the account id", () => {
		expect(checkR2Endpoint(right)).toEqual([])
	})

	test("is right without .eu for a bucket without a jurisdiction", () => {
		const without = `https://${account}.r2.cloudflarestorage.com`
		expect(checkR2Endpoint(without, { jurisdiction: "default" })).toEqual([])
	})

	test.each([
		["no .eu", `https://${account}.r2.cloudflarestorage.com`, /has no \.eu behind the account id/],
		[".eu at the end", `https://${account}.r2.cloudflarestorage.com.eu`, /has \.eu at the end/],
		[
			".eu doubled behind the account",
			`https://${account}.eu.eu.r2.cloudflarestorage.com`,
			/eu more than once/,
		],
		[".eu both in place and at the end", `${right}.eu`, /eu more than once/],
		[".eu before the account", `https://eu.${account}.r2.cloudflarestorage.com`, /before the account id/],
		["http", `http://${account}.eu.r2.cloudflarestorage.com`, /is http/],
		["a path", `${right}/comfyume-cache-backups`, /goes on after the host name/],
		["a query", `${right}?x=1`, /goes on after the host name/],
		["a port", `${right}:8443`, /names port 8443/],
		[
			"the bucket in the host name",
			`https://cache.${account}.eu.r2.cloudflarestorage.com`,
			/has the bucket's name/,
		],
		["another host", "https://s3.example.test", /not an R2 endpoint/],
		["R2's public address", `https://pub-${account}.r2.dev`, /not an R2 endpoint/],
		[
			"an account id that is too short",
			"https://abc123.eu.r2.cloudflarestorage.com",
			/32 hexadecimal digits/,
		],
		["no account id", "https://eu.r2.cloudflarestorage.com", /no account id/],
		["no scheme", `${account}.eu.r2.cloudflarestorage.com`, /does not begin with https/],
		["another scheme", `s3://${account}.eu.r2.cloudflarestorage.com`, /not a web address/],
		["credentials", `https://key:word@${account}.eu.r2.cloudflarestorage.com`, /holds credentials/],
	])("with %s is refused with its reason", (_, endpoint, reason) => {
		const problems = checkR2Endpoint(endpoint)
		expect(problems.map(({ message }) => message).join("; ")).toMatch(reason)
		expect(problems).toHaveLength(1)
	})

	test("with .eu for a bucket without a jurisdiction is refused", () => {
		expect(checkR2Endpoint(right, { jurisdiction: "default" })[0]?.fix).toContain(`${account}.r2.`)
	})

	test("gets a fix that is itself right, from the account id that was written", () => {
		const [problem] = checkR2Endpoint(`http://x.${account.toUpperCase()}.r2.cloudflarestorage.com.eu/bucket`)
		const written = /https:\S*com/.exec(problem?.fix ?? "")?.[0] ?? ""
		expect(written).toBe(right)
		expect(checkR2Endpoint(written)).toEqual([])
	})

	test("with several mistakes has all of them named", () => {
		const problems = checkR2Endpoint(`http://cache.${account}.r2.cloudflarestorage.com.eu:90/x`)
		expect(problems).toHaveLength(5)
	})
})
