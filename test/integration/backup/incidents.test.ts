// Incidents of the platform's history, each as it happened, and each caught. Numbers are those of the list of silent
// failures; 1, 2 and 17 stand in scheduled.test.ts.
import { execFileSync } from "node:child_process"
import { mkdirSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest"
import { createWorld } from "../../support/cli.ts"
import { makeModel } from "../../support/model-maker.ts"
import { createModelWorld, entryOf, type ModelWorld, sha256 } from "../../support/model-world.ts"
import { describeWith } from "../../support/parts.ts"
import { createSandbox, type Ran, type Sandbox } from "../../support/sandbox.ts"
import { makeRemote } from "../../support/server-files.ts"

const said = ({ events }: Pick<Ran, "events">) => JSON.stringify(events)

describe("3: the upload of the models reported success, one of the two was there, and /tmp was full", () => {
	const [a, b] = ["loras/a.safetensors", "loras/b.safetensors"] as const
	const contents = new Map([a, b].map((name, index) => [name, makeModel(40_000, index + 1)]))
	let world: ModelWorld
	beforeEach(async () => {
		world = await createModelWorld()
		world.declare([...contents].map(([name, content]) => entryOf(name, content)))
		for (const [name, content] of contents) world.write(name, content)
	})
	afterEach(() => world[Symbol.asyncDispose]())

	test("a success that stored nothing ends the backup with 3 and names the model, as does `backup status`", async () => {
		// Each time that it is looked for after its upload, it isn't there.
		const fault = world.s3.fault({
			match: { operation: "HeadObject", key: /b\.safetensors$/ },
			do: { first: () => world.s3.objects.lose("model-vault", b) },
		})
		const ran = await world.backup()
		expect(fault.hits).toBeGreaterThan(0)
		const answers = world.s3.log.filter(({ operation, key }) => operation === "PutObject" && key === b)
		expect(answers.map(({ status }) => status)).toContain(200)
		expect([ran.exitCode, ran.outcome(a), ran.outcome(b)], said(ran)).toEqual([3, "applied", "failed"])
		expect(world.vaultKeys()).toEqual([a])
		const asked = await world.status()
		expect(asked.exitCode, said(asked)).toBe(3)
		expect(said(asked)).toContain(`of 2 on the share 1 are missing and 0 have another size, as ${b}`)
		fault.remove()
		expect((await world.backup()).exitCode).toBe(0)
		expect((await world.status()).exitCode).toBe(0)
	})

	test("one that vanishes after it was stored is missed by `backup status`, whatever the backup said", async () => {
		expect((await world.backup()).exitCode).toBe(0)
		await world.s3.objects.lose("model-vault", b)
		const asked = await world.status()
		expect(asked.exitCode, said(asked)).toBe(3)
		expect(said(asked)).toContain(`as ${b}`)
	})

	// Mounting takes root, as instances do.
	describeWith("instances", "with a full /tmp", () => {
		test("both are there, byte for byte: nothing goes by way of it", async () => {
			const full = join(world.directory, "tmp")
			mkdirSync(full)
			execFileSync("mount", ["-t", "tmpfs", "-o", "size=16k", "tmpfs", full])
			try {
				expect(() => writeFileSync(join(full, "someone's"), Buffer.alloc(64 * 1024))).toThrow(/ENOSPC/)
				vi.stubEnv("TMPDIR", full)
				const ran = await world.backup()
				expect(ran.exitCode, said(ran)).toBe(0)
			} finally {
				vi.unstubAllEnvs()
				execFileSync("umount", [full])
			}
			for (const [name, content] of contents)
				expect(sha256(await world.vaultContent(name))).toBe(sha256(content))
			expect((await world.status()).exitCode).toBe(0)
		})
	})
})

describe("4: the address of R2 without its .eu, or with it at the end", () => {
	const account = "0123456789abcdef0123456789abcdef"
	test.each([
		["without it", `https://${account}.r2.cloudflarestorage.com`, /has no \.eu behind the account id/],
		["at the end", `https://${account}.r2.cloudflarestorage.com.eu`, /has \.eu at the end/],
	])("%s: refused before any work, with what to write instead", async (_, endpoint, problem) => {
		await using world = await createWorld()
		world.configure((text) =>
			text.replace(/endpoint: ".*"/, `endpoint: "${endpoint}"`).replace("provider: s3", "provider: r2"),
		)
		for (const words of [["backup"], ["backup", "--scheduled", "--quiet"], ["backup", "status"]]) {
			const ran = await world.run(words)
			expect(ran.exitCode, ran.stderr).toBe(2)
			expect(ran.stderr).toMatch(problem)
			expect(ran.stderr).toContain(`https://${account}.eu.r2.cloudflarestorage.com`)
		}
		expect(readdirSync(world.share)).toEqual([])
		expect(readdirSync(world.path("server/var/lib"))).not.toContain("comfyume")
		expect(world.s3.log).toEqual([])
	})
})

describe("18: the restore took the oldest archive, or the old repository", () => {
	let sandbox: Sandbox
	beforeEach(async () => {
		sandbox = await createSandbox()
	})
	afterEach(() => sandbox[Symbol.dispose]())

	const days = ["2026-11-18", "2026-11-19", "2026-11-20"]

	/** What the scripts before comfyume left: the oldest is the first of its directory, and was touched last. */
	async function leaveOlder(server: string): Promise<void> {
		for (const [index, day] of days.entries()) {
			writeFileSync(join(server, "home/dev/.zshrc"), `export DAY=${day}\n`.repeat(10))
			const file = join(sandbox.share, `home-dev-${day}.tar.gz`)
			execFileSync("tar", ["czf", file, "--exclude=project", "--exclude=scripts", "-C", server, "home/dev"])
			const touched = new Date(Date.UTC(2026, 10, 21 - index))
			utimesSync(file, touched, touched)
		}
	}

	test("of dated archives the one with the newest date comes back, whatever stands first and was touched last", async () => {
		const server = await sandbox.fillServer()
		await leaveOlder(server)
		const fresh = await sandbox.freshServer("fresh")
		const ran = await sandbox.restore(fresh, { only: ["home"], sources: ["share"], allowUnverified: true })
		expect(ran.outcome("home"), said(ran)).toBe("applied")
		expect(readFileSync(join(fresh, "home/dev/.zshrc"), "utf8")).toContain("DAY=2026-11-20")
	})

	test("a snapshot is newer than they are, and of snapshots the newest comes back", async () => {
		const server = await sandbox.fillServer()
		await leaveOlder(server)
		for (const hour of [1, 2, 3]) {
			writeFileSync(join(server, "home/dev/.zshrc"), `export HOUR=${hour}\n`.repeat(10))
			sandbox.later(60)
			expect((await sandbox.backup(server, { only: ["home"] })).exitCode).toBe(0)
		}
		const directory = join(sandbox.share, "sandbox/home")
		for (const [index, name] of readdirSync(directory).sort().entries()) {
			const touched = new Date(Date.UTC(2026, 10, 30 - index))
			utimesSync(join(directory, name), touched, touched)
		}
		const fresh = await sandbox.freshServer("fresh")
		const ran = await sandbox.restore(fresh, { only: ["home"], allowUnverified: true })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(readFileSync(join(fresh, "home/dev/.zshrc"), "utf8")).toContain("HOUR=3")
	})

	test("a stale one isn't taken for the last state: it is refused, with how old it is", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["home"] })
		sandbox.later(60 * 24 * 30)
		const fresh = await sandbox.freshServer("fresh")
		const ran = await sandbox.restore(fresh, { only: ["home"] })
		expect(ran.exitCode, said(ran)).toBe(8)
		expect(said(ran)).toMatch(/is 720 h old, and 72 h are allowed/)
		expect(readdirSync(fresh)).not.toContain("home")
	})

	test("a checkout of the old repository is no backup, and a restore puts the configured one in its place", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["project"] })
		const old = join(sandbox.directory, "comfy-multi.git")
		makeRemote(old)
		const checkout = join(server, "home/dev/project")
		rmSync(checkout, { recursive: true })
		execFileSync("git", ["clone", "--quiet", old, checkout])
		sandbox.later(60)

		const backup = await sandbox.backup(server, { only: ["project"] })
		expect(backup.exitCode, said(backup)).toBe(3)
		expect(said(backup)).toContain(`comes from ${old}, not from ${sandbox.remote} as configured`)

		const restore = await sandbox.restore(server, { only: ["project"] })
		expect(restore.exitCode, said(restore)).toBe(0)
		const remote = execFileSync("git", ["-C", checkout, "remote", "get-url", "origin"], { encoding: "utf8" })
		expect(remote.trim()).toBe(sandbox.remote)
		expect(restore.notes.join()).toMatch(/what stood at .* is kept as/)
	})
})
