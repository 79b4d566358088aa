// Users' directories: what has changed is packed, an index names the rest, and any of their dates comes back.
import { execFileSync } from "node:child_process"
import {
	appendFileSync,
	chmodSync,
	existsSync,
	mkdirSync,
	readdirSync,
	readFileSync,
	renameSync,
	rmSync,
	statSync,
	symlinkSync,
	utimesSync,
	writeFileSync,
} from "node:fs"
import { join } from "node:path"
import { DatabaseSync } from "node:sqlite"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { stageDatabase } from "../../../src/lib/artifacts/database.ts"
import { createSandbox, flipBit, type Sandbox } from "../../support/sandbox.ts"

const artifact = "user-data"
const only = [artifact]
const root = "etc/comfyume/stack/user_data"

let sandbox: Sandbox
let server: string
beforeEach(async () => {
	sandbox = await createSandbox()
	server = await sandbox.freshServer("server")
	write("user001/default/workflows/first.json", '{"first":1}')
	write("user001/comfy.settings.json", "{}")
	write("user002/default/workflows/ünïcode and\ttab\\.json", "x".repeat(5000))
	for (let number = 0; number < 40; number++)
		write(`user002/comfyui/custom_nodes/node-${number}.py`, `n = ${number}\n`.repeat(50))
	symlinkSync("first.json", join(server, root, "user001/default/workflows/link.json"))
})
afterEach(() => sandbox[Symbol.dispose]())

function write(path: string, content: string | Buffer): void {
	const file = join(server, root, path)
	mkdirSync(join(file, ".."), { recursive: true })
	writeFileSync(file, content)
}

const names = (place: string) => {
	const directory = join(place, "sandbox", artifact)
	return existsSync(directory) ? readdirSync(directory).sort() : []
}
const archivesIn = (place: string) => names(place).filter((name) => name.endsWith(".tar.zst"))
const sidecarsIn = (place: string) => names(place).filter((name) => name.endsWith(".index.json"))
const pathIn = (place: string, name: string) => join(place, "sandbox", artifact, name)
const members = (archive: string) =>
	execFileSync("tar", ["-I", "zstd", "-tf", archive, "--quoting-style=literal"], { encoding: "utf8" })
const said = (ran: { events: readonly unknown[] }) => JSON.stringify(ran.events, null, 1)

async function backup(options: Parameters<Sandbox["backup"]>[1] = {}): Promise<string> {
	const ran = await sandbox.backup(server, { only, ...options })
	expect(ran.exitCode, said(ran)).toBe(0)
	sandbox.later(60)
	return ran.events.map((event) => JSON.stringify(event)).join("\n")
}

/** The same content in other bytes. */
function packAnew(file: string): void {
	execFileSync("bash", ["-euc", 'zstd -dcq "$1" | zstd -19 -qc >"$1.new"; mv "$1.new" "$1"', "bash", file])
}

/** As the document says it, with nothing but what every Linux has. */
function restoreByHand(place: string, index: string, into: string): void {
	mkdirSync(into)
	execFileSync(
		"bash",
		[
			"-euc",
			`zstd -dcq "$1" | tail -n +2 >"$2.index"
			for id in $(cut -f7 "$2.index" | sort -ru); do
			awk -F'\\t' -v id="$id" '$7 == id { print $8 }' "$2.index" |
			tar -I zstd -xpf "$3/$id.tar.zst" -C "$2" --no-recursion --files-from=-
			done`,
			"bash",
			pathIn(place, index),
			into,
			join(place, "sandbox", artifact),
		],
		{ stdio: ["ignore", "ignore", "inherit"] },
	)
}

test("what has changed is packed, what has not stays in the archive it lies in", async () => {
	await backup()
	write("user001/default/workflows/second.json", '{"second":2}')
	rmSync(join(server, root, "user002/comfyui/custom_nodes/node-3.py"))
	await backup()
	for (const place of [sandbox.share, sandbox.second]) {
		expect(sidecarsIn(place)).toHaveLength(2)
		const [first = "", second = ""] = archivesIn(place)
		expect(members(pathIn(place, first))).toContain("node-3.py")
		const packed = members(pathIn(place, second))
		expect(packed).toContain("second.json")
		expect(packed).not.toContain("first.json")
		expect(packed).not.toContain("node-4.py")
	}
})

test("what has not changed costs no archive and no index", async () => {
	await backup()
	const before = names(sandbox.share)
	expect(await backup()).not.toContain('"applying"')
	expect(names(sandbox.share)).toEqual(before)
})

