// What needs neither disk nor network: checksums, keys, endpoint rules, retries.
import { describe, expect, test } from "vitest"
import { checkR2Endpoint } from "../../../src/lib/formats/r2-endpoint.ts"
import { crc64nvme } from "../../../src/lib/storage/crc64nvme.ts"
import { checkNewKey, problemOfKey } from "../../../src/lib/storage/keys.ts"
import { retryStrategy } from "../../../src/lib/storage/s3-retries.ts"
import { crc64Of } from "../../support/s3-server/checksums.ts"

describe("CRC-64/NVME", () => {
	test("has the published check value", () => {
		const crc = crc64nvme()
		crc.update(Buffer.from("123456789"))
		expect(crc.hex()).toBe("ae8b14860a799888")
		expect(crc64Of(Buffer.from("123456789"))).toBe(crc.base64())
	})

	test("is the same however the bytes are cut", () => {
		const bytes = Buffer.from(Array.from({ length: 1000 }, (_, index) => (index * 37) & 255))
		for (const cut of [0, 1, 7, 8, 9, 500, 999]) {
			const crc = crc64nvme()
			crc.update(bytes.subarray(0, cut))
			crc.update(bytes.subarray(cut))
			expect(crc.base64()).toBe(crc64Of(bytes))
		}
	})
})

const account = "0123456789abcdef0123456789abcdef"
const right = `https://${account}.eu.r2.cloudflarestorage.com`

describe("the endpoint of an R2 bucket", () => {
	test("is right as Cloudflare writes it", () => {
		expect(checkR2Endpoint(right)).toEqual([])
	})

	test.each([
		["without .eu", `https://${account}.r2.cloudflarestorage.com`, /`.eu` is missing/],
		["with .eu at the end", `https://${account}.r2.cloudflarestorage.com.eu`, /at the end/],
		["with .eu twice", `https://${account}.eu.eu.r2.cloudflarestorage.com`, /twice/],
		["with .eu before the account", `https://eu.${account}.r2.cloudflarestorage.com`, /before the account/],
		["over http", `http://${account}.eu.r2.cloudflarestorage.com`, /https:\/\/ only/],
		["without a scheme", `${account}.eu.r2.cloudflarestorage.com`, /does not begin/],
		["with the bucket as path", `${right}/vault`, /path/],
		["with a slash at the end", `${right}/`, /slash/],
		["with a port", `${right}:8443`, /port 8443/],
		[
			"with the bucket in the host",
			`https://vault.${account}.eu.r2.cloudflarestorage.com`,
			/more than the account/,
		],
		["with keys in it", `https://id:key@${account}.eu.r2.cloudflarestorage.com`, /password/],
	])("%s is one problem whose fix is the right address", (_, text, problem) => {
		const problems = checkR2Endpoint(text)
		expect(problems.map((found) => found.problem)).toEqual([expect.stringMatching(problem)])
		expect(problems[0]?.fix).toContain(right)
	})

	test("names an account that can't be one, another service, and what is no address", () => {
		expect(checkR2Endpoint("https://mine.eu.r2.cloudflarestorage.com")[0]?.problem).toMatch(/32 digits/)
		expect(checkR2Endpoint("https://s3.example.test")[0]?.problem).toMatch(/not a host of/)
		expect(checkR2Endpoint("https://")[0]?.problem).toMatch(/not an address/)
	})
})

test("a key may not leave its store, and may not be what stores keep for themselves", () => {
	expect(problemOfKey("production/env/20260102T030405Z-0123456789ab.tar.zst")).toBeUndefined()
	for (const key of ["..", "a/..", "/a", "a//b", "", "a\0", "\ud800"]) expect(problemOfKey(key)).toBeDefined()
	expect(() => checkNewKey("a/b.bad-20260102T030405Z-2", "share")).toThrow(/kept for/)
})

describe("retries", () => {
	const limits = { attempts: 3, baseDelayMs: 100, longestDelayMs: 1000, random: () => 0.5 }
	const transient = { errorType: "TRANSIENT" }

	test("end after the attempts, with growing pauses", async () => {
		const strategy = retryStrategy(limits)
		const first = await strategy.refreshRetryTokenForRetry(
			await strategy.acquireInitialRetryToken(),
			transient,
		)
		const second = await strategy.refreshRetryTokenForRetry(first, transient)
		expect([first.getRetryDelay(), second.getRetryDelay()]).toEqual([50, 100])
		await expect(strategy.refreshRetryTokenForRetry(second, transient)).rejects.toThrow(/no attempts/)
	})

	test("never repeat a refusal, and don't wait for who asks to come back much later", async () => {
		const strategy = retryStrategy(limits)
		const start = await strategy.acquireInitialRetryToken()
		await expect(strategy.refreshRetryTokenForRetry(start, { errorType: "CLIENT_ERROR" })).rejects.toThrow()
		const retryAfterHint = new Date(Date.now() + 60_000)
		const asked = strategy.refreshRetryTokenForRetry(start, { errorType: "THROTTLING", retryAfterHint })
		await expect(asked).rejects.toThrow(/much later/)
	})
})
