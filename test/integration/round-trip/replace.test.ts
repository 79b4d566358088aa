// How files get into their place when something or somebody interferes: a user at work in his home, a program that
// fails in the middle, a signal, another file system.
import { execFileSync } from "node:child_process"
import {
	chmodSync,
	chownSync,
	existsSync,
	lstatSync,
	mkdirSync,
	readdirSync,
	rmSync,
	statSync,
	symlinkSync,
	writeFileSync,
} from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { withoutExcluded } from "../../../src/lib/artifacts/replace.ts"
import { treeOf } from "../../../src/lib/artifacts/tree.ts"
import { holdDirectory, isRootsOwn } from "../../../src/lib/host/held-directory.ts"
import { createSandbox, type Ran, type Sandbox } from "../../support/sandbox.ts"

let sandbox: Sandbox
beforeEach(async () => {
	sandbox = await createSandbox()
})
afterEach(() => sandbox[Symbol.dispose]())

const atFirst = new Date("2026-11-21T06:30:00Z")

/** What was said, for the message of an expectation that fails. */
const said = (ran: Ran) =>
	JSON.stringify(
		ran.events.filter(({ event }) => event === "step" || event === "note"),
		null,
		1,
	)
const permissions = (path: string) => (statSync(path).mode & 0o7777).toString(8)

/** A program that comes before the system's own in PATH. */
function standIn(server: string, name: string, script: string): void {
	writeFileSync(join(server, "usr/local/bin", name), `#!/bin/sh\n${script}\n`)
	chmodSync(join(server, "usr/local/bin", name), 0o755)
}

/** Everything below a directory with type, mode and content, without what comfyume keeps for itself. */
const look = (server: string, path: string) => sandbox.inventory(server, [path])

describe("a directory that becomes a link while files are swapped", () => {
	/** The home's `x` turns into a link to `victim` when `mv` runs, which it does for `aaa`, before `x` is reached. */
	async function attack(inside: string) {
		const server = await sandbox.fillServer()
		const home = join(server, "home/dev")
		writeFileSync(join(home, "aaa"), "a file")
		mkdirSync(join(home, "x/deep"), { recursive: true })
		writeFileSync(join(home, "x", inside), "evil")
		await sandbox.backup(server, { only: ["home"] })
		rmSync(join(home, "x", inside))
		rmSync(join(home, "aaa"))
		mkdirSync(join(home, "aaa/sub"), { recursive: true })
		const victim = join(server, "victim")
		mkdirSync(join(victim, "deep"), { recursive: true })
		standIn(
			server,
			"mv",
			`[ -L '${home}/x' ] || { rm -r '${home}/x'; ln -s '${victim}' '${home}/x'; }; exec /usr/bin/mv "$@"`,
		)
		const ran = await sandbox.restore(server, { only: ["home"], at: atFirst })
		return { ran, home, victim }
	}

	test.each(["ld.so.preload", "deep/ld.so.preload"])("is not written through (%s)", async (inside) => {
		const { ran, home, victim } = await attack(inside)
		expect(lstatSync(join(home, "x")).isSymbolicLink()).toBe(true)
		expect(readdirSync(victim, { recursive: true }), said(ran)).toEqual(["deep"])
		expect(ran.exitCode).not.toBe(0)
		expect(said(ran)).toMatch(/home\/dev\/x.* is a link or a file where a directory belongs/)
	})

	test("costs nothing of what was there before", async () => {
		const { ran, home } = await attack("ld.so.preload")
		expect(said(ran)).toMatch(/home was put back as it was/)
		expect(existsSync(join(home, "aaa/sub"))).toBe(true)
	})

	test("gets no owner and no mode of ours through it, when it stands for a directory of the snapshot", async () => {
		const server = await sandbox.fillServer()
		const home = join(server, "home/dev")
		mkdirSync(join(home, "x"), { mode: 0o700 })
		await sandbox.backup(server, { only: ["home"] })
		rmSync(join(home, "x"), { recursive: true })
		mkdirSync(join(server, "victim"), { mode: 0o755 })
		symlinkSync("../../victim", join(home, "x"))
		const ran = await sandbox.restore(server, { only: ["home"], at: atFirst })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(permissions(join(server, "victim"))).toBe("755")
		expect(lstatSync(join(home, "x")).isDirectory()).toBe(true)
	})
})

