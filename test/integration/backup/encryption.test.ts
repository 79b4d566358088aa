// Backups of identity and secrets, encrypted: what lies in the stores, who needs the key and when, and age's own tool.
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import {
	copyFileSync,
	existsSync,
	mkdirSync,
	readdirSync,
	readFileSync,
	rmSync,
	truncateSync,
	unlinkSync,
	writeFileSync,
} from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { encryptFile, openArchive } from "../../../src/lib/artifacts/encryption.ts"
import { readTree, treeDigest } from "../../../src/lib/artifacts/tree.ts"
import { localHost } from "../../../src/lib/host/local.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { type AgeKey, encryptedFor, makeAgeKey } from "../../support/age.ts"
import { describeWith } from "../../support/parts.ts"
import { createSandbox, flipBit, type Ran, type Sandbox } from "../../support/sandbox.ts"

const secret = ["tailscale-identity", "ssh-host-keys", "env-file"]
const everything = ["etc/ssh", "etc/ufw", "etc/default", "etc/fail2ban", "home/dev"]

let sandbox: Sandbox
let key: AgeKey
beforeEach(async () => {
	sandbox = await createSandbox()
	key = await makeAgeKey()
	sandbox.encryptFor(key.recipient)
})
afterEach(() => sandbox[Symbol.dispose]())

const filesOf = (store: string, artifact: string, ending = "") =>
	readdirSync(join(store, "sandbox", artifact))
		.filter((name) => name.endsWith(ending) && !name.includes(".bad-"))
		.sort()
		.map((name) => join(store, "sandbox", artifact, name))
const newest = (store: string, artifact: string) => filesOf(store, artifact, ".age").at(-1) ?? ""
const readJson = (file: string) => JSON.parse(readFileSync(file, "utf8"))
const sha256 = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex")
const said = (ran: Ran) =>
	JSON.stringify(
		ran.events.filter(({ event }) => event === "step" || event === "note"),
		null,
		1,
	)
const becauseOf = (ran: Ran, id: string) =>
	ran.events.flatMap((event) => (event.event === "step" && event.step === id ? [event.because] : [])).join()
const envFile = (server: string) => readFileSync(join(server, "home/dev/project/.env"), "utf8")
const changeEnv = (server: string, text: string) => writeFileSync(join(server, "home/dev/project/.env"), text)
/** Everything below a directory that holds these bytes, by grep. */
const holding = (directory: string, text: string) => {
	try {
		return execFileSync("grep", ["-rlaF", "--", text, directory], { encoding: "utf8" }).trim().split("\n")
	} catch {
		return []
	}
}

