// The release on a host: put there once, verified each time, never where others could change it.
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, it } from "vitest"
import type { Host } from "../../../src/lib/host/host.ts"
import { localHost } from "../../../src/lib/host/local.ts"
import { ensureRelease, type ReleaseArchive } from "../../../src/lib/host/release.ts"

let scratch: string
let base: string
let archive: ReleaseArchive
const sha256 = (content: string | Uint8Array) => createHash("sha256").update(content).digest("hex")
const arch = process.arch === "arm64" ? "arm64" : "x64"

beforeEach(async () => {
	scratch = await mkdtemp(join(tmpdir(), "comfyume-release-"))
	// Below /tmp everybody may write: a release is refused there.
	base = join(await mkdtemp("/run/comfyume-release-test-"), "opt")
	archive = await makeArchive()
})
afterEach(async () => {
	await rm(scratch, { recursive: true, force: true })
	await rm(join(base, ".."), { recursive: true, force: true })
})

async function makeArchive(): Promise<ReleaseArchive> {
	const tree = join(scratch, "tree")
	await mkdir(join(tree, "bin"), { recursive: true })
	await writeFile(join(tree, "bin/comfyume"), "#!/bin/sh\necho made up\n", { mode: 0o755 })
	await writeFile(join(tree, "package.json"), "{}\n")
	const sums = []
	for (const file of ["bin/comfyume", "package.json"])
		sums.push(`${sha256(await readFile(join(tree, file)))}  ${file}\n`)
	await writeFile(join(tree, "SHA256SUMS"), sums.join(""))
	const file = join(scratch, "archive.tar.zst")
	execFileSync("tar", [
		"--create",
		"--zstd",
		"--file",
		file,
		"--directory",
		tree,
		"--mode=u+rw,go+r,go-w",
		".",
	])
	const content = await readFile(file)
	return {
		version: "0.0.1",
		arch,
		digest: sha256(sums.join("")),
		sizeBytes: content.length,
		sha256: sha256(content),
		file,
	}
}

function counted(environment: Record<string, string | undefined> = { PATH: process.env.PATH }): {
	host: Host
	calls: string[]
} {
	const calls: string[] = []
	const host = localHost({ name: "app-1", environment })
	return {
		calls,
		host: {
			...host,
			execute: (command, options) => {
				calls.push(command.program)
				return host.execute(command, options)
			},
			put: (from, to, options) => {
				calls.push("put")
				return host.put(from, to, options)
			},
		},
	}
}

const installed = () => join(base, archive.digest)
const leftovers = async () => (await readdir(base)).filter((name) => name.startsWith(".incoming"))

describe("the release on a host", () => {
	it("is put there in three trips, and found there in one", async () => {
		const { host, calls } = counted()
		const first = await ensureRelease(host, [archive], base)
		expect(first).toMatchObject({ executable: `${installed()}/bin/comfyume`, installed: true })
		expect(calls).toEqual(["sh", "put", "sh"])
		expect(execFileSync(first.executable, { encoding: "utf8" })).toBe("made up\n")
		const { uid, mode } = await stat(installed())
		expect([uid, mode & 0o7777]).toEqual([0, 0o755])
		calls.length = 0
		expect(await ensureRelease(host, [archive], base)).toMatchObject({ installed: false })
		expect(calls).toEqual(["sh"])
		expect(await leftovers()).toEqual([])
	})

	it.each([
		["a changed file", () => writeFile(join(installed(), "package.json"), "{ }\n")],
		["a missing file", () => rm(join(installed(), "package.json"))],
		["a file too many", () => writeFile(join(installed(), "bin/extra"), "")],
		["a link too many", () => symlink("/bin/sh", join(installed(), "bin/sh"))],
		["a file that others may write", () => chmod(join(installed(), "bin/comfyume"), 0o777)],
		["another list of digests", () => writeFile(join(installed(), "SHA256SUMS"), "")],
	])("is put there anew when it has %s", async (_, spoil) => {
		const { host } = counted()
		await ensureRelease(host, [archive], base)
		await spoil()
		expect(await ensureRelease(host, [archive], base)).toMatchObject({ installed: true })
		expect(await ensureRelease(host, [archive], base)).toMatchObject({ installed: false })
		expect(await readFile(join(installed(), "package.json"), "utf8")).toBe("{}\n")
	})

	it("is refused below a directory that others may write", async () => {
		await mkdir(base)
		await chmod(base, 0o777)
		const refused = ensureRelease(counted().host, [archive], base)
		await expect(refused).rejects.toMatchObject({
			exitCode: 8,
			message: expect.stringContaining(`${base} can be changed by others`),
		})
		await expect(ensureRelease(counted().host, [archive], join(scratch, "opt"))).rejects.toMatchObject({
			exitCode: 8,
		})
	})

	it("is not unpacked from an archive that arrived changed, and leaves nothing", async () => {
		await expect(
			ensureRelease(counted().host, [{ ...archive, sha256: sha256("other") }], base),
		).rejects.toThrow(/arrived with another sha256/)
		await expect(
			ensureRelease(counted().host, [{ ...archive, digest: sha256("other") }], base),
		).rejects.toThrow(/not what it should be: SHA256SUMS is another/)
		expect(await readdir(base)).toEqual([])
	})

	it("arrives on a host that has neither zstd nor openssl", async () => {
		const bin = join(scratch, "bin")
		await mkdir(bin)
		const tools =
			"sh id readlink stat dirname find xargs sha256sum sed cut sort uniq head tr tar gzip mkdir mv rm sync uname".split(
				" ",
			)
		for (const tool of tools)
			await symlink(execFileSync("which", [tool], { encoding: "utf8" }).trim(), join(bin, tool))
		const { host } = counted({ PATH: bin })
		expect(await ensureRelease(host, [archive], base)).toMatchObject({ installed: true })
		expect(await ensureRelease(host, [archive], base)).toMatchObject({ installed: false })
	})

	it("comes from two runs at once without harm", async () => {
		const both = await Promise.all([1, 2].map(() => ensureRelease(counted().host, [archive], base)))
		expect(both.map(({ executable }) => executable)).toEqual(Array(2).fill(`${installed()}/bin/comfyume`))
		expect(await ensureRelease(counted().host, [archive], base)).toMatchObject({ installed: false })
		expect(await leftovers()).toEqual([])
	})

	it("is not there for another machine", async () => {
		const other = { ...archive, arch: arch === "x64" ? ("arm64" as const) : ("x64" as const) }
		await expect(ensureRelease(counted().host, [other], base)).rejects.toMatchObject({
			exitCode: 2,
			hint: `npm run release -- --arch ${arch}`,
		})
	})
})