describe("every date comes back byte for byte", () => {
	test("with comfyume, out of several archives", async () => {
		const states = new Map<string, string>()
		for (let hour = 0; hour < 5; hour++) {
			write(`user00${hour}/default/workflows/of hour ${hour}.json`, `{"hour":${hour}}`.repeat(100))
			write("user001/comfy.settings.json", `{"changed in":${hour}}`)
			if (hour === 3) rmSync(join(server, root, "user001/default/workflows/first.json"))
			if (hour === 4) chmodSync(join(server, root, "user002/comfyui/custom_nodes/node-5.py"), 0o755)
			states.set(sandbox.now().toISOString(), sandbox.inventory(server, [root]))
			await backup()
		}
		let number = 0
		for (const [at, state] of states) {
			const fresh = await sandbox.freshServer(`fresh-${number++}`)
			const ran = await sandbox.restore(fresh, { only, at: new Date(at) })
			expect(ran.exitCode, said(ran)).toBe(0)
			expect(sandbox.inventory(fresh, [root]), at).toBe(state)
		}
	})

	test("by hand, with tar, zstd and the index alone", async () => {
		await backup()
		write("user001/default/workflows/second.json", "2")
		write("user001/two\nlines.json", "3")
		await backup()
		const index =
			names(sandbox.second)
				.filter((name) => name.endsWith(".index.zst"))
				.at(-1) ?? ""
		const into = join(sandbox.directory, "by-hand")
		restoreByHand(sandbox.second, index, into)
		const compared = execFileSync("diff", ["-r", "--no-dereference", join(into, root), join(server, root)])
		expect(compared.toString()).toBe("")
		expect(statSync(join(into, root, "user001/two\nlines.json")).size).toBe(1)
	})
})

test("many small archives are merged, and the large first one stays", async () => {
	for (let hour = 0; hour < 36; hour++) {
		write(`user001/default/workflows/${hour}.json`, `${hour}`)
		await backup()
	}
	const newest = JSON.parse(
		readFileSync(pathIn(sandbox.share, sidecarsIn(sandbox.share).at(-1) ?? ""), "utf8"),
	)
	const ids: string[] = newest.incremental.archives.map(({ id }: { id: string }) => id)
	expect(ids.length).toBeLessThan(32)
	expect(`${ids[0]}.tar.zst`).toBe(archivesIn(sandbox.share)[0])
	const fresh = await sandbox.freshServer("fresh")
	expect((await sandbox.restore(fresh, { only })).exitCode).toBe(0)
	expect(sandbox.inventory(fresh, [root])).toBe(sandbox.inventory(server, [root]))
})

describe("a destination that was away", () => {
	test("gets every archive that the next snapshot builds upon", async () => {
		await backup()
		const away = `${sandbox.second}.away`
		renameSync(sandbox.second, away)
		for (const name of ["b", "c"]) {
			write(`user001/default/workflows/${name}.json`, name)
			await sandbox.backup(server, { only })
			sandbox.later(60)
		}
		renameSync(away, sandbox.second)
		write("user001/default/workflows/d.json", "d")
		await backup()
		rmSync(sandbox.share, { recursive: true })
		mkdirSync(sandbox.share)
		const fresh = await sandbox.freshServer("fresh")
		const ran = await sandbox.restore(fresh, { only })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(sandbox.inventory(fresh, [root])).toBe(sandbox.inventory(server, [root]))
	})
})

