// What one user has made unreadable fails nobody else's backup: it stays as it was stored before, and is named.
import { execFileSync } from "node:child_process"
import { existsSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { DatabaseSync } from "node:sqlite"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { type Base, choosePacking } from "../../../src/lib/artifacts/incremental.ts"
import type { TreeEntry } from "../../../src/lib/artifacts/tree.ts"
import { treeOf } from "../../../src/lib/artifacts/tree.ts"
import { createSandbox, type Ran, type Sandbox } from "../../support/sandbox.ts"

const artifact = "user-data"
const only = [artifact]
const root = "etc/comfyume/stack/user_data"
const bad = "user003/comfyui.db"

let sandbox: Sandbox
let server: string
let opened: DatabaseSync[] = []
beforeEach(async () => {
	sandbox = await createSandbox()
	server = await sandbox.freshServer("server")
	write("user001/workflow.json", '{"first":1}')
	const database = new DatabaseSync(at(bad, true))
	database.exec("create table jobs(text); insert into jobs values ('one')")
	database.close()
})
afterEach(() => {
	for (const database of opened) database.close()
	opened = []
	// Node can't remove what is deeper than a path may be long.
	execFileSync("rm", ["-rf", sandbox.directory])
})

function at(path: string, make = false, under = server): string {
	const file = join(under, root, path)
	if (make) mkdirSync(join(file, ".."), { recursive: true })
	return file
}
const write = (path: string, content: string | Buffer) => writeFileSync(at(path, true), content)
const said = (ran: Pick<Ran, "events">) => JSON.stringify(ran.events, null, 1)

async function backup(options: Parameters<Sandbox["backup"]>[1] = {}): Promise<Ran> {
	const ran = await sandbox.backup(server, { only, ...options })
	sandbox.later(60)
	return ran
}

async function restored(): Promise<(path: string) => Buffer> {
	const fresh = await sandbox.freshServer(`fresh-${sandbox.now().getTime()}`)
	const ran = await sandbox.restore(fresh, { only })
	expect(ran.exitCode, said(ran)).toBe(0)
	return (path) => readFileSync(at(path, false, fresh))
}

/** It can't be opened by SQLite, which says so at once. */
function breakDatabase(): void {
	write(bad, Buffer.concat([Buffer.from("SQLite format 3\0"), Buffer.alloc(4096, 255)]))
	write(`${bad}-journal`, "x")
}

function holdDatabase(): void {
	const database = new DatabaseSync(at(bad))
	opened.push(database)
	database.exec("pragma journal_mode=delete; begin exclusive; insert into jobs values ('two')")
}

describe.each([
	["a database that is broken", breakDatabase, "can't be copied"],
	["a database that somebody holds", holdDatabase, "held by a transaction"],
	["a file of holes", () => truncateSync(at(bad), 2 ** 40), "it claims 1099511627776 bytes"],
] as const)("%s", (_what, spoil, says) => {
	test("stays as it was before, all else is stored, and the run ends with 3 and names it", async () => {
		expect((await backup()).exitCode).toBe(0)
		const before = readFileSync(at(bad))
		spoil()
		write("user001/workflow.json", '{"second":2}')
		const ran = await backup()
		expect([ran.exitCode, ran.outcome(artifact)], said(ran)).toEqual([3, "applied"])
		expect(ran.notes.join("\n")).toMatch(
			new RegExp(`/${bad} stays as \\d{8}T\\d{6}Z-[0-9a-f]{12} has it: .*${says}`),
		)
		const read = await restored()
		expect(read("user001/workflow.json").toString()).toBe('{"second":2}')
		expect(read(bad).equals(before)).toBe(true)
	}, 120_000)
})

describe("as long as it can't be read", () => {
	test("nothing is packed again because of it, and its archive is kept whatever becomes of others", async () => {
		await backup()
		const before = readFileSync(at(bad))
		breakDatabase()
		for (let hour = 0; hour < 36; hour++) {
			write(`user002/of hour ${hour}.json`, `{"hour":${hour}}`)
			const ran = await backup()
			expect([ran.exitCode, ran.outcome(artifact)], said(ran)).toEqual([3, "applied"])
		}
		const ran = await backup()
		expect([ran.exitCode, ran.outcome(artifact)], said(ran)).toEqual([3, "satisfied"])
		expect((await restored())(bad).equals(before)).toBe(true)
	}, 120_000)

	test("--full packs all else anew, and keeps it too", async () => {
		await backup()
		const before = readFileSync(at(bad))
		breakDatabase()
		const ran = await backup({ full: true })
		expect([ran.exitCode, ran.outcome(artifact)], said(ran)).toEqual([3, "applied"])
		expect((await restored())(bad).equals(before)).toBe(true)
	})

	test("what was never stored is left out, and named", async () => {
		breakDatabase()
		const ran = await backup()
		expect([ran.exitCode, ran.outcome(artifact)], said(ran)).toEqual([3, "applied"])
		expect(ran.notes.join("\n")).toContain(`/${bad} is left out: the database`)
		const read = await restored()
		expect(read("user001/workflow.json").toString()).toBe('{"first":1}')
		expect(() => read(bad)).toThrow(/ENOENT/)
	})

	test("the next backup that can read it stores it as it is, and all is well", async () => {
		await backup()
		const right = readFileSync(at(bad))
		breakDatabase()
		expect((await backup()).exitCode).toBe(3)
		rmSync(at(`${bad}-journal`))
		write(bad, right)
		const ran = await backup()
		expect(ran.exitCode, said(ran)).toBe(0)
	})
})

test("a directory deeper than a path may be long fails nobody, and is named", async () => {
	expect((await backup()).exitCode).toBe(0)
	mkdirSync(at("user003/deep"))
	const deepen = 'cd "$1"; for number in $(seq 60); do mkdir "$2"; cd "$2"; done; echo lost >file'
	execFileSync("bash", ["-euc", deepen, "bash", at("user003/deep"), "d".repeat(100)])
	write("user001/workflow.json", '{"second":2}')
	const ran = await backup()
	expect([ran.exitCode, ran.outcome(artifact)], said(ran)).toEqual([3, "applied"])
	expect(ran.notes.join("\n")).toMatch(/user003\/deep\/d+.*… is left out: its path is longer than 3500 bytes/)
	const read = await restored()
	expect(read("user001/workflow.json").toString()).toBe('{"second":2}')
	// On a server that still has it, a restore is right as well.
	expect((await sandbox.restore(server, { only })).exitCode).toBe(0)
	expect(existsSync(at("user003/deep"))).toBe(true)
})

test("an archive that alone has what can't be read is never given up", () => {
	const entry = (path: string, sizeBytes: number): TreeEntry => ({
		...{ path, type: "file", mode: 0o644, owner: "root", group: "root", sizeBytes, digest: path },
	})
	const entries = [
		entry("held", 1),
		...Array.from({ length: 40 }, (_, index) => entry(`x${index}`, 1000 + index)),
	]
	const base: Base = {
		entries: entries.map((each, index) => ({ ...each, archive: `a${index}` })),
		archives: entries.map((each, index) => ({
			...{
				id: `a${index}`,
				digest: "",
				sizeBytes: 1,
				unpackedBytes: each.sizeBytes * (index === 0 ? 1000 : 1),
			},
		})),
	}
	const packing = choosePacking(treeOf(entries), base, { carried: new Set(["held"]) })
	expect(packing.kept.get("held")).toBe("a0")
	expect(packing.archives.length).toBeLessThan(32)
	const full = choosePacking(treeOf(entries), base, { carried: new Set(["held"]), full: true })
	expect([...full.kept]).toEqual([["held", "a0"]])
})
