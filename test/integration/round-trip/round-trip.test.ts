import { execFileSync } from "node:child_process"
import { existsSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { createWorld, flipBit, pushCommit, type World } from "../../support/world.ts"

const everything = ["etc/ssh", "etc/ufw", "etc/default", "etc/fail2ban", "home/dev"]

let world: World
beforeEach(async () => {
	world = await createWorld()
})
afterEach(() => world[Symbol.dispose]())

const archives = (directory: string, artifact: string) =>
	readdirSync(join(directory, "sandbox", artifact))
		.filter((name) => name.endsWith(".tar.zst"))
		.map((name) => join(directory, "sandbox", artifact, name))

test("what is backed up and lost comes back byte for byte on a fresh machine", async () => {
	const server = world.fillServer()
	const before = world.inventory(server, everything)
	const backup = await world.backup(server)
	expect(backup.exitCode, JSON.stringify(backup.events, null, 1)).toBe(0)
	rmSync(server, { recursive: true })

	const fresh = world.freshServer("fresh")
	const restore = await world.restore(fresh)
	expect(restore.exitCode, JSON.stringify(restore.events, null, 1)).toBe(0)
	expect(world.inventory(fresh, everything)).toBe(before)
})

test("an archive unpacks with tar and zstd alone, and its sidecar's digest is sha256sum's", async () => {
	const server = world.fillServer()
	await world.backup(server, { only: ["fail2ban"] })
	const [archive = ""] = archives(world.share, "fail2ban")
	const plain = join(world.directory, "by-hand")
	execFileSync("mkdir", [plain])
	execFileSync("tar", ["--zstd", "-xf", archive, "-C", plain])
	expect(world.inventory(plain, ["etc/fail2ban"])).toBe(world.inventory(server, ["etc/fail2ban"]))
	const sidecar: { digest: string } = JSON.parse(readFileSync(`${archive}.json`, "utf8"))
	expect(execFileSync("sha256sum", [archive], { encoding: "utf8" }).slice(0, 64)).toBe(sidecar.digest)
})

describe("a second run", () => {
	test("of backup stores nothing", async () => {
		const server = world.fillServer()
		await world.backup(server)
		const stored = world.inventory(world.share, ["."])
		world.later(60)
		const again = await world.backup(server)
		expect(again.exitCode).toBe(0)
		expect(again.events.filter(({ event }) => event === "applying")).toEqual([])
		expect(world.inventory(world.share, ["."])).toBe(stored)
	})

	test("of restore applies nothing", async () => {
		await world.backup(world.fillServer())
		const fresh = world.freshServer("fresh")
		await world.restore(fresh)
		const restored = world.inventory(fresh, everything)
		const again = await world.restore(fresh)
		expect(again.exitCode).toBe(0)
		expect(again.events.filter(({ event }) => event === "applying")).toEqual([])
		expect(world.inventory(fresh, everything)).toBe(restored)
	})
})

test("a dry run says what would be done and changes nothing, neither in backup nor in restore", async () => {
	const server = world.fillServer()
	const dry = await world.backup(server, { dryRun: true })
	expect(dry.exitCode).toBe(0)
	expect(dry.outcome("fail2ban")).toBe("planned")
	expect(readdirSync(world.share)).toEqual([])
	expect(existsSync(join(server, "var"))).toBe(false)

	await world.backup(server)
	const fresh = world.freshServer("fresh")
	const untouched = world.inventory(fresh, ["."])
	const dryRestore = await world.restore(fresh, { dryRun: true })
	expect(dryRestore.outcome("ssh-host-keys")).toBe("planned")
	expect(world.inventory(fresh, ["."])).toBe(untouched)
})

describe("the chain", () => {
	test("passes over a copy with one bit flipped, takes the good one, and heals the bad one", async () => {
		const server = world.fillServer()
		await world.backup(server)
		const [archive = ""] = archives(world.share, "home")
		const good = readFileSync(archive)
		flipBit(archive)
		const restore = await world.restore(world.freshServer("fresh"))
		expect(restore.exitCode).toBe(0)
		expect(restore.notes.join("\n")).toMatch(/skipped share: \S+: its digest is/)
		expect(restore.notes.join("\n")).toMatch(/healed share: \S+ from r2/)
		expect(readFileSync(archive).equals(good)).toBe(true)
		expect(
			readdirSync(join(world.share, "sandbox/home")).filter((name) => name.includes(".bad-")),
		).toHaveLength(2)
	})

	test("comes from the other place when the share is empty, and from the share when the other is", async () => {
		const server = world.fillServer()
		const before = world.inventory(server, everything)
		await world.backup(server)
		for (const [gone, left] of [
			[world.share, "r2"],
			[world.second, "share"],
		] as const) {
			execFileSync("mv", [join(gone, "sandbox"), join(gone, "hidden")])
			const fresh = world.freshServer(`fresh-from-${left}`)
			const restore = await world.restore(fresh)
			expect(restore.exitCode).toBe(0)
			expect(world.inventory(fresh, everything)).toBe(before)
			execFileSync("mv", [join(gone, "hidden"), join(gone, "sandbox")])
		}
	})

	test("with every copy bad fails with code 3, names each, and leaves the old files alone", async () => {
		const server = world.fillServer()
		await world.backup(server)
		for (const directory of [world.share, world.second])
			for (const archive of archives(directory, "fail2ban")) flipBit(archive)
		const fresh = world.freshServer("fresh")
		const before = world.inventory(fresh, ["etc/fail2ban"])
		const restore = await world.restore(fresh, { only: ["fail2ban"] })
		expect(restore.exitCode).toBe(3)
		const said = JSON.stringify(restore.events)
		expect(said).toMatch(/no copy of fail2ban is good: share: .* r2: /)
		expect(world.inventory(fresh, ["etc/fail2ban"])).toBe(before)
	})

	test("takes the newest by its date, and the one before when the newest is bad everywhere", async () => {
		const server = world.fillServer()
		await world.backup(server, { only: ["fail2ban"] })
		world.later(60)
		writeFileSync(join(server, "etc/fail2ban/jail.local"), "the newer state\n")
		await world.backup(server, { only: ["fail2ban"] })
		const fresh = world.freshServer("fresh")
		await world.restore(fresh, { only: ["fail2ban"] })
		expect(readFileSync(join(fresh, "etc/fail2ban/jail.local"), "utf8")).toBe("the newer state\n")

		for (const directory of [world.share, world.second])
			flipBit(archives(directory, "fail2ban").sort()[1] ?? "")
		const other = world.freshServer("other")
		expect((await world.restore(other, { only: ["fail2ban"] })).exitCode).toBe(0)
		expect(readFileSync(join(other, "etc/fail2ban/jail.local"), "utf8")).toMatch(/maxretry = 3/)
	})

	test("ignores a snapshot whose sidecar was never written", async () => {
		const server = world.fillServer()
		await world.backup(server, { only: ["fail2ban"] })
		for (const directory of [world.share, world.second])
			for (const archive of archives(directory, "fail2ban")) rmSync(`${archive}.json`)
		const restore = await world.restore(world.freshServer("fresh"), { only: ["fail2ban"] })
		expect(restore.exitCode).toBe(3)
		expect(JSON.stringify(restore.events)).toMatch(/it has no sidecar: it was never finished/)
	})

	test("refuses another environment's snapshot with code 8", async () => {
		const server = world.fillServer()
		await world.backup(server, { only: ["ssh-host-keys"] })
		for (const directory of [world.share, world.second]) {
			const [archive = ""] = archives(directory, "ssh-host-keys")
			const sidecar = JSON.parse(readFileSync(`${archive}.json`, "utf8"))
			writeFileSync(`${archive}.json`, JSON.stringify({ ...sidecar, environment: "production" }))
		}
		const restore = await world.restore(world.freshServer("fresh"), { only: ["ssh-host-keys"] })
		expect(restore.exitCode).toBe(8)
		expect(JSON.stringify(restore.events)).toMatch(/was taken from production/)
	})

	test("one bit flipped anywhere in a sidecar is never believed", async () => {
		const server = world.fillServer()
		await world.backup(server, { only: ["fail2ban"] })
		const before = world.inventory(server, ["etc/fail2ban"])
		const [archive = ""] = archives(world.share, "fail2ban")
		const sidecar = readFileSync(`${archive}.json`)
		for (let byte = 0; byte < sidecar.length; byte += 7) {
			const damaged = Buffer.from(sidecar)
			damaged[byte] = (damaged[byte] ?? 0) ^ 2
			writeFileSync(`${archive}.json`, damaged)
			const fresh = world.freshServer(`fresh-${byte}`)
			const restore = await world.restore(fresh, { only: ["fail2ban"] })
			expect(restore.exitCode, `byte ${byte}: ${JSON.stringify(restore.events)}`).toBe(0)
			expect(world.inventory(fresh, ["etc/fail2ban"])).toBe(before)
			for (const name of readdirSync(join(world.share, "sandbox/fail2ban")))
				if (name.includes(".bad-")) rmSync(join(world.share, "sandbox/fail2ban", name))
			writeFileSync(archive, readFileSync(archives(world.second, "fail2ban")[0] ?? ""))
		}
	})
})

describe("the floor", () => {
	test("a server whose keys are gone is not backed up as one without keys", async () => {
		const server = world.fillServer()
		await world.backup(server)
		rmSync(join(server, "etc/ssh/ssh_host_ed25519_key"))
		const backup = await world.backup(server)
		expect(backup.exitCode).toBe(3)
		expect(backup.outcome("ssh-host-keys")).toBe("failed")
		expect(backup.outcome("fail2ban")).toBe("satisfied")
		expect(JSON.stringify(backup.events)).toMatch(/ssh_host_ed25519_key is missing/)
	})

	test("a 45-byte archive is refused by restore, whatever its sidecar says", async () => {
		const server = world.fillServer()
		await world.backup(server, { only: ["ssh-host-keys"] })
		for (const directory of [world.share, world.second])
			truncateSync(archives(directory, "ssh-host-keys")[0] ?? "", 45)
		const restore = await world.restore(world.freshServer("fresh"), { only: ["ssh-host-keys"] })
		expect(restore.exitCode).toBe(3)
		expect(JSON.stringify(restore.events)).toMatch(/its archive has 45 bytes/)
	})

	test("a snapshot that lost most of its size is stored, and said", async () => {
		const server = world.fillServer()
		writeFileSync(join(server, "home/dev/large"), Buffer.alloc(100_000, "x"))
		await world.backup(server, { only: ["home"] })
		rmSync(join(server, "home/dev/large"))
		world.later(60)
		const backup = await world.backup(server, { only: ["home"] })
		expect(backup.exitCode).toBe(3)
		expect(backup.notes.join("\n")).toMatch(/it shrank from \d+ to \d+ bytes/)
		expect(archives(world.share, "home")).toHaveLength(2)
		const restore = await world.restore(world.freshServer("fresh"), { only: ["home"] })
		expect(restore.notes.join("\n")).toMatch(/is much smaller than the snapshot before it/)
	})
})

describe("files in use", () => {
	test("are not thrown back to the snapshot they came from", async () => {
		await world.backup(world.fillServer())
		const fresh = world.freshServer("fresh")
		await world.restore(fresh)
		writeFileSync(join(fresh, "home/dev/.zshrc"), "edited since\n".repeat(20))
		const again = await world.restore(fresh)
		expect(again.outcome("home")).toBe("satisfied")
		expect(readFileSync(join(fresh, "home/dev/.zshrc"), "utf8")).toMatch(/edited since/)
	})

	test("are not thrown back on the server that made the snapshot", async () => {
		const server = world.fillServer()
		await world.backup(server)
		writeFileSync(join(server, "home/dev/.zshrc"), "edited since\n".repeat(20))
		expect((await world.restore(server)).outcome("home")).toBe("satisfied")
		expect(readFileSync(join(server, "home/dev/.zshrc"), "utf8")).toMatch(/edited since/)
	})

	test("are put back by --at, and what stood there is kept", async () => {
		const server = world.fillServer()
		await world.backup(server)
		writeFileSync(join(server, "home/dev/.zshrc"), "edited since\n".repeat(20))
		const restore = await world.restore(server, { only: ["home"], at: new Date("2026-11-21T06:30:00Z") })
		expect(restore.outcome("home")).toBe("applied")
		expect(readFileSync(join(server, "home/dev/.zshrc"), "utf8")).toMatch(/EDITOR/)
		const kept = execFileSync("grep", ["-rl", "edited since", join(server, "home/.comfyume")], {
			encoding: "utf8",
		})
		expect(kept).toMatch(/replaced-.*\.zshrc/)
	})

	test("are restored all the same when they miss their floor", async () => {
		const server = world.fillServer()
		await world.backup(server)
		writeFileSync(join(server, "etc/ssh/ssh_host_ed25519_key"), "")
		const restore = await world.restore(server, { only: ["ssh-host-keys"] })
		expect(restore.outcome("ssh-host-keys")).toBe("applied")
	})
})

describe("code", () => {
	test("comes back at the commit that was running, not at the newest", async () => {
		const server = world.fillServer()
		await world.backup(server)
		const running = execFileSync("git", ["-C", join(server, "home/dev/project"), "rev-parse", "HEAD"], {
			encoding: "utf8",
		})
		pushCommit(world.remote, "a later commit")
		const fresh = world.freshServer("fresh")
		expect((await world.restore(fresh)).exitCode).toBe(0)
		expect(
			execFileSync("git", ["-C", join(fresh, "home/dev/project"), "rev-parse", "HEAD"], { encoding: "utf8" }),
		).toBe(running)
	})

	test("with uncommitted changes fails its backup, and a restore refuses to lose them", async () => {
		const server = world.fillServer()
		await world.backup(server)
		writeFileSync(join(server, "home/dev/project/docker-compose.yml"), "services: { edited: {} }\n")
		const backup = await world.backup(server)
		expect(backup.exitCode).toBe(3)
		expect(JSON.stringify(backup.events)).toMatch(/changes that are in no commit/)
		pushCommit(world.remote, "another")
		execFileSync("git", ["-C", join(server, "home/dev/scripts"), "pull", "--quiet"])
		world.environment.git.project.commit = execFileSync("git", ["-C", world.remote, "rev-parse", "main"], {
			encoding: "utf8",
		}).trim()
		const restore = await world.restore(server, { only: ["project"] })
		expect(restore.exitCode).toBe(8)
		expect(readFileSync(join(server, "home/dev/project/docker-compose.yml"), "utf8")).toMatch(/edited/)
	})

	test("that was never pushed fails its backup", async () => {
		const server = world.fillServer()
		const project = join(server, "home/dev/project")
		execFileSync("git", [
			"-C",
			project,
			"-c",
			"user.name=a",
			"-c",
			"user.email=a@example.test",
			"commit",
			"--quiet",
			"--allow-empty",
			"-m",
			"mine",
		])
		const backup = await world.backup(server, { only: ["project"] })
		expect(backup.exitCode).toBe(3)
		expect(JSON.stringify(backup.events)).toMatch(/never pushed/)
	})
})

test("backups that stopped days ago are refused, and taken with --at", async () => {
	await world.backup(world.fillServer())
	world.later(80 * 60)
	const fresh = world.freshServer("fresh")
	const refused = await world.restore(fresh)
	expect(refused.exitCode).toBe(8)
	expect(refused.outcome("home")).toBe("blocked")
	const hint = JSON.stringify(refused.events).match(/--at (\S+)/)?.[1] ?? ""
	expect((await world.restore(fresh, { at: new Date(hint) })).exitCode).toBe(0)
})

test("an older backup without a sidecar needs --allow-unverified", async () => {
	const server = world.fillServer()
	const before = world.inventory(server, ["etc/fail2ban"])
	execFileSync("tar", ["-czf", join(world.share, "fail2ban-2026-11-20.tar.gz"), "-C", server, "etc/fail2ban"])
	execFileSync("tar", ["-czf", join(world.share, "fail2ban-2026-11-21.tar.gz"), "-T", "/dev/null"])
	const fresh = world.freshServer("fresh")
	const refused = await world.restore(fresh, { only: ["fail2ban"] })
	expect(refused.exitCode).toBe(3)
	expect(JSON.stringify(refused.events)).toMatch(/--allow-unverified/)
	const restore = await world.restore(fresh, { only: ["fail2ban"], allowUnverified: true })
	expect(restore.exitCode, JSON.stringify(restore.events)).toBe(0)
	expect(restore.notes.join("\n")).toMatch(/skipped share: fail2ban-2026-11-21.tar.gz: it holds too little/)
	expect(world.inventory(fresh, ["etc/fail2ban"])).toBe(before)
})
