// Room for what is large: shares, and a line in which nobody is passed over for ever or held up by another's share.
import { expect, test } from "vitest"
import { roomForResults } from "../../../src/queue-manager/http/room.ts"

const mebibyte = 1024 * 1024
const user = (name: string) => ({ role: "user", name }) as const
const isGiven = (taken: unknown) => typeof taken === "function"

test("a user has a share, and all together have a bound", async () => {
	const room = roomForResults()
	const ann = room.take(user("ann"), 50 * mebibyte)
	expect(isGiven(ann)).toBe(true)
	expect(room.take(user("ann"), 20 * mebibyte)).toBe("own")
	for (const name of ["bob", "cem", "dan", "eve"])
		expect(isGiven(room.take(user(name), 50 * mebibyte))).toBe(true)
	expect(room.take(user("fay"), 50 * mebibyte)).toBe("all")
	if (typeof ann === "function") {
		ann()
		// Said twice it is still given back once.
		ann()
	}
	expect(isGiven(room.take(user("fay"), 50 * mebibyte))).toBe(true)
	expect(room.take(user("gil"), 50 * mebibyte)).toBe("all")
})

test("who waits goes in line, past those who wait for their own room only", async () => {
	const room = roomForResults()
	const order: string[] = []
	const wait = async (name: string, size: number) => {
		const free = await room.wait(user(name), size * mebibyte, 20_000)
		order.push(name)
		return free
	}
	const held = await Promise.all(["ann", "bob", "cem", "dan"].map((name) => wait(name, 60)))
	const more = [wait("ann", 60), wait("eve", 40), wait("fay", 10)]
	held[1]?.()
	const eve = await more[1]
	const fay = await more[2]
	expect(order.slice(4)).toEqual(["eve", "fay"])
	held[0]?.()
	await more[0]
	expect(order.at(-1)).toBe("ann")
	eve?.()
	fay?.()
})

test("who waited long enough is told so, and leaves the line", async () => {
	const room = roomForResults()
	const first = await room.wait(user("ann"), 60 * mebibyte, 1)
	expect(await room.wait(user("ann"), 60 * mebibyte, 1)).toBeUndefined()
	first?.()
	expect(isGiven(await room.wait(user("ann"), 60 * mebibyte, 1))).toBe(true)
})
