// What a killed run left on the share: it goes when it can be nobody's any more.
import { mkdir, mkdtemp, readdir, rm, utimes, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, test } from "vitest"
import { directoryStore } from "../../../src/lib/storage/directory.ts"
import { sha256 } from "../../support/cli.ts"

test("a partial file of yesterday is removed by the next transfer beside it, one of today is not", async () => {
	const directory = await mkdtemp(join(tmpdir(), "comfyume-share-"))
	try {
		await mkdir(join(directory, "sandbox/home"), { recursive: true })
		const put = async (name: string, ageHours: number) => {
			const file = join(directory, "sandbox/home", name)
			await writeFile(file, "half of an archive")
			const then = new Date(Date.now() - ageHours * 3_600_000)
			await utimes(file, then, then)
		}
		await put(".old.tar.zst.0a1b2c3d.partial", 25)
		await put(".young.tar.zst.0a1b2c3d.partial", 23)
		await put("old.tar.zst", 25)
		const source = join(directory, "source")
		await writeFile(source, "whole")
		const store = directoryStore({ name: "share", directory })
		const facts = { sizeBytes: 5, digest: sha256(Buffer.from("whole")), ifAbsent: true as const }
		expect(await store.put("sandbox/home/new.tar.zst", source, facts)).toBe("stored")
		expect((await readdir(join(directory, "sandbox/home"))).sort()).toEqual([
			".young.tar.zst.0a1b2c3d.partial",
			"new.tar.zst",
			"old.tar.zst",
		])
	} finally {
		await rm(directory, { recursive: true, force: true })
	}
})
