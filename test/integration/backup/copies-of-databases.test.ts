// The copy of a database that is made only to look at it: nothing of it stays, even when the run is killed meanwhile.
import { mkdirSync, readdirSync } from "node:fs"
import { join } from "node:path"
import { DatabaseSync } from "node:sqlite"
import { expect, test } from "vitest"
import { createWorld, inventory } from "../../support/cli.ts"
import { poll } from "../../support/poll.ts"

const user = "server/etc/comfyume/stack/user_data/user001"
const work = "server/var/lib/comfyume/work"
const listed = (directory: string) => {
	try {
		return readdirSync(directory)
	} catch {
		return []
	}
}

test("of a run that was killed while it looked, the next one clears what it left, and /tmp never had any", async () => {
	await using world = await createWorld()
	const temporary = world.path("tmp")
	mkdirSync(temporary)
	mkdirSync(world.path(user), { recursive: true })
	const options = { variables: { TMPDIR: temporary } }
	const words = ["backup", "--only", "user-data"]
	{
		using database = new DatabaseSync(join(world.path(user), "comfyui.db"))
		database.exec("create table jobs(text); pragma journal_mode=delete")
		database.exec("begin exclusive; insert into jobs values ('one')")
		const { child, ended } = world.start(words, options)
		const copies = () => [temporary, world.path(work)].flatMap(listed).filter((name) => /database/.test(name))
		await poll(() => copies().length > 0, { what: "it looks at the database", deadlineMs: 20_000 })
		child.kill("SIGKILL")
		await ended
		expect(listed(temporary)).toEqual([])
		expect(copies()).toHaveLength(1)
		database.exec("rollback")
	}
	const again = await world.run(words, options)
	expect(again.exitCode, again.stderr).toBe(0)
	expect([listed(temporary), listed(world.path(work))]).toEqual([[], []])
})

test("a dry run makes nothing on the server for it", async () => {
	await using world = await createWorld()
	mkdirSync(world.path(user), { recursive: true })
	using database = new DatabaseSync(join(world.path(user), "comfyui.db"))
	database.exec("pragma journal_mode=wal; create table jobs(text); insert into jobs values ('one')")
	// Readers leave their marks in what SQLite keeps beside; the names are what a copy would add to.
	const before = [...inventory(world.path("server")).keys()]
	const dry = await world.run(["backup", "--only", "user-data", "--dry-run"])
	expect(dry.exitCode, dry.stderr).toBe(0)
	expect([...inventory(world.path("server")).keys()]).toEqual(before)
})
