import { expect, test } from "vitest"
import type { LocalHost } from "../../../src/lib/host/local.ts"
import { rememberedHashes } from "../../../src/lib/stack/compose-hashes.ts"

/** A machine of one file, as far as it is asked for. */
function machine({ standIn = false, readOnly = false } = {}) {
	const disk = new Map<string, string>()
	const host = {
		standIn,
		files: { makeDirectory: async () => {} },
		read: async (path: string) => {
			const text = disk.get(path)
			return text === undefined ? undefined : Buffer.from(text)
		},
		write: async (path: string, text: string) => {
			if (readOnly) throw new Error("a dry run changes nothing")
			disk.set(path, text)
		},
	} as unknown as LocalHost
	let asked = 0
	const ask = async () => {
		asked++
		return new Map([["redis", [`hash-${asked}`, "alone"]]])
	}
	return {
		disk,
		asked: () => asked,
		get: (...inputs: string[]) => rememberedHashes(host, async () => inputs, ask),
	}
}

test("compose is asked once for the same version and files, and again when one of them changed", async () => {
	const { get, asked } = machine()
	const first = await get("2.30", "services: {}", "A=1")
	expect(await get("2.30", "services: {}", "A=1")).toEqual(first)
	expect(asked()).toBe(1)
	for (const inputs of [
		["2.31", "services: {}", "A=1"],
		["2.31", "services: { redis: {} }", "A=1"],
		["2.31", "services: { redis: {} }", "A=2"],
	])
		expect((await get(...inputs)).get("redis")).toEqual([`hash-${asked()}`, "alone"])
	expect(asked()).toBe(4)
})

test("what is kept is a digest of the files, and none of their values", async () => {
	const { get, disk } = machine()
	await get("2.30", "REDIS_PASSWORD=made-up-value")
	expect([...disk.values()].join()).not.toContain("made-up-value")
})

test("what lies there and is damaged is asked anew, and a run that may not write goes on", async () => {
	const damaged = machine()
	await damaged.get("2.30")
	for (const path of damaged.disk.keys()) damaged.disk.set(path, "{")
	await damaged.get("2.30")
	expect(damaged.asked()).toBe(2)
	const looking = machine({ readOnly: true })
	expect((await looking.get("2.30")).size).toBe(1)
})

test("of a directory that stands in for a machine nothing is kept", async () => {
	const { get, disk } = machine({ standIn: true })
	await get("2.30")
	expect(disk.size).toBe(0)
})
