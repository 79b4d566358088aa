// Users' own models: directories that are theirs, and links that are ours.
import { lstatSync, mkdirSync, mkdtempSync, readlinkSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { lookAtDirectories, makeDirectories } from "../../../src/lib/stack/directories.ts"
import { stackFor } from "../../support/stack.ts"

let directory = ""
const at = (...parts: string[]) => join(directory, ...parts)
const isRoot = process.getuid?.() === 0

beforeEach(() => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-user-models-"))
	for (const name of ["share/models", "outputs", "inputs", "stack"]) mkdirSync(at(name), { recursive: true })
})
afterEach(() => rmSync(directory, { recursive: true, force: true }))

const stack = (users = 2) => {
	const { configuration } = stackFor(users)
	const paths = {
		...configuration.paths,
		...{ models: at("share/models"), shareOutputs: at("share/outputs") },
		...{ outputs: at("outputs"), inputs: at("inputs") },
	}
	return stackFor(users, { directory: at("stack"), paths })
}
const make = async () => makeDirectories((await lookAtDirectories(stack())).missing, isRoot)

test("a user's model is found under the user's name, wherever the share is mounted", async () => {
	await make()
	expect((await lookAtDirectories(stack())).missing).toEqual([])
	const link = at("share/models/users/by-type/loras/user002")
	expect(readlinkSync(link)).toBe("../../user002/loras")
	writeFileSync(at("share/models/users/user002/loras/mine.safetensors"), "mine")
	expect(statSync(`${link}/mine.safetensors`).size).toBe(4)
	// Workers elsewhere write to the share as whoever it takes them for.
	expect(statSync(at("share/outputs")).mode & 0o7777).toBe(0o1777)
	if (!isRoot) return
	expect(statSync(at("share/models/users/user002/loras")).uid).toBe(1000)
	expect(lstatSync(at("share/models/users/by-type/loras")).uid).toBe(0)
})

test("what stands in a link's place is left, and named", async () => {
	await make()
	const link = at("share/models/users/by-type/vae/user001")
	rmSync(link)
	mkdirSync(link)
	await expect(lookAtDirectories(stack())).rejects.toMatchObject({
		exitCode: 8,
		message: expect.stringContaining(link),
	})
})

test("nothing is made where the share isn't mounted", async () => {
	rmSync(at("share/models"), { recursive: true })
	const { missing, unreachable } = await lookAtDirectories(stack())
	expect(unreachable).toEqual([at("share/models")])
	expect(missing.filter(({ path }) => path.startsWith(at("share")))).toEqual([])
})