describe("what lies in the stores", () => {
	test("is encrypted of what is secret, in the clear of the rest, and a restore with the key brings back both", async () => {
		const server = await sandbox.fillServer()
		const before = sandbox.inventory(server, everything)
		const backup = await sandbox.backup(server)
		expect(backup.exitCode, said(backup)).toBe(0)
		for (const store of [sandbox.share, sandbox.second]) {
			for (const artifact of secret)
				expect(filesOf(store, artifact).map((file) => file.replace(/.*\.tar/, ".tar"))).toEqual([
					".tar.zst.age",
					".tar.zst.age.json",
				])
			expect(filesOf(store, "ufw").map((file) => file.replace(/.*\.tar/, ".tar"))).toEqual([
				".tar.zst",
				".tar.zst.json",
			])
		}
		expect(readdirSync(join(server, "var/lib/comfyume/work"))).toEqual([])
		rmSync(server, { recursive: true })

		sandbox.setIdentity(key.identity)
		const fresh = await sandbox.freshServer("fresh")
		const restore = await sandbox.restore(fresh)
		expect(restore.exitCode, said(restore)).toBe(0)
		expect(sandbox.inventory(fresh, everything)).toBe(before)
		expect(readdirSync(join(fresh, "var/lib/comfyume/work"))).toEqual([])
		expect(holding(sandbox.directory, key.identity)).toEqual([])
	})

	test("gives no guess a proof: the sidecar holds neither names nor a digest of what is in it", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["env-file"] })
		const host = localHost({ name: "app-1", root: server, environment: process.env })
		const tree = await readTree(host, { paths: ["/home/dev/project/.env"], exclude: [] })
		const guesses = [
			sha256(Buffer.from(envFile(server))),
			treeDigest(tree, { ownership: false }),
			treeDigest(tree, { ownership: true }),
		]
		const archive = newest(sandbox.share, "env-file")
		const sidecar = readJson(`${archive}.json`)
		expect(sidecar).toMatchObject({
			digest: sha256(readFileSync(archive)),
			encryption: { recipients: [key.recipient] },
		})
		for (const guess of [...guesses, ".env", "made-up-value"]) {
			expect(holding(sandbox.share, guess), guess).toEqual([])
			expect(holding(sandbox.second, guess), guess).toEqual([])
		}
		// The host itself may know: its own note is for root alone.
		expect(
			execFileSync("stat", ["-c", "%a", join(server, "var/lib/comfyume/lineage/env-file")], {
				encoding: "utf8",
			}),
		).toBe("600\n")
	})

	test("is said once a run when nobody is named to encrypt it for, and by cron's line without a warning", async () => {
		sandbox.encryptFor()
		const server = await sandbox.fillServer()
		const notes = (ran: Ran) =>
			ran.events.flatMap((event) =>
				event.event === "note" && event.text.includes("not encrypted") ? [event] : [],
			)
		const backup = await sandbox.backup(server)
		expect(backup.exitCode).toBe(0)
		// Of the catalogue what this server has: no certificates, no stack.
		expect(notes(backup)).toEqual([
			expect.objectContaining({
				level: "warning",
				text: expect.stringMatching(
					/read share or r2 .* in tailscale-identity, ssh-host-keys, home, env-file\. .*backups\.recipients of sandbox/,
				),
			}),
		])
		sandbox.later(61)
		expect(notes(await sandbox.backup(server, { scheduled: true }))).toEqual([
			expect.objectContaining({ level: "info" }),
		])
		expect(notes(await sandbox.backup(server, { only: ["ufw"] }))).toEqual([])
		sandbox.encryptFor(key.recipient)
		expect(notes(await sandbox.backup(server))).toEqual([])
	})
})

