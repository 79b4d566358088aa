// The records by which a file is delivered once: Redis', and the stand-in that the delivery tests use, by one contract.
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import type { DeliveryRecords } from "../../../src/queue-manager/outputs/records.ts"
import { fileRecords } from "../../support/delivery-records.ts"
import { describeWith } from "../../support/parts.ts"
import { openTestEngine, type TestEngine } from "../../support/queue-manager-engine.ts"
import { startTestRedis, type TestRedis } from "../../support/redis.ts"

describeWith("redis", "delivery records", () => {
	let redis: TestRedis
	let engine: TestEngine
	const directory = mkdtempSync(join(tmpdir(), "comfyume-records-"))
	beforeAll(async () => {
		redis = await startTestRedis()
		engine = await openTestEngine(redis)
	})
	afterAll(async () => {
		await engine?.[Symbol.asyncDispose]()
		await redis?.[Symbol.asyncDispose]()
		rmSync(directory, { recursive: true, force: true })
	})

	const kinds: [string, () => DeliveryRecords][] = [
		["in Redis", () => engine.queue.deliveries],
		["in a file", () => fileRecords(join(directory, "records.json"))],
	]
	test.each(kinds)(
		"%s: a file has one name, a name one file, and a delivery is first once",
		async (_, open) => {
			const records = open()
			const one = { job: "j1", attempt: "a1", file: "9~x_00001_.png" }
			const other = { job: "j2", attempt: "a1", file: "9~x_00001_.png" }
			const named = (filename: string, user = "ann") => ({ user, node: "9", filename })
			expect(await records.find(one)).toBeUndefined()
			expect(await records.reserve(one, named("x_1.png"))).toEqual({ ...named("x_1.png"), state: "reserved" })
			// Asked again, also for another name: what holds, holds.
			expect(await records.reserve(one, named("x_2.png"))).toMatchObject({ filename: "x_1.png" })
			expect(await records.reserve(other, named("x_1.png"))).toBe("taken")
			expect(await records.reserve(other, named("x_1.png", "bob"))).toMatchObject({ user: "bob" })
			// Given up, it is free for others.
			expect(await records.reserve(one, named("x_3.png"), "x_1.png")).toMatchObject({ filename: "x_3.png" })
			const third = { ...other, job: "j3" }
			expect(await records.reserve(third, named("x_1.png"))).toMatchObject({ filename: "x_1.png" })
			const delivered = { ...one, ...named("x_3.png"), sizeBytes: 3, digest: "d" }
			const ends = await Promise.all([records.complete(delivered), records.complete(delivered)])
			expect(ends.toSorted()).toEqual(["already", "first"])
			expect(await records.find(one)).toEqual({ ...named("x_3.png"), state: "delivered" })
			// What is delivered keeps its name, whoever wants to give it up.
			expect(await records.reserve(one, named("x_4.png"), "x_3.png")).toMatchObject({ filename: "x_3.png" })
			await expect(records.complete({ ...delivered, job: "j9" })).rejects.toThrow(/didn't reserve/)
		},
	)

	test("the event of a file comes with its delivery, once", async () => {
		const id = { job: "j5", attempt: "a1", file: "f.png" }
		const records = engine.queue.deliveries
		await records.reserve(id, { user: "cem", node: "9", filename: "f_1.png" })
		const delivered = { ...id, user: "cem", node: "9", filename: "f_1.png", sizeBytes: 3, digest: "d" }
		await Promise.all([records.complete(delivered), records.complete(delivered)])
		const events = (await engine.queue.eventsAfter("0", 1000)).filter(
			({ fields }) => fields.get("id") === "j5",
		)
		expect(events.map(({ fields }) => [fields.get("type"), fields.get("filename")])).toEqual([
			["output_delivered", "f_1.png"],
		])
	})
})
