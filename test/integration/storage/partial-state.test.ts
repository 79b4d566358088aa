// Notes beside a file that is being filled: root writes them where users can write too.
import { linkSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { beginPartialState, noteBlock, readPartialState } from "../../../src/lib/storage/partial-state.ts"

let root: string
beforeEach(() => {
	root = mkdtempSync(join(tmpdir(), "comfyume-notes-"))
})
afterEach(() => rmSync(root, { recursive: true, force: true }))

const content = { sizeBytes: 32, blockBytes: 16 }

test.each([
	["a link", symlinkSync],
	["a second name", linkSync],
])("%s of another file is replaced, and that file is neither read nor written", async (_, make) => {
	const [victim, partial] = [join(root, "victim"), join(root, "x.partial")]
	const text = `${JSON.stringify(content)}\n`
	writeFileSync(victim, text)
	make(victim, `${partial}.json`)
	await beginPartialState(partial, content)
	await noteBlock(partial, 1, "0".repeat(64))
	expect(readFileSync(victim, "utf8")).toBe(text)
	expect((await readPartialState(partial))?.blocks.size).toBe(1)
})

test("nothing is appended through a link, nor believed", async () => {
	const [victim, partial] = [join(root, "victim"), join(root, "x.partial")]
	const text = `${JSON.stringify(content)}\n`
	writeFileSync(victim, text)
	symlinkSync(victim, `${partial}.json`)
	expect(await readPartialState(partial)).toBeUndefined()
	await expect(noteBlock(partial, 1, "0".repeat(64))).rejects.toMatchObject({ code: "ELOOP" })
	expect(readFileSync(victim, "utf8")).toBe(text)
})