describe("what has not changed", () => {
	test("is not stored again: the host needs no key to know", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server)
		const stored = sandbox.inventory(sandbox.share, ["."])
		sandbox.later(60)
		const again = await sandbox.backup(server)
		expect(again.events.filter(({ event }) => event === "applying")).toEqual([])
		expect(sandbox.inventory(sandbox.share, ["."])).toBe(stored)
		changeEnv(server, "DOMAIN=workshop.example.test\nREDIS_PASSWORD=another-made-up-value\n")
		sandbox.later(60)
		const changed = await sandbox.backup(server)
		expect(changed.events.flatMap((event) => (event.event === "applying" ? [event.step] : []))).toEqual([
			"env-file",
		])
	})

	test("is not stored again by a server that was restored", async () => {
		await sandbox.backup(await sandbox.fillServer(), { only: secret })
		sandbox.setIdentity(key.identity)
		const fresh = await sandbox.freshServer("fresh")
		await sandbox.restore(fresh)
		sandbox.setIdentity(undefined)
		sandbox.later(60)
		const backup = await sandbox.backup(fresh, { only: ["ssh-host-keys", "env-file"] })
		expect(
			backup.events.filter(({ event }) => event === "applying"),
			said(backup),
		).toEqual([])
	})

	test("is stored once more when the host has lost its note", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["env-file"] })
		rmSync(join(server, "var/lib/comfyume/lineage"), { recursive: true })
		sandbox.later(60)
		const dry = await sandbox.backup(server, { only: ["env-file"], dryRun: true })
		expect(becauseOf(dry, "env-file")).toMatch(/is encrypted, and this host has no note of what is in it/)
		expect((await sandbox.backup(server, { only: ["env-file"] })).outcome("env-file")).toBe("applied")
		sandbox.later(60)
		expect((await sandbox.backup(server, { only: ["env-file"] })).outcome("env-file")).toBe("satisfied")
	})

	test("is stored anew for other recipients than it is encrypted for, and in no other order", async () => {
		const other = await makeAgeKey()
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["env-file"] })
		sandbox.encryptFor(key.recipient, other.recipient)
		sandbox.later(60)
		const added = await sandbox.backup(server, { only: ["env-file"], dryRun: true })
		expect(becauseOf(added, "env-file")).toMatch(/on share is encrypted for others than are configured now/)
		await sandbox.backup(server, { only: ["env-file"] })
		expect(readJson(`${newest(sandbox.share, "env-file")}.json`).encryption.recipients).toEqual([
			key.recipient,
			other.recipient,
		])
		sandbox.encryptFor(other.recipient, key.recipient)
		expect((await sandbox.backup(server, { only: ["env-file"] })).outcome("env-file")).toBe("satisfied")
	})

	test("is stored anew when it lies in the clear, and what lay there before stays readable", async () => {
		sandbox.encryptFor()
		const server = await sandbox.fillServer()
		const before = envFile(server)
		await sandbox.backup(server, { only: ["env-file"] })
		sandbox.encryptFor(key.recipient)
		sandbox.later(60)
		const dry = await sandbox.backup(server, { only: ["env-file"], dryRun: true })
		expect(becauseOf(dry, "env-file")).toMatch(
			/Z-\w{12} lies in the clear on share; .* lies in the clear on r2/,
		)
		await sandbox.backup(server, { only: ["env-file"] })
		expect(newest(sandbox.share, "env-file")).not.toBe("")
		changeEnv(server, "DOMAIN=something.example.test\nOTHER=value\n")
		const old = await sandbox.restore(server, { only: ["env-file"], at: new Date("2026-11-21T06:30:00Z") })
		expect(old.exitCode, said(old)).toBe(0)
		expect(envFile(server)).toBe(before)
	})

	test("is not put into the clear when the recipients go from the configuration", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["env-file"] })
		sandbox.encryptFor()
		sandbox.later(60)
		expect((await sandbox.backup(server, { only: ["env-file"] })).outcome("env-file")).toBe("satisfied")
	})
})

