// The file ENVIRONMENT in a share's root: another environment's volume looks like one's own until it is written to.
import { existsSync, readdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { createWorld, inventory, type World } from "../../support/cli.ts"

let world: World
beforeEach(async () => {
	world = await createWorld()
})
afterEach(() => world[Symbol.asyncDispose]())

const name = (text: string) => writeFileSync(join(world.share, "ENVIRONMENT"), text)

test("a share of other environments is neither written to nor read from", async () => {
	expect((await world.run(["backup"])).exitCode).toBe(0)
	name("production\n")
	const before = inventory(world.share)
	writeFileSync(join(world.server, "home/dev/new.txt"), "since then\n")

	const backup = await world.run(["backup", "--json"])
	expect(backup.exitCode).not.toBe(0)
	expect(backup.stdout).toContain("is for production, not for sandbox")
	expect(inventory(world.share)).toEqual(before)

	await world.loseServer()
	const restore = await world.run(["restore", "--from", "share", "--identity-is-free", "--json"])
	expect(restore.exitCode).not.toBe(0)
	expect(restore.stdout).toContain("is for production, not for sandbox")
	expect(existsSync(join(world.server, "home/dev"))).toBe(false)
	expect(inventory(world.share)).toEqual(before)
})

test("one that names several serves each of them, and one without the file is as it was", async () => {
	name("production sandbox   # a clone\n")
	expect((await world.run(["backup"])).exitCode).toBe(0)
	expect(readdirSync(join(world.share, "cache/backups"))).toEqual(["sandbox"])
})