describe("damage", () => {
	test.each([
		[
			"an earlier archive with one bit flipped",
			(place: string) => flipBit(pathIn(place, archivesIn(place)[0] ?? "")),
		],
		["an earlier archive that is gone", (place: string) => rmSync(pathIn(place, archivesIn(place)[0] ?? ""))],
		[
			"an earlier archive that was packed by somebody else",
			(place: string) => packAnew(pathIn(place, archivesIn(place)[0] ?? "")),
		],
		[
			"an index that was packed by somebody else",
			(place: string) =>
				packAnew(
					pathIn(
						place,
						names(place)
							.filter((name) => name.endsWith(".index.zst"))
							.at(-1) ?? "",
					),
				),
		],
		[
			"an index with one bit flipped",
			(place: string) =>
				flipBit(
					pathIn(
						place,
						names(place)
							.filter((name) => name.endsWith(".index.zst"))
							.at(-1) ?? "",
					),
				),
		],
		[
			"an index that is gone",
			(place: string) =>
				rmSync(
					pathIn(
						place,
						names(place)
							.filter((name) => name.endsWith(".index.zst"))
							.at(-1) ?? "",
					),
				),
		],
	])("%s: the next place gives it, and the near one is healed", async (_what, damage) => {
		await backup()
		write("user001/default/workflows/second.json", "2")
		await backup()
		const before = new Map(
			names(sandbox.share).map((name) => [name, readFileSync(pathIn(sandbox.share, name))]),
		)
		damage(sandbox.share)
		const fresh = await sandbox.freshServer("fresh")
		const ran = await sandbox.restore(fresh, { only })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(ran.notes.join("\n")).toMatch(/skipped share/)
		expect(sandbox.inventory(fresh, [root])).toBe(sandbox.inventory(server, [root]))
		for (const [name, content] of before)
			expect(readFileSync(pathIn(sandbox.share, name)).equals(content), name).toBe(true)
	})

	test("in every place: an older snapshot, and exit 3", async () => {
		await backup()
		const before = sandbox.inventory(server, [root])
		write("user001/default/workflows/second.json", "2")
		await backup()
		for (const place of [sandbox.share, sandbox.second])
			flipBit(pathIn(place, archivesIn(place).at(-1) ?? ""))
		const fresh = await sandbox.freshServer("fresh")
		const ran = await sandbox.restore(fresh, { only })
		expect(ran.exitCode).toBe(3)
		expect(sandbox.inventory(fresh, [root])).toBe(before)
	})

	test("in all that there are: the next thing to type is a date, and no redirection of a shell", async () => {
		await backup()
		for (const place of [sandbox.share, sandbox.second])
			flipBit(pathIn(place, archivesIn(place).at(-1) ?? ""))
		const fresh = await sandbox.freshServer("fresh")
		const ran = await sandbox.restore(fresh, { only })
		expect(ran.exitCode).toBe(3)
		expect(said(ran)).toContain(
			"comfyume restore --env sandbox --only user-data --at 2026-11-21   # what is older, where a place has it",
		)
		expect(said(ran)).not.toMatch(/"hint": "[^"]*[<>]/)
	})

	test("a lost archive is no base: the next backup is whole again", async () => {
		await backup()
		for (const place of [sandbox.share, sandbox.second]) rmSync(pathIn(place, archivesIn(place)[0] ?? ""))
		write("user001/default/workflows/second.json", "2")
		await backup()
		const fresh = await sandbox.freshServer("fresh")
		expect((await sandbox.restore(fresh, { only })).exitCode).toBe(0)
		expect(sandbox.inventory(fresh, [root])).toBe(sandbox.inventory(server, [root]))
	})

	test("--full builds upon nothing", async () => {
		await backup()
		flipBit(pathIn(sandbox.share, archivesIn(sandbox.share)[0] ?? ""))
		flipBit(pathIn(sandbox.second, archivesIn(sandbox.second)[0] ?? ""))
		await backup({ full: true })
		const fresh = await sandbox.freshServer("fresh")
		expect((await sandbox.restore(fresh, { only })).exitCode).toBe(0)
		expect(sandbox.inventory(fresh, [root])).toBe(sandbox.inventory(server, [root]))
	})
})

describe("retention", () => {
	test("never takes an archive that a kept snapshot builds upon, and takes those that none does", async () => {
		sandbox.at("2026-01-01T08:10:00Z")
		for (let day = 0; day < 60; day++) {
			write(`user001/default/workflows/day-${day}.json`, `${day}`.repeat(300))
			// What came on the day before is gone: what was packed with it is needed by nobody.
			if (day > 0) rmSync(join(server, root, `user001/default/workflows/day-${day - 1}.json`))
			await sandbox.backup(server, { only })
			sandbox.later(24 * 60)
		}
		const ran = await sandbox.retention(server, { only })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(ran.outcome(artifact)).toBe("applied")
		expect(said(ran)).not.toContain("never finished")
		const kept = sidecarsIn(sandbox.share)
		expect(kept.length).toBeLessThan(12)
		expect(archivesIn(sandbox.share).length).toBeLessThan(14)
		expect(archivesIn(sandbox.second)).toHaveLength(60)
		for (const [number, name] of kept.entries()) {
			const at = name.replace(/^(....)(..)(..)T(..)(..)(..)Z.*$/, "$1-$2-$3T$4:$5:$6Z")
			const fresh = await sandbox.freshServer(`fresh-${number}`)
			const back = await sandbox.restore(fresh, { only, at: new Date(at), sources: ["share"] })
			expect(back.exitCode, said(back)).toBe(0)
		}
		const again = await sandbox.retention(server, { only })
		expect(again.outcome(artifact)).toBe("satisfied")
		// Archives of snapshots that are gone stand there, and are in use.
		expect(archivesIn(sandbox.share).length).toBeGreaterThan(sidecarsIn(sandbox.share).length)
		expect(said(again)).not.toContain("never finished")
		// One of those, from R2: on the share it isn't damaged but taken, and stays so.
		const withSidecar = new Set(sidecarsIn(sandbox.share).map((name) => name.split(".")[0]))
		const taken = archivesIn(sandbox.share).find((name) => !withSidecar.has(name.split(".")[0])) ?? ""
		const at = new Date(taken.replace(/^(....)(..)(..)T(..)(..)(..)Z.*$/, "$1-$2-$3T$4:$5:$6Z"))
		const before = names(sandbox.share)
		const back = await sandbox.restore(await sandbox.freshServer("fresh-r2"), { only, at })
		expect(back.exitCode, said(back)).toBe(0)
		expect(said(back)).not.toMatch(/healed|never finished/)
		expect(names(sandbox.share)).toEqual(before)
	})
})