describe("without the key", () => {
	test("a destination that lacks a snapshot gets the same bytes from one that has it", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["env-file"], to: ["share"] })
		const archive = newest(sandbox.share, "env-file")
		const both = await sandbox.backup(server, { only: ["env-file"] })
		expect(both.exitCode, said(both)).toBe(0)
		expect(readFileSync(newest(sandbox.second, "env-file")).equals(readFileSync(archive))).toBe(true)
		expect(filesOf(sandbox.second, "env-file")).toHaveLength(2)
	})

	test("a damaged one is not copied on: it is taken anew", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["env-file"], to: ["share"] })
		flipBit(newest(sandbox.share, "env-file"))
		sandbox.later(60)
		const both = await sandbox.backup(server, { only: ["env-file"] })
		expect(both.notes.join("\n")).toMatch(/can't be copied and is taken anew: .*its digest is/)
	})

	test("nothing is restored, no older state in the clear either: the artifact and whose key is missing are named", async () => {
		sandbox.encryptFor()
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["env-file", "ufw"] })
		sandbox.encryptFor(key.recipient)
		sandbox.later(60)
		await sandbox.backup(server, { only: ["env-file", "ufw"] })
		rmSync(join(server, "home/dev/project/.env"))
		rmSync(join(server, "etc/ufw/user.rules"))
		for (const dryRun of [true, false]) {
			const restore = await sandbox.restore(server, { only: ["env-file", "ufw"], dryRun })
			expect(restore.exitCode).toBe(6)
			expect(becauseOf(restore, "env-file")).toBe(
				`env-file of 2026-11-21T07:00:00.000Z is encrypted for ${key.recipient}, and there is no AGE_IDENTITY`,
			)
			expect(restore.outcome("ufw")).toBe(dryRun ? "planned" : "applied")
			expect(existsSync(join(server, "home/dev/project/.env"))).toBe(false)
		}
		sandbox.setIdentity((await makeAgeKey()).identity)
		const wrong = await sandbox.restore(server, { only: ["env-file"] })
		expect([wrong.exitCode, becauseOf(wrong, "env-file")]).toEqual([
			6,
			expect.stringMatching(/AGE_IDENTITY is the key of age1/),
		])
		sandbox.setIdentity(key.identity.slice(0, -1))
		const mistyped = await sandbox.restore(server, { only: ["env-file"] })
		expect([mistyped.exitCode, becauseOf(mistyped, "env-file")]).toEqual([
			2,
			expect.stringContaining("is not an age identity (line 1)"),
		])
		expect(said(mistyped)).not.toContain(key.identity.slice(20, 40))
		sandbox.setIdentity(key.identity)
		expect((await sandbox.restore(server, { only: ["env-file"] })).outcome("env-file")).toBe("applied")
	})

	test("no single file comes back either, and with it one does", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["home"] })
		const notes = join(server, "home/dev/notes with spaces.txt")
		rmSync(notes)
		const asked = { only: ["home"], files: ["notes with spaces.txt"] }
		for (const dryRun of [true, false])
			expect((await sandbox.restore(server, { ...asked, dryRun })).exitCode).toBe(6)
		sandbox.setIdentity(key.identity)
		const restore = await sandbox.restore(server, asked)
		expect(restore.exitCode, said(restore)).toBe(0)
		expect(readFileSync(notes, "utf8")).toBe("an operator's notes\n")
	})

	test("a restore says that all is right where it is", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server)
		const restore = await sandbox.restore(server)
		expect(restore.exitCode, said(restore)).toBe(0)
		expect(becauseOf(restore, "env-file")).toMatch(/it is byte for byte/)
		changeEnv(server, "DOMAIN=workshop.example.test\nREDIS_PASSWORD=newer-work\n")
		expect(becauseOf(await sandbox.restore(server), "env-file")).toMatch(/has been in use since/)
	})
})