describe("a held directory", () => {
	test("stays the one that was opened when another takes its name", async () => {
		mkdirSync(join(sandbox.directory, "a"))
		await using held = await holdDirectory("/", join(sandbox.directory, "a"), {
			noLinksFrom: sandbox.directory,
			ownership: true,
		})
		execFileSync("mv", [join(sandbox.directory, "a"), join(sandbox.directory, "b")])
		mkdirSync(join(sandbox.directory, "a"))
		writeFileSync(held.entry("file"), "x")
		expect(existsSync(join(sandbox.directory, "b/file"))).toBe(true)
		expect(existsSync(join(sandbox.directory, "a/file"))).toBe(false)
	})

	test("is reached through links that only root could have made, and through no others", async () => {
		const root = join(sandbox.directory, "root")
		mkdirSync(join(root, "data/dev"), { recursive: true })
		symlinkSync("data", join(root, "home"))
		const options = { noLinksFrom: "/home/dev", ownership: true }
		await using held = await holdDirectory(root, "/home/dev", options)
		expect(existsSync(held.entry("."))).toBe(true)
		symlinkSync("../data", join(root, "data/dev/link"))
		await expect(holdDirectory(root, "/home/dev/link", options)).rejects.toThrow(/is a link/)
		chmodSync(root, 0o777)
		await expect(holdDirectory(root, "/home/dev", options)).rejects.toThrow(/\/home is a link/)
	})

	test("can be changed by its owner and by those it is open to", () => {
		const own = statSync(sandbox.directory)
		expect(isRootsOwn(own)).toBe(true)
		expect(isRootsOwn({ ...own, uid: own.uid + 1 })).toBe(false)
		for (const mode of [0o775, 0o757, 0o1777]) expect(isRootsOwn({ ...own, mode })).toBe(false)
	})
})

describe("a swap that fails in its middle", () => {
	test("puts back what it had swapped, modes of directories too, and says so", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["fail2ban"] })
		const fresh = await sandbox.freshServer("fresh")
		const etc = join(fresh, "etc/fail2ban")
		writeFileSync(join(etc, "fail2ban.conf"), "old one\n")
		chmodSync(etc, 0o711)
		mkdirSync(join(etc, "jail.local/sub"), { recursive: true })
		standIn(fresh, "mv", "echo 'mv: Input/output error' >&2; exit 1")
		const before = look(fresh, "etc/fail2ban")
		const ran = await sandbox.restore(fresh, { only: ["fail2ban"] })
		expect(ran.exitCode, said(ran)).not.toBe(0)
		expect(said(ran)).toMatch(/fail2ban was put back as it was: .*Input\/output error/)
		expect(look(fresh, "etc/fail2ban")).toBe(before)
		rmSync(join(fresh, "usr/local/bin/mv"))
		expect((await sandbox.restore(fresh, { only: ["fail2ban"] })).exitCode).toBe(0)
	})

	test("names where the old files are when they can't be put back", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["fail2ban"] })
		const fresh = await sandbox.freshServer("fresh")
		const etc = join(fresh, "etc/fail2ban")
		writeFileSync(join(etc, "fail2ban.conf"), "old one\n")
		mkdirSync(join(etc, "jail.local/sub"), { recursive: true })
		standIn(fresh, "mv", `rm -r '${fresh}/etc/.comfyume/fail2ban/'replaced-*; exit 1`)
		const ran = await sandbox.restore(fresh, { only: ["fail2ban"] })
		expect(said(ran)).toMatch(/could not be put back from \/etc\/\.comfyume\/fail2ban\/replaced-/)
	})
})

describe("validation that fails", () => {
	test("brings back files that were taken away, and the directories they lay in with their modes", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["ssh-host-keys"] })
		const fresh = await sandbox.freshServer("fresh")
		standIn(fresh, "sshd", "echo 'no hostkeys' >&2; exit 1")
		const before = look(fresh, "etc/ssh")
		const ran = await sandbox.restore(fresh, { only: ["ssh-host-keys"] })
		expect(ran.outcome("ssh-host-keys"), said(ran)).toBe("failed")
		expect(look(fresh, "etc/ssh")).toBe(before)
	})
})

