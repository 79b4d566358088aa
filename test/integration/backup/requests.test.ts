// What a backup asks of a bucket, counted in the server's own log.
import { writeFileSync } from "node:fs"
import { expect, test } from "vitest"
import { createWorld } from "../../support/cli.ts"

const words = ["backup"]

test("when nothing has changed, a backup of everything is the probe and one list, and no upload", async () => {
	await using world = await createWorld()
	expect((await world.run(words)).exitCode).toBe(0)
	const before = world.s3.log.length
	const again = await world.run(words)
	expect(again.exitCode, again.stderr).toBe(0)
	const asked = world.s3.log.slice(before).map(({ operation }) => operation)
	expect(asked.filter((operation) => operation === "ListObjectsV2")).toHaveLength(2)
	expect(asked.filter((operation) => !/^(ListObjectsV2|GetObject)$/.test(operation))).toEqual([])

	// What has just been stored is asked for anew: the list from before doesn't know it.
	writeFileSync(world.path("server/etc/fail2ban/jail.local"), "[sshd]\nenabled = false\n")
	const changed = await world.run([...words, "--json"])
	expect([changed.exitCode, changed.outcomes["fail2ban"]]).toEqual([0, "applied"])
})
