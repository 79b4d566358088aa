// The share on a real disk: what a full, missing or unmounted one does, and what is left behind.
import { execFileSync } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { OperatorError } from "../../../src/lib/errors.ts"
import { directoryStore } from "../../../src/lib/storage/directory.ts"
import { readOnlyStore } from "../../../src/lib/storage/read-only.ts"

let scratch: string
let share: string
beforeEach(async () => {
	scratch = await mkdtemp(join(tmpdir(), "directory-store-"))
	share = join(scratch, "share")
	await mkdir(share)
})
afterEach(() => rm(scratch, { recursive: true }))

const open = (options = {}) => directoryStore({ name: "share", directory: share, ...options })

async function put(key: string, content: Buffer | string, store = open()) {
	const file = join(scratch, "file")
	await writeFile(file, content)
	const digest = createHash("sha256").update(content).digest("hex")
	return await store.put(key, file, { sizeBytes: Buffer.byteLength(content), digest, ifAbsent: true })
}
async function keys(prefix = "", store = open()) {
	const found: string[] = []
	for await (const { key } of store.list(prefix)) found.push(key)
	return found
}

test("a missing directory is unreachable, never empty", async () => {
	await rm(share, { recursive: true })
	for (const ask of [() => open().probe(), () => open().head("a"), () => keys(), () => put("a", "a")])
		await expect(ask()).rejects.toMatchObject({ exitCode: 4, message: expect.stringContaining(share) })
})

test("what the mount check refuses is neither read nor written", async () => {
	const mountCheck = async () => {
		throw new OperatorError("share is not mounted", { exitCode: 8 })
	}
	await writeFile(join(share, "a"), "a")
	const store = open({ mountCheck })
	for (const ask of [
		() => store.probe(),
		() => store.head("a"),
		() => store.get("a"),
		() => put("b", "b", store),
	])
		await expect(ask()).rejects.toThrow(/not mounted/)
	await expect(keys("", store)).rejects.toThrow(/not mounted/)
	expect(await readdir(share)).toEqual(["a"])
})

test("a full disk is no space, and leaves nothing", async () => {
	execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", share])
	try {
		const failed = put("deep/below/a", randomBytes(3 * 1024 * 1024))
		await expect(failed).rejects.toMatchObject({
			exitCode: 7,
			message: expect.stringContaining("deep/below/a"),
		})
		expect(await readdir(join(share, "deep/below"))).toEqual([])
		execFileSync("mount", ["-o", "remount,ro", share])
		// It can be restored from, and takes nothing.
		await expect(open().probe()).resolves.toBeUndefined()
		await expect(put("b", "content")).rejects.toThrow(/read-only/)
	} finally {
		execFileSync("umount", [share])
	}
})

test("a damaged object is set aside under its own name and time, and never over another", async () => {
	const at = new Date("2026-01-02T03:04:05.678Z")
	for (const content of ["first", "second"]) {
		expect(await put("a/b", content)).toBe("stored")
		await open().setAside("a/b", at)
	}
	expect(await readFile(join(share, "a/b.bad-20260102T030405Z"), "utf8")).toBe("first")
	expect(await readFile(join(share, "a/b.bad-20260102T030405Z-2"), "utf8")).toBe("second")
	expect(await keys()).toEqual([])
	await expect(open().setAside("a/b", at)).rejects.toThrow(/no such file/)
	expect((await readdir(join(share, "a"))).length).toBe(2)
})

test("partial files of an upload that died, locks and symbolic links are no objects", async () => {
	await put("a/b", "b")
	await writeFile(join(share, "a/.c.01234567.partial"), "half")
	await writeFile(join(share, "a/.comfyume.lock"), "1 free, since yesterday")
	await symlink("/etc/passwd", join(share, "a/link"))
	expect(await keys("a/")).toEqual(["a/b"])
	expect(await open().head("a/link")).toBeUndefined()
	await expect(open().get("a/link")).rejects.toThrow(OperatorError)
})

test("only the owner reads what is stored; parents are open to look into", async () => {
	await put("env/one", "secret")
	expect((await stat(join(share, "env/one"))).mode & 0o777).toBe(0o600)
	expect((await stat(join(share, "env"))).mode & 0o777).toBe(0o755)
})

test("under a dry run a store is read and never changed", async () => {
	await put("a", "a")
	const store = readOnlyStore(open())
	expect((await store.head("a"))?.sizeBytes).toBe(1)
	expect(await keys("", store)).toEqual(["a"])
	await expect(put("b", "b", store)).rejects.toMatchObject({
		exitCode: 1,
		message: expect.stringMatching(/dry run: put b in share/),
	})
	await expect(store.setAside("a", new Date())).rejects.toThrow(/dry run: setAside a/)
	expect(await readdir(share)).toEqual(["a"])
})