describe("what is unpacked and kept", () => {
	test("never lies in a home or in a checkout, and the checkout stays clean", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server)
		const fresh = await sandbox.freshServer("fresh")
		await sandbox.restore(fresh)
		writeFileSync(join(fresh, "home/dev/project/.env"), "edited since\n")
		const ran = await sandbox.restore(fresh, { only: ["env-file"], at: atFirst })
		expect(ran.notes.join("\n"), said(ran)).toMatch(/kept in \/home\/\.comfyume\/env-file\/replaced-/)
		const project = join(fresh, "home/dev/project")
		expect(execFileSync("git", ["-C", project, "status", "--short"], { encoding: "utf8" })).toBe("")
		expect(execFileSync("find", [join(fresh, "home/dev"), "-name", ".comfyume"], { encoding: "utf8" })).toBe(
			"",
		)
		expect(permissions(join(fresh, "home/.comfyume"))).toBe("700")
	})

	test("lies with comfyume's own files when others can write above the target, and is kept all the same", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["home"] })
		const before = look(server, "home/dev")
		writeFileSync(join(server, "home/dev/.zshrc"), "edited since\n")
		chmodSync(server, 0o777)
		const ran = await sandbox.restore(server, { only: ["home"], at: atFirst })
		expect(ran.notes.join("\n"), said(ran)).toMatch(/kept in \/var\/lib\/comfyume\/replaced\/home\//)
		expect(look(server, "home/dev")).toBe(before)
	})

	test("crosses file systems by copies, and comes back over them when it doesn't work", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["fail2ban"] })
		const fresh = await sandbox.freshServer("fresh")
		const etc = join(fresh, "etc/fail2ban")
		rmSync(etc, { recursive: true })
		mkdirSync(etc)
		execFileSync("mount", ["-t", "tmpfs", "-o", "size=4m,mode=0755", "tmpfs", etc])
		try {
			writeFileSync(join(etc, "fail2ban.conf"), "old one\n")
			mkdirSync(join(etc, "jail.local/sub"), { recursive: true })
			const before = look(fresh, "etc/fail2ban")
			standIn(fresh, "mv", "exit 1")
			const failed = await sandbox.restore(fresh, { only: ["fail2ban"] })
			expect(said(failed)).toMatch(/was put back as it was/)
			expect(look(fresh, "etc/fail2ban")).toBe(before)
			rmSync(join(fresh, "usr/local/bin/mv"))
			const ran = await sandbox.restore(fresh, { only: ["fail2ban"] })
			expect(ran.exitCode, said(ran)).toBe(0)
			expect(look(fresh, "etc/fail2ban")).toBe(look(server, "etc/fail2ban"))
		} finally {
			execFileSync("umount", [etc])
		}
	})
})

test("parents that were missing can be entered, and belong to whom the directory above belongs", async () => {
	const server = await sandbox.fillServer()
	await sandbox.backup(server, { only: ["env-file"] })
	const fresh = await sandbox.freshServer("fresh")
	const ran = await sandbox.restore(fresh, { only: ["env-file"] })
	expect(ran.exitCode, said(ran)).toBe(0)
	for (const made of ["home", "home/dev", "home/dev/project"])
		expect(permissions(join(fresh, made))).toBe("755")
	const root = join(sandbox.directory, "owned")
	mkdirSync(root)
	chownSync(root, 1234, 2345)
	const made: string[] = []
	const held = await holdDirectory(sandbox.directory, "/owned/a/b", {
		noLinksFrom: "/owned",
		ownership: true,
		onMade: (path) => made.push(path),
	})
	await held[Symbol.asyncDispose]()
	expect(made).toEqual(["/owned/a", "/owned/a/b"])
	expect(statSync(join(root, "a/b"))).toMatchObject({ uid: 1234, gid: 2345 })
})

test("what the catalogue excludes by now is not restored from an older archive", async () => {
	const server = await sandbox.fillServer()
	mkdirSync(join(sandbox.share, "config"))
	execFileSync("tar", [
		"-C",
		server,
		"-czf",
		join(sandbox.share, "config/home-dev-2026-11-20.tar.gz"),
		"home/dev",
	])
	const fresh = await sandbox.freshServer("fresh")
	const ran = await sandbox.restore(fresh, { only: ["home"], allowUnverified: true })
	expect(existsSync(join(fresh, "home/dev/.zshrc")), said(ran)).toBe(true)
	expect(existsSync(join(fresh, "home/dev/project"))).toBe(false)
	expect(existsSync(join(fresh, "home/dev/.cache"))).toBe(false)
})

test("a tree without what is excluded has neither it nor what lies below, and counts without it", () => {
	const file = { type: "file", mode: 0o644, owner: "dev", group: "dev", sizeBytes: 3 } as const
	const tree = treeOf([
		{ ...file, path: "home/dev/a" },
		{ ...file, path: "home/dev/.cache/b" },
	])
	const left = withoutExcluded({ exclude: ["/home/*/.cache"] }, tree)
	expect(left.entries.map(({ path }) => path)).toEqual(["home/dev/a"])
	expect(left.sizeBytes).toBe(3)
})

describe("packing", () => {
	test("survives a file that vanishes between the look and tar", async () => {
		const server = await sandbox.fillServer()
		const gone = join(server, "home/dev/.bash_history-1234.tmp")
		writeFileSync(gone, "x")
		standIn(server, "tar", `rm -f '${gone}'\nexec /usr/bin/tar "$@"`)
		const ran = await sandbox.backup(server, { only: ["home"] })
		expect(ran.exitCode, said(ran)).toBe(0)
	})

	test("fails for a file that is there and can't be read", async () => {
		const server = await sandbox.fillServer()
		standIn(
			server,
			"tar",
			`/usr/bin/tar "$@"; echo '/usr/bin/tar: home/dev/x: Warning: Cannot open: Input/output error' >&2`,
		)
		const ran = await sandbox.backup(server, { only: ["home"] })
		expect(ran.outcome("home")).toBe("failed")
		expect(said(ran)).toMatch(/Input\/output error/)
	})
})