describe("a bad copy", () => {
	test("with one bit flipped is passed over, and healed with the very bytes of the good one", async () => {
		await sandbox.backup(await sandbox.fillServer(), { only: ["ssh-host-keys"] })
		const archive = newest(sandbox.share, "ssh-host-keys")
		const good = readFileSync(archive)
		flipBit(archive)
		sandbox.setIdentity(key.identity)
		const restore = await sandbox.restore(await sandbox.freshServer("fresh"), { only: ["ssh-host-keys"] })
		expect(restore.exitCode, said(restore)).toBe(0)
		expect(restore.notes.join("\n")).toMatch(
			/skipped share: \S+: its digest is[\s\S]*healed share: \S+ from r2/,
		)
		expect(readFileSync(archive).equals(good)).toBe(true)
	})

	test("whose sidecar names somebody else, or an open archive, keeps nobody from the good one", async () => {
		const other = await makeAgeKey()
		await sandbox.backup(await sandbox.fillServer(), { only: ["ssh-host-keys"] })
		const sidecar = `${newest(sandbox.share, "ssh-host-keys")}.json`
		const good = readJson(sidecar)
		const { encryption, ...clear } = good
		sandbox.setIdentity(key.identity)
		const sealed = (treeDigest: string) => ({ ...good, encryption: { ...encryption, treeDigest } })
		const cases: [bad: object, says: RegExp][] = [
			[{ ...good, encryption: { ...encryption, recipients: [other.recipient] } }, /healed share/],
			[sealed(encryption.treeDigest.replace(/.{10}$/, "AAAAAAAAAA")), /its encrypted content is damaged/],
			[{ ...good, treeDigest: "0".repeat(64) }, /a tree's digest in the clear or an encrypted one/],
			[{ ...clear, treeDigest: "0".repeat(64) }, /by its name it is encrypted and by its sidecar not/],
		]
		for (const [index, [bad, says]] of cases.entries()) {
			writeFileSync(sidecar, JSON.stringify(bad))
			const restore = await sandbox.restore(await sandbox.freshServer(`fresh-${index}`), {
				only: ["ssh-host-keys"],
			})
			expect(restore.exitCode, said(restore)).toBe(0)
			expect(restore.notes.join("\n")).toMatch(says)
			expect(readJson(sidecar)).toEqual(good)
			for (const name of readdirSync(join(sandbox.share, "sandbox/ssh-host-keys")))
				if (name.includes(".bad-")) unlinkSync(join(sandbox.share, "sandbox/ssh-host-keys", name))
		}
	})

	test("whose sidecar names somebody else, while the other one is damaged, is no reason for an older state", async () => {
		sandbox.encryptFor()
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["env-file"] })
		sandbox.encryptFor(key.recipient)
		sandbox.later(60)
		await sandbox.backup(server, { only: ["env-file"] })
		const sidecar = `${newest(sandbox.share, "env-file")}.json`
		const good = readJson(sidecar)
		const { recipient } = await makeAgeKey()
		writeFileSync(
			sidecar,
			JSON.stringify({ ...good, encryption: { ...good.encryption, recipients: [recipient] } }),
		)
		flipBit(newest(sandbox.second, "env-file"))
		rmSync(join(server, "home/dev/project/.env"))
		sandbox.setIdentity(key.identity)
		const restore = await sandbox.restore(server, { only: ["env-file"] })
		expect([restore.exitCode, becauseOf(restore, "env-file")]).toEqual([
			6,
			expect.stringContaining(recipient),
		])
		expect(existsSync(join(server, "home/dev/project/.env"))).toBe(false)
	})

	/** A newer snapshot of the env file on the share, with a sidecar that fits it. */
	const plant = (bytes: Buffer, encryption?: object) => {
		const sidecar = readJson(`${newest(sandbox.share, "env-file")}.json`)
		const digest = sha256(bytes)
		const file = join(
			sandbox.share,
			"sandbox/env-file",
			`20261121T063000Z-${digest.slice(0, 12)}.tar.zst.age`,
		)
		writeFileSync(file, bytes)
		const facts = { takenAt: "2026-11-21T06:30:00.000Z", digest, sizeBytes: bytes.length }
		writeFileSync(`${file}.json`, JSON.stringify({ ...sidecar, ...facts, ...(encryption && { encryption }) }))
	}

	test.each<[string, () => Promise<void>, RegExp]>([
		[
			"that is in the clear under an encrypted one's name",
			async () => plant(Buffer.from("x".repeat(500))),
			/it is not a file of age's/,
		],
		[
			"for somebody else",
			async () => plant(await encryptedFor(Buffer.from("x"), (await makeAgeKey()).recipient)),
			/its header is not for the recipients/,
		],
		[
			"that holds no archive",
			async () => plant(await encryptedFor(Buffer.from("no archive"), key.recipient)),
			/its compression is damaged/,
		],
		[
			"that holds another artifact",
			async () => {
				await sandbox.backup(join(sandbox.directory, "server"), { only: ["ssh-host-keys"] })
				plant(readFileSync(newest(sandbox.share, "ssh-host-keys")))
			},
			/is not part of this artifact/,
		],
		[
			"whose content is not what its sidecar has sealed",
			async () =>
				plant(readFileSync(newest(sandbox.share, "env-file")), {
					recipients: [key.recipient],
					treeDigest: (await encryptedFor(Buffer.from("0".repeat(64)), key.recipient)).toString("base64"),
				}),
			/its content is not what its sidecar says/,
		],
	])("%s is refused with its sidecar fitting: the one before is taken, and said", async (_, make, says) => {
		const server = await sandbox.fillServer()
		const before = envFile(server)
		await sandbox.backup(server, { only: ["env-file"] })
		await make()
		rmSync(join(server, "home/dev/project/.env"))
		rmSync(join(server, "var/lib/comfyume/lineage"), { recursive: true })
		sandbox.setIdentity(key.identity)
		const restore = await sandbox.restore(server, { only: ["env-file"] })
		expect(restore.exitCode, said(restore)).toBe(3)
		expect(restore.notes.join("\n")).toMatch(says)
		expect(restore.notes.join("\n")).toMatch(/is bad everywhere: taken is the older/)
		expect(envFile(server)).toBe(before)
		expect(readdirSync(join(server, "var/lib/comfyume/work"))).toEqual([])
	})

	test("everywhere ends with 3, and nothing is written", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: ["ssh-host-keys"] })
		for (const store of [sandbox.share, sandbox.second]) truncateSync(newest(store, "ssh-host-keys"), 100)
		sandbox.setIdentity(key.identity)
		const fresh = await sandbox.freshServer("fresh")
		const before = sandbox.inventory(fresh, ["etc"])
		const restore = await sandbox.restore(fresh, { only: ["ssh-host-keys"] })
		expect(restore.exitCode, said(restore)).toBe(3)
		expect(sandbox.inventory(fresh, ["etc"])).toBe(before)
		expect(readdirSync(join(fresh, "var/lib/comfyume/work"))).toEqual([])
	})
})