describe("a database", () => {
	const path = "user001/comfyui.db"
	const file = () => join(server, root, path)
	const rows = (at: string) => {
		using database = new DatabaseSync(at, { readOnly: true })
		const check = database.prepare("pragma integrity_check").get()
		expect(check?.["integrity_check"]).toBe("ok")
		return Number(database.prepare("select count(*) as count from jobs").get()?.["count"])
	}
	function create(mode: "delete" | "wal"): DatabaseSync {
		const database = new DatabaseSync(file())
		database.exec(`pragma journal_mode=${mode}; create table jobs(text); insert into jobs values ('one')`)
		return database
	}

	test("whose newest rows are in the log beside it comes back with them, and without the log", async () => {
		using database = create("wal")
		database.exec("insert into jobs values ('two')")
		expect(statSync(`${file()}-wal`).size).toBeGreaterThan(0)
		await backup()
		const fresh = await sandbox.freshServer("fresh")
		expect((await sandbox.restore(fresh, { only })).exitCode).toBe(0)
		expect(existsSync(join(fresh, root, `${path}-wal`))).toBe(false)
		expect(rows(join(fresh, root, path))).toBe(2)
	})

	test("that is in use and doesn't change is not stored again", async () => {
		using _database = create("wal")
		await backup()
		const before = names(sandbox.share)
		await backup()
		expect(names(sandbox.share)).toEqual(before)
	})

	test("in the middle of a transaction comes back as it was before it", async () => {
		using database = create("delete")
		database.exec("begin; insert into jobs values ('uncommitted')")
		expect(existsSync(`${file()}-journal`)).toBe(true)
		await backup()
		database.exec("rollback")
		const fresh = await sandbox.freshServer("fresh")
		expect((await sandbox.restore(fresh, { only })).exitCode).toBe(0)
		expect(rows(join(fresh, root, path))).toBe(1)
		expect(existsSync(join(fresh, root, `${path}-journal`))).toBe(false)
	})

	test("that a transaction holds for too long is refused, and never copied as its files lie there", async () => {
		using database = create("delete")
		database.exec("begin exclusive; insert into jobs values ('two')")
		const copy = join(sandbox.directory, "copy.db")
		const staging = stageDatabase(file(), copy, { now: sandbox.now(), ownership: false, waitMs: 100 })
		await expect(staging).rejects.toThrow(/held by a transaction/)
	})

	test("that a crash left half-written is recovered as SQLite would", async () => {
		using database = create("delete")
		const text = "x".repeat(200)
		for (let number = 0; number < 2000; number++) database.exec(`insert into jobs values ('${text}')`)
		database.exec("pragma cache_size=2; begin; update jobs set text = 'new'")
		const changed = (at: string) => {
			using opened = new DatabaseSync(at)
			return Number(opened.prepare("select count(*) as count from jobs where text = 'new'").get()?.["count"])
		}
		const crashed = "user002/comfyui.db"
		write(crashed, readFileSync(file()))
		writeFileSync(join(sandbox.directory, "torn.db"), readFileSync(file()))
		write(`${crashed}-journal`, readFileSync(`${file()}-journal`))
		database.exec("rollback")
		// Without what lies beside it, the file is of no state that ever was.
		expect(changed(join(sandbox.directory, "torn.db"))).toBeGreaterThan(0)
		await backup()
		const fresh = await sandbox.freshServer("fresh")
		expect((await sandbox.restore(fresh, { only })).exitCode).toBe(0)
		expect(rows(join(fresh, root, crashed))).toBe(2001)
		expect(changed(join(fresh, root, crashed))).toBe(0)
	})

	test("that is put back over one in use takes the old one's log out of its way", async () => {
		create("delete").close()
		const at = new Date(sandbox.now())
		await backup()
		using database = new DatabaseSync(file())
		database.exec("pragma journal_mode=wal; insert into jobs values ('later')")
		expect(rows(file())).toBe(2)
		const ran = await sandbox.restore(server, { only, at })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(existsSync(`${file()}-wal`)).toBe(false)
		expect(rows(file())).toBe(1)
	})

	test("beside which a user has put a pipe or a link is not opened", async () => {
		create("delete").close()
		for (const [make, ending] of [
			["mkfifo", "-journal"],
			["link", "-wal"],
		] as const) {
			const beside = `${file()}${ending}`
			if (make === "mkfifo") execFileSync("mkfifo", [beside])
			else symlinkSync("../user002/comfyui.db-wal", beside)
			const copy = join(sandbox.directory, "copy.db")
			const staging = stageDatabase(file(), copy, { now: sandbox.now(), ownership: false })
			await expect(staging).rejects.toThrow(/is no plain file/)
			rmSync(beside)
		}
	})

	test("a file that only has the name of one is backed up as it is", async () => {
		write("user001/thumbs.db", "not a database")
		await backup()
		const fresh = await sandbox.freshServer("fresh")
		expect((await sandbox.restore(fresh, { only })).exitCode).toBe(0)
		expect(readFileSync(join(fresh, root, "user001/thumbs.db"), "utf8")).toBe("not a database")
	})
})

