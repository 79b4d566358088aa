import { readdirSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import type { Instance } from "../support/instance/instance.ts"
import { describeWith } from "../support/parts.ts"
import { damageAll, type Identity, inventoryOf, openWorkshop, type Workshop } from "../support/workshop.ts"

// The machine itself, its containers, timers and checks are another story (whole-server.test.ts).
const artifactsAlone = ["--skip", "machine,containers,timers,checks"]

// One story: a server is backed up by its own comfyume, destroyed, and restored over SSH from an operator's laptop.
// The later tests restore the same backups under worse conditions, each onto a fresh instance.
describeWith("instances", "a server is backed up, lost and restored", () => {
	let workshop: Workshop
	let identity: Identity
	let lost: string
	let commit: string

	beforeAll(async () => {
		workshop = await openWorkshop()
		const first = await workshop.freshInstance("first")
		identity = await workshop.makeServer(first)
		await workshop.pointAt(first, identity)

		// A developer looks from the laptop; that puts the release on the server.
		const look = await workshop.comfyume("backup", "--env", "rehearsal", "--dry-run")
		expect(look.exitCode, look.stderr).toBe(0)
		// From now on the server works by itself, as its timer starts it.
		await workshop.installConfiguration(first, identity)
		const [release = ""] = readdirSync(join(first.root, "opt/comfyume"))
		const backup = await first.run([`/opt/comfyume/${release}/bin/comfyume`, "backup"], {
			allowedExitCodes: "any",
		})
		expect(backup.exitCode, backup.stdout + backup.stderr).toBe(0)

		lost = inventoryOf(first)
		commit = await headOf(first)
		await first.destroy()
	})
	afterAll(() => workshop?.[Symbol.asyncDispose]())

	const headOf = async (instance: Instance) => {
		const asked = ["runuser", "-u", "dev", "--", "git", "-C", "/home/dev/project", "rev-parse", "HEAD"]
		return (await instance.run(asked)).stdout.trim()
	}

	const restore = async (instance: Instance, ...words: string[]) => {
		await workshop.pointAt(instance, identity)
		const fingerprint = await workshop.consoleFingerprint(instance)
		return workshop.comfyume(
			...["restore", "--env", "rehearsal", "--identity-is-free", "--json", ...artifactsAlone],
			...["--host-fingerprint", fingerprint],
			...words,
		)
	}

	const endingOf = (name: string) => name.slice(name.indexOf("."))

	const outcomes = (json: string): Record<string, string> =>
		Object.fromEntries(
			json
				.split("\n")
				.filter((line) => line.includes('"event":"step"'))
				.map((line) => JSON.parse(line) as { step: string; outcome: string })
				.map(({ step, outcome }) => [step, outcome]),
		)

	test("everything is byte for byte the lost server's, owners and modes included, and a second run applies nothing", async () => {
		await using second = await workshop.freshInstance("second")
		const ran = await restore(second)
		expect(ran.exitCode, ran.stdout + ran.stderr).toBe(0)
		expect(inventoryOf(second)).toBe(lost)

		// The key that opened the encrypted ones came over SSH, and was written nowhere.
		expect(
			readdirSync(join(workshop.share, "cache/backups/rehearsal/env-file")).map(endingOf).sort(),
		).toEqual([".tar.zst.age", ".tar.zst.age.json"])
		const search = [
			"grep",
			"-rlF",
			"--exclude-dir=proc",
			"--exclude-dir=sys",
			workshop.ageIdentity,
			"/etc",
			"/opt",
		]
		const places = ["/root", "/home", "/var", "/tmp", "/run"]
		expect((await second.run([...search, ...places], { allowedExitCodes: "any" })).stdout).toBe("")

		// Who the server is, asked from outside: the wire and the tailnet, not the files.
		const wire = [...(await second.hostKeyFingerprintsOnWire()).values()]
		expect(wire.length).toBeGreaterThan(0)
		expect(identity.hostKeys).toEqual(expect.arrayContaining(wire))
		const { stdout: address } = await second.run(["tailscale", "ip", "-4"])
		expect(address.trim()).toBe(identity.tailscaleAddress)
		expect(await headOf(second)).toBe(commit)
		await second.run(["systemctl", "is-active", "ssh", "tailscaled"])

		// The key of the fresh machine is gone, and its fingerprint isn't needed any more.
		const again = await workshop.comfyume("restore", "--env", "rehearsal", "--json", ...artifactsAlone)
		expect(again.exitCode, again.stdout + again.stderr).toBe(0)
		expect(Object.values(outcomes(again.stdout)).filter((outcome) => outcome !== "satisfied")).toEqual([])
		expect(again.stdout).not.toContain('"event":"applying"')
		expect(inventoryOf(second)).toBe(lost)

		// It also outlives a reboot.
		await second.reboot()
		await second.waitForSsh()
		expect([...(await second.hostKeyFingerprintsOnWire()).values()].sort()).toEqual(wire.sort())
	})

	test("with the share empty everything comes from the object store", async () => {
		const giveBack = await workshop.emptyShare()
		try {
			await using instance = await workshop.freshInstance("from-r2")
			const ran = await restore(instance)
			expect(ran.exitCode, ran.stdout + ran.stderr).toBe(0)
			expect(inventoryOf(instance)).toBe(lost)
			expect(ran.stdout).toMatch(/"artifact":"home","source":"r2"/)
		} finally {
			await giveBack()
		}
	})

	test("with the object store unreachable everything comes from the share", async () => {
		const outage = workshop.s3.fault({ match: {}, do: "reset" })
		try {
			await using instance = await workshop.freshInstance("from-share")
			const ran = await restore(instance)
			expect(ran.exitCode, ran.stdout + ran.stderr).toBe(0)
			expect(inventoryOf(instance)).toBe(lost)
			expect(ran.stdout).toMatch(/"artifact":"home","source":"share"/)
		} finally {
			outage.remove()
		}
	})

	test("with every copy of an artifact corrupt it fails with code 3, restores the others, and leaves the old files", async () => {
		await using instance = await workshop.freshInstance("all-bad")
		const directory = join(workshop.share, "cache/backups/rehearsal/fail2ban")
		const archives = readdirSync(directory)
			.filter((name) => name.endsWith(".tar.zst"))
			.map((name) => join(directory, name))
		await damageAll(archives)
		const rotten = workshop.s3.fault({
			match: { operation: "GetObject", key: /fail2ban.*zst$/ },
			do: "flip-bit",
		})
		try {
			const look = ["sh", "-c", "cd /etc/fail2ban && find . -type f -print0 | sort -z | xargs -0 sha256sum"]
			const before = (await instance.run(look)).stdout
			const ran = await restore(instance)
			expect(ran.exitCode, ran.stdout).toBe(3)
			expect(outcomes(ran.stdout)["fail2ban"]).toBe("failed")
			expect(outcomes(ran.stdout)["home"]).toBe("applied")
			expect((await instance.run(look)).stdout).toBe(before)
		} finally {
			rotten.remove()
			await damageAll(archives)
		}
	})

	test("a machine that shows another host key than its console is not given anything", async () => {
		await using instance = await workshop.freshInstance("stranger")
		await workshop.pointAt(instance, identity)
		const ran = await workshop.comfyume(
			...["restore", "--env", "rehearsal", "--identity-is-free", ...artifactsAlone],
		)
		expect(ran.exitCode, ran.stderr).toBe(8)
		expect(ran.stderr).toMatch(/SHA256:/)
		expect(readdirSync(join(instance.root, "opt"))).toEqual([])
	})

	test("nothing was ever deleted from the object store, and no secret stood in an argument or a URL", () => {
		const operations = new Set(workshop.s3.log.map(({ operation }) => operation))
		expect([...operations].filter((operation) => /Delete/.test(operation))).toEqual([])
		expect(operations).toContain("PutObject")
		for (const { url } of workshop.git.requests) expect(url).not.toContain("made-up-git-token")
	})
})
