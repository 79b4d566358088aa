// The lock of a host: exactly one, and gone with its holder.
import { spawn } from "node:child_process"
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, it } from "vitest"
import { localHost } from "../../../src/lib/host/local.ts"
import { lockFile, lockHost } from "../../../src/lib/host/lock.ts"
import { until } from "../../support/processes.ts"

let root: string
beforeEach(async () => {
	root = await mkdtemp(join(tmpdir(), "comfyume-lock-"))
})
afterEach(() => rm(root, { recursive: true, force: true }))

const host = (signal?: AbortSignal) =>
	localHost({
		name: "app-1",
		root,
		environment: { PATH: process.env.PATH },
		...(signal === undefined ? {} : { signal }),
	})
const lock = (purpose = "a backup", name = "backup") => lockHost(host(), { name, purpose })
const isFree = async () => {
	try {
		await using _lock = await lock()
		return true
	} catch {
		return false
	}
}

describe("the lock", () => {
	it("is had by exactly one of many at once", async () => {
		const tries = await Promise.allSettled(Array.from({ length: 8 }, () => lock()))
		const got = tries.filter((attempt) => attempt.status === "fulfilled")
		expect(got.length).toBe(1)
		for (const attempt of tries)
			if (attempt.status === "rejected") expect(attempt.reason).toMatchObject({ exitCode: 5 })
		for (const { value } of got) await value[Symbol.asyncDispose]()
		expect(await isFree()).toBe(true)
	})

	it("names its holder to the one who comes second", async () => {
		await using _lock = await lock("restore --env testing")
		await expect(lock()).rejects.toMatchObject({
			exitCode: 5,
			message: expect.stringMatching(
				new RegExp(
					`lock backup on app-1: restore --env testing, process ${process.pid} of \\w+, since 20\\d\\d-.*Z$`,
				),
			),
		})
	})

	it("holds under its own name only", async () => {
		await using _backup = await lock()
		await using _restore = await lock("a restore", "restore")
		expect(await isFree()).toBe(false)
	})

	it("is kept while a stopped run cleans up", async () => {
		const controller = new AbortController()
		await using _lock = await lockHost(host(controller.signal), { name: "backup", purpose: "stopped" })
		controller.abort()
		await expect(lock()).rejects.toMatchObject({ exitCode: 5 })
	})

	it("is free at once when its holder is killed", async () => {
		const source = (path: string) =>
			JSON.stringify(new URL(`../../../src/lib/host/${path}`, import.meta.url).href)
		const holder = spawn(
			process.execPath,
			[
				"--input-type=module",
				"-e",
				`
			const { localHost } = await import(${source("local.ts")})
			const { lockHost } = await import(${source("lock.ts")})
			const host = localHost({ name: "app-1", root: ${JSON.stringify(root)}, environment: { PATH: process.env.PATH } })
			const lock = await lockHost(host, { name: "backup", purpose: "to be killed" })
			setInterval(() => lock, 1000)
			console.log("held")`,
			],
			{ stdio: ["ignore", "pipe", "inherit"] },
		)
		await new Promise((resolve) => holder.stdout.once("data", resolve))
		expect(await isFree()).toBe(false)
		holder.kill("SIGKILL")
		await until("the lock is free", isFree, 2000)
	})

	it("writes to nothing that a link leads to", async () => {
		const [victim, file] = [join(root, "victim"), join(root, ".lock")]
		await writeFile(victim, "somebody's text")
		await symlink(victim, file)
		const options = { purpose: "a test", shown: "the lock of a test" }
		await expect(lockFile(host(), file, options)).rejects.toMatchObject({
			exitCode: 8,
			message: expect.stringContaining(`${file} is no plain file`),
		})
		expect(await readFile(victim, "utf8")).toBe("somebody's text")
		await rm(file)
		await mkdir(file)
		await expect(lockFile(host(), file, options)).rejects.toMatchObject({ exitCode: 8 })
	})
})