test("retention removes an encrypted snapshot whole, and status counts one", async () => {
	const server = await sandbox.fillServer()
	for (let day = 0; day < 8; day++) {
		changeEnv(server, `DOMAIN=workshop.example.test\nREDIS_PASSWORD=of-day-${day}\n`)
		await sandbox.backup(server, { only: ["env-file"] })
		sandbox.later(24 * 60)
	}
	sandbox.later(-24 * 60)
	expect(filesOf(sandbox.share, "env-file")).toHaveLength(16)
	const retention = await sandbox.retention(server, { only: ["env-file"] })
	expect(retention.exitCode, said(retention)).toBe(0)
	const left = filesOf(sandbox.share, "env-file")
	expect(left.filter((file) => file.endsWith(".age")).map((file) => `${file}.json`)).toEqual(
		left.filter((file) => file.endsWith(".json")),
	)
	expect(left.length).toBeLessThan(16)
	expect(filesOf(sandbox.second, "env-file")).toHaveLength(16)
	const status = await sandbox.status(server, { only: ["env-file"] })
	expect(status.outcome("env-file/share"), said(status)).toBe("satisfied")
})

describeWith("age", "age's own tool", () => {
	test("opens what a backup has stored, by the commands of the README, and finds the server's files in it", async () => {
		const server = await sandbox.fillServer()
		await sandbox.backup(server, { only: secret })
		const keyFile = join(sandbox.directory, "key.txt")
		writeFileSync(keyFile, `# from its safe place\n${key.identity}\n`, { mode: 0o600 })
		const archive = newest(sandbox.share, "ssh-host-keys")
		const script = `sed -n "s/.*\\"digest\\": \\"\\(.*\\)\\",/\\1  $A/p" $A.json | sha256sum -c && age -d -i "$KEY" $A | tar -I zstd -xp -C "$OUT"`
		const out = join(sandbox.directory, "out")
		mkdirSync(out)
		const env = { ...process.env, A: archive.slice(archive.lastIndexOf("/") + 1), KEY: keyFile, OUT: out }
		const checked = execFileSync("sh", ["-c", script], { cwd: join(archive, ".."), env, encoding: "utf8" })
		expect(checked).toMatch(/: OK\n$/)
		expect(sandbox.inventory(out, ["etc/ssh"]).trim()).toBe(
			sandbox
				.inventory(server, ["etc/ssh"])
				.split("\n")
				.filter((line) => !line.includes("sshd_config"))
				.join("\n")
				.trim(),
		)
	})

	test("makes what a restore opens", async () => {
		const server = await sandbox.fillServer()
		const before = envFile(server)
		await sandbox.backup(server, { only: ["env-file"] })
		const keyFile = join(sandbox.directory, "key.txt")
		execFileSync("age-keygen", ["-o", keyFile], { stdio: "pipe" })
		const recipient = execFileSync("age-keygen", ["-y", keyFile], { encoding: "utf8" }).trim()
		const [old = "", by = ""] = [newest(sandbox.share, "env-file"), join(sandbox.directory, "by-hand")]
		// What is in it, opened and encrypted anew by the tool, for somebody else.
		writeFileSync(join(sandbox.directory, "old.txt"), `${key.identity}\n`, { mode: 0o600 })
		execFileSync(
			"sh",
			["-c", 'age -d -i old.txt "$OLD" | age -r "$R" -o by-hand && printf %s "$D" | age -r "$R" -o seal'],
			{
				cwd: sandbox.directory,
				env: { ...process.env, OLD: old, R: recipient, D: treeDigestOfEnv(server) },
			},
		)
		const bytes = readFileSync(by)
		const file = join(old, "..", `20261121T063000Z-${sha256(bytes).slice(0, 12)}.tar.zst.age`)
		copyFileSync(by, file)
		const encryption = {
			recipients: [recipient],
			treeDigest: readFileSync(join(sandbox.directory, "seal")).toString("base64"),
		}
		const facts = { digest: sha256(bytes), sizeBytes: bytes.length, takenAt: "2026-11-21T06:30:00.000Z" }
		writeFileSync(`${file}.json`, JSON.stringify({ ...readJson(`${old}.json`), ...facts, encryption }))
		rmSync(join(server, "home/dev/project/.env"))
		sandbox.setIdentity(readFileSync(keyFile, "utf8"))
		const restore = await sandbox.restore(server, { only: ["env-file"] })
		expect(restore.exitCode, said(restore)).toBe(0)
		expect(becauseOf(restore, "env-file")).toMatch(/byte for byte 20261121T063000Z/)
		expect(envFile(server)).toBe(before)
	})

	/** What this host has noted of it. */
	const treeDigestOfEnv = (server: string): string =>
		readJson(join(server, "var/lib/comfyume/lineage/env-file")).holds
})

