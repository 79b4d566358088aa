// Secrets from the kernel's own keyring, where this machine lets us at it. A container may not: then a stand-in
// `keyctl` answers with the words of the real one, and the name of the test says so.
import { execFileSync } from "node:child_process"
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, describe, expect, it } from "vitest"
import { keyringReader } from "../../../src/lib/host/keyring.ts"
import { localHost } from "../../../src/lib/host/local.ts"

const keyctl = (...argv: string[]) =>
	execFileSync("keyctl", argv, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim()
const name = `TEST_${process.pid}`
let added: string | undefined

function add(value: string): boolean {
	try {
		added = keyctl("add", "user", `comfyume:${name}`, value, "@u")
		return keyctl("pipe", added) === value.trim()
	} catch {
		return false
	}
}

const isReal = add("probe")
const cleanUp = () => {
	if (added !== undefined) keyctl("unlink", added, "@u")
	added = undefined
}
cleanUp()

let directory: string | undefined
afterEach(async () => {
	cleanUp()
	if (directory !== undefined) await rm(directory, { recursive: true, force: true })
	directory = undefined
})

describe.runIf(isReal)("the kernel's keyring", () => {
	const read = keyringReader(localHost({ name: "app-1", environment: { PATH: process.env.PATH } }))

	it("gives a secret byte for byte, and hides it", async () => {
		add("s3cret 'ü' $x")
		const secret = await read(name)
		expect(secret?.reveal()).toBe("s3cret 'ü' $x")
		expect(String(secret)).toBe("[secret]")
	})

	it("gives undefined for a key that isn't there", async () => {
		expect(await read("NOT_THERE")).toBeUndefined()
	})
})

describe("a keyctl that is played", () => {
	const played = async (script: string) => {
		directory = await mkdtemp(join(tmpdir(), "comfyume-keyring-"))
		await mkdir(join(directory, "usr/local/bin"), { recursive: true })
		await writeFile(join(directory, "usr/local/bin/keyctl"), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
		return keyringReader(
			localHost({ name: "app-1", root: directory, environment: { PATH: process.env.PATH } }),
		)
	}

	it("is asked for the key by its description, and for its content by its number", async () => {
		const read = await played(
			'case "$*" in --version) ;; "search @u user comfyume:R2_KEY") echo 42 ;; "pipe 42") printf value ;; *) exit 9 ;; esac',
		)
		expect((await read("R2_KEY"))?.reveal()).toBe("value")
	})

	it("names a key that is there and can't be read", async () => {
		const read = await played(
			'case $1 in --version) ;; search) echo 42 ;; *) echo "keyctl_read_alloc: Permission denied" >&2; exit 1 ;; esac',
		)
		await expect(read("R2_KEY")).rejects.toMatchObject({
			message:
				"the key comfyume:R2_KEY in the keyring of app-1 can't be read: keyctl_read_alloc: Permission denied",
			hint: expect.stringContaining("keyctl link"),
		})
	})
})

it("a machine without keyctl has an empty keyring", async () => {
	directory = await mkdtemp(join(tmpdir(), "comfyume-keyring-"))
	const read = keyringReader(localHost({ name: "app-1", environment: { PATH: directory } }))
	expect(await read("R2_KEY")).toBeUndefined()
})
