import { execFileSync } from "node:child_process"
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { zstdCompressSync } from "node:zlib"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { inspectArchive } from "../../../src/lib/artifacts/archive.ts"
import { floorProblems } from "../../../src/lib/artifacts/floor.ts"
import { type MadeMember, makeTar } from "../../support/tar-maker.ts"

const limits = { roots: ["etc/ssh/ssh_host_*", "home/dev"], mostBytes: 10_000, mostMembers: 20 }

let directory: string
beforeAll(() => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-archive-"))
})
afterAll(() => rmSync(directory, { recursive: true }))

function place(bytes: Buffer, name = "archive.tar.zst"): string {
	const file = join(directory, name)
	writeFileSync(file, bytes)
	return file
}

const inspect = (members: readonly MadeMember[]) =>
	inspectArchive(place(zstdCompressSync(makeTar(members))), limits)

test("an archive of what belongs to the artifact is read whole", async () => {
	const tree = await inspect([
		{ path: "./etc/", type: "5" },
		{ path: "etc/ssh/ssh_host_rsa_key", content: "secret", mode: 0o600 },
		{ path: "home/dev/", type: "5", mode: 0o2755 },
		{ path: "home/dev/.dotfile", content: "kept" },
		{ path: "home/dev/link", type: "2", target: "/anywhere/at/all" },
		{ path: "home/dev/again", type: "1", target: "home/dev/.dotfile" },
	])
	expect(tree.entries.map(({ path, type }) => `${type} ${path}`)).toEqual([
		"directory etc",
		"file etc/ssh/ssh_host_rsa_key",
		"directory home/dev",
		"file home/dev/.dotfile",
		"file home/dev/again",
		"symlink home/dev/link",
	])
	expect(tree.sizeBytes).toBe(14)
})

describe("refused before anything is unpacked", () => {
	test.each<[string, MadeMember[], RegExp]>([
		["a name that climbs out", [{ path: "home/dev/../../etc/shadow" }], /climbs/],
		["an absolute name", [{ path: "/etc/ssh/ssh_host_rsa_key" }], /absolute/],
		["a member of somewhere else", [{ path: "etc/shadow" }], /not part of this artifact/],
		["a file where only a directory leads on", [{ path: "etc", content: "x" }], /not part of this artifact/],
		["a name that only begins like a root", [{ path: "home/developer/x" }], /not part of this artifact/],
		[
			"writing through a symbolic link",
			[{ path: "home/dev/a", type: "2", target: "/etc" }, { path: "home/dev/a/shadow" }],
			/written through the symlink/,
		],
		[
			"writing through a root that is a link",
			[{ path: "home/dev", type: "2", target: "/etc" }, { path: "home/dev/shadow" }],
			/written through the symlink/,
		],
		[
			"a hard link out of the archive",
			[{ path: "home/dev/a", type: "1", target: "etc/shadow" }],
			/hard link to "etc\/shadow"/,
		],
		[
			"a hard link to a link",
			[
				{ path: "home/dev/a", type: "2", target: "x" },
				{ path: "home/dev/b", type: "1", target: "home/dev/a" },
			],
			/hard link/,
		],
		["a device", [{ path: "home/dev/null", type: "3" }], /character-device/],
		["a pipe", [{ path: "home/dev/pipe", type: "6" }], /fifo/],
		["setuid", [{ path: "home/dev/su", mode: 0o4755 }], /setuid/],
		["the same name twice", [{ path: "home/dev/a" }, { path: "home/dev/a" }], /twice/],
		["the same name twice, once with ./", [{ path: "home/dev/a" }, { path: "./home/dev/a" }], /twice/],
		["unicode twins", [{ path: "home/dev/\u00e9" }, { path: "home/dev/e\u0301" }], /twice/],
		[
			"more bytes than the artifact may have",
			[{ path: "home/dev/a", content: "x".repeat(10_001) }],
			/larger than/,
		],
		[
			"more members than the artifact may have",
			Array.from({ length: 21 }, (_, index) => ({ path: `home/dev/${index}` })),
			/one too many/,
		],
		["a name that is not UTF-8", [{ path: "home/dev/\uFFFD" }], /not UTF-8/],
	])("%s", async (_, members, message) => {
		await expect(inspect(members)).rejects.toThrow(message)
	})

	test("the 45 bytes of an empty directory that once counted as a backup, by the floor", async () => {
		// What `tar -czf` writes when it is given nothing: a record of zeros.
		const file = place(execFileSync("gzip", ["--no-name"], { input: Buffer.alloc(10_240) }), "empty.tar.gz")
		expect(statSync(file).size).toBe(45)
		const tree = await inspectArchive(file, limits)
		expect(floorProblems({ floor: { minimumBytes: 1, members: [] } }, tree)).toEqual(["there is nothing"])
	})

	test("a compressed archive cut anywhere", async () => {
		const whole = zstdCompressSync(makeTar([{ path: "home/dev/a", content: "x".repeat(3000) }]))
		for (let length = 0; length < whole.length; length++)
			await expect(
				inspectArchive(place(whole.subarray(0, length)), limits),
				`cut to ${length}`,
			).rejects.toThrow(/its compression is damaged|not a whole archive/)
	})

	test("a bomb, before it has filled anything", async () => {
		const bomb = zstdCompressSync(makeTar([{ path: "home/dev/zeros", content: Buffer.alloc(50_000_000) }]))
		expect(bomb.length).toBeLessThan(10_000)
		await expect(inspectArchive(place(bomb), limits)).rejects.toThrow(/larger than the 10000 bytes/)
	})
})
