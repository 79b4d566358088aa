// One user's workflow of last Tuesday: some files out of a snapshot, and nothing else of it.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { createSandbox, flipBit, type Sandbox } from "../../support/sandbox.ts"

const root = "etc/comfyume/stack/user_data"
const workflow = `${root}/user003/default/workflows/film.json`

let sandbox: Sandbox
let server: string
const tuesday = "2026-11-17T18:00:00Z"
beforeEach(async () => {
	sandbox = await createSandbox()
	server = await sandbox.fillServer()
	write(workflow, "tuesday")
	write(`${root}/user004/default/workflows/film.json`, "another user's")
	sandbox.at("2026-11-17T17:10:00Z")
	await backup()
	write(workflow, "wednesday")
	write(`${root}/user004/default/workflows/film.json`, "another user's, since")
	sandbox.at("2026-11-18T17:10:00Z")
	await backup()
})
afterEach(() => sandbox[Symbol.dispose]())

function write(path: string, content: string): void {
	mkdirSync(join(server, path, ".."), { recursive: true })
	writeFileSync(join(server, path), content)
}
const read = (path: string) => readFileSync(join(server, path), "utf8")
const said = (ran: { events: readonly unknown[] }) => JSON.stringify(ran.events, null, 1)

async function backup(): Promise<void> {
	const ran = await sandbox.backup(server, { only: ["user-data", "home"] })
	expect(ran.exitCode, said(ran)).toBe(0)
}

test("comes back, what stood there is kept, and no other user's is touched", async () => {
	const files = ["user003/default/workflows/*.json"]
	const ran = await sandbox.restore(server, { only: ["user-data"], files, at: new Date(tuesday) })
	expect(ran.exitCode, said(ran)).toBe(0)
	expect(read(workflow)).toBe("tuesday")
	expect(read(`${root}/user004/default/workflows/film.json`)).toBe("another user's, since")
	const [, kept = ""] = /what stood there is kept in (\S+)/.exec(ran.notes.join("\n")) ?? []
	expect(readFileSync(join(server, kept, workflow), "utf8")).toBe("wednesday")
	const again = await sandbox.restore(server, { only: ["user-data"], files, at: new Date(tuesday) })
	expect(again.outcome("user-data")).toBe("satisfied")
})

test("out of a snapshot that is one archive, too", async () => {
	write("home/dev/notes with spaces.txt", "edited since")
	const ran = await sandbox.restore(server, {
		only: ["home"],
		files: ["notes with spaces.txt"],
		at: new Date(tuesday),
	})
	expect(ran.exitCode, said(ran)).toBe(0)
	expect(read("home/dev/notes with spaces.txt")).toBe("an operator's notes\n")
	expect(read("home/dev/.zshrc")).toContain("EDITOR")
})

test("a name with a star in it is a name, and what else it would stand for has no say", async () => {
	const starred = `${root}/user003/default/workflows/film*.json`
	write(starred, "a star")
	sandbox.at("2026-11-18T18:10:00Z")
	await backup()
	write(starred, "changed since")
	write(`${root}/user003/default/workflows/film 2.json`, "newer than the snapshot")
	const restoring = { only: ["user-data"], files: ["user003/default/workflows/film*.json"] }
	const ran = await sandbox.restore(server, restoring)
	expect([ran.exitCode, ran.outcome("user-data")], said(ran)).toEqual([0, "applied"])
	expect(read(starred)).toBe("a star")
	expect(read(`${root}/user003/default/workflows/film 2.json`)).toBe("newer than the snapshot")
	expect((await sandbox.restore(server, restoring)).outcome("user-data")).toBe("satisfied")
})

test("what was deleted comes back with its directories", async () => {
	rmSync(join(server, root, "user003"), { recursive: true })
	const ran = await sandbox.restore(server, { only: ["user-data"], files: [`/${workflow}`] })
	expect(ran.exitCode, said(ran)).toBe(0)
	expect(read(workflow)).toBe("wednesday")
})

test("--into puts it into a new directory, and changes nothing of the server", async () => {
	const before = sandbox.inventory(server, [root])
	const options = { only: ["user-data"], files: ["user003/**"], into: "/root/look", at: new Date(tuesday) }
	const ran = await sandbox.restore(server, options)
	expect(ran.exitCode, said(ran)).toBe(0)
	expect(read(`root/look/${workflow}`)).toBe("tuesday")
	expect(existsSync(join(server, "root/look", root, "user004"))).toBe(false)
	expect(sandbox.inventory(server, [root])).toBe(before)
	expect((await sandbox.restore(server, options)).exitCode).toBe(8)
})

test("a dry run lists what it would bring", async () => {
	const ran = await sandbox.restore(server, {
		only: ["user-data"],
		files: ["user003/**"],
		dryRun: true,
		at: new Date(tuesday),
	})
	expect(ran.notes.join("\n")).toContain(`/${workflow} (7 B)`)
	expect(ran.outcome("user-data")).toBe("planned")
	expect(read(workflow)).toBe("wednesday")
})

describe("refuses, and says what to type", () => {
	test("a pattern that means nothing there", async () => {
		const ran = await sandbox.restore(server, { only: ["user-data"], files: ["user009/**"] })
		expect(ran.exitCode).toBe(3)
		expect(said(ran)).toMatch(/holds nothing that is .*user009/)
	})

	test("several artifacts", async () => {
		const asked = sandbox.restore(server, { only: ["user-data", "home"], files: ["x"] })
		await expect(asked).rejects.toThrow(/one artifact/)
	})
})

test("of a damaged snapshot takes the copy elsewhere", async () => {
	const directory = join(sandbox.share, "sandbox/user-data")

	for (const name of readdirSync(directory).filter((name) => name.endsWith(".tar.zst")))
		flipBit(join(directory, name))
	const ran = await sandbox.restore(server, {
		only: ["user-data"],
		files: ["user003/**"],
		at: new Date(tuesday),
	})
	expect(ran.exitCode, said(ran)).toBe(0)
	expect(read(workflow)).toBe("tuesday")
})