test("200 MB take no more memory than a little", async () => {
	const path = (name: string) => join(sandbox.directory, name)
	writeFileSync(path("large"), "")
	truncateSync(path("large"), 200 * 1024 * 1024)
	const digest = execFileSync("sha256sum", [path("large")], { encoding: "utf8" }).slice(0, 64)
	const { signal } = new AbortController()
	// The peak of the whole process: what came before the work is in it.
	const before = process.resourceUsage().maxRSS
	const stored = await encryptFile({
		from: path("large"),
		digest,
		to: path("large.age"),
		recipients: [key.recipient],
		signal,
	})
	await openArchive(
		{
			...{
				version: 1,
				kind: "archive",
				comfyume: "0",
				environment: "sandbox",
				host: "app-1",
				artifact: "env-file",
			},
			...{
				takenAt: "2026-11-21T06:00:00.000Z",
				members: 1,
				unpackedBytes: 1,
				ownership: false,
				changedWhileRead: [],
			},
			...{ ...stored, encryption: { recipients: [key.recipient], treeDigest: "" } },
		},
		{ identity: new Secret(key.identity), again: "" },
		{ from: path("large.age"), to: path("large.open"), signal },
	)
	expect(execFileSync("sha256sum", [path("large.open")], { encoding: "utf8" }).slice(0, 64)).toBe(digest)
	expect((process.resourceUsage().maxRSS - before) / 1024).toBeLessThan(120)
})
