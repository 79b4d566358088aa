// What needs neither disk nor network: checksums, keys, endpoint rules, retries.
import { describe, expect, test } from "vitest"
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