describe("what is remembered of files", () => {
	test("is not read again, and a change of the content alone is noticed", async () => {
		const file = join(server, root, "user001/comfy.settings.json")
		const old = new Date(Date.now() - 3_600_000)
		utimesSync(file, old, old)
		// What was written a moment before it was read isn't relied upon: by the clock of this run that was long ago.
		sandbox.at(new Date(Date.now() + 3_600_000).toISOString())
		await backup()
		expect(readFileSync(join(server, "var/lib/comfyume/digests/user-data.json"), "utf8")).toContain(
			"comfy.settings.json",
		)
		const { atimeMs } = statSync(file)
		appendFileSync(file, " ")
		utimesSync(file, new Date(atimeMs), old)
		expect(await backup()).toContain('"applying"')
	})
})

test("a server that never had users lacks nothing, one that lost them does", async () => {
	rmSync(join(server, root), { recursive: true })
	const without = await sandbox.backup(server, { only })
	expect(without.outcome(artifact)).toBe("satisfied")
	expect((await sandbox.status(server, { only })).exitCode).toBe(0)
	expect((await sandbox.restore(server, { only, first: true })).exitCode).toBe(0)
	write("user001/comfy.settings.json", "{}")
	await backup()
	rmSync(join(server, root), { recursive: true })
	const lost = await sandbox.backup(server, { only })
	expect(lost.exitCode).toBe(3)
	expect(said(lost)).toMatch(/user-data is gone from app-1/)
})

test("one that vanished is missed although its newest snapshot isn't whole", async () => {
	await backup()
	for (const place of [sandbox.share, sandbox.second])
		for (const name of names(place).filter((name) => name.endsWith(".index.zst"))) rmSync(pathIn(place, name))
	rmSync(join(server, root), { recursive: true })
	rmSync(join(server, "var/lib/comfyume"), { recursive: true })
	const lost = await sandbox.backup(server, { only })
	expect(lost.exitCode, said(lost)).toBe(3)
	const scheduled = await sandbox.backup(server, { only, scheduled: true })
	expect(scheduled.exitCode, said(scheduled)).toBe(3)
	expect((await sandbox.status(server, { only })).exitCode).toBe(3)
})

test("directories that nobody has put anything into lack nothing", async () => {
	rmSync(join(server, root), { recursive: true })
	mkdirSync(join(server, root, "user001/default/workflows"), { recursive: true })
	expect((await sandbox.backup(server, { only })).exitCode).toBe(0)
	expect((await sandbox.status(server, { only })).exitCode).toBe(0)
	expect(names(sandbox.share)).toEqual([])
})
