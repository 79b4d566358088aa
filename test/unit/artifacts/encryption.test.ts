// Encrypted archives, and files that pass for such: one wrong thing each, with a digest that fits.
import { randomBytes } from "node:crypto"
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { armor, Encrypter } from "age-encryption"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { parseCatalogue } from "../../../src/lib/artifacts/catalogue.ts"
import {
	checkEncrypted,
	encryptFile,
	encryptText,
	openArchive,
	openTreeDigest,
} from "../../../src/lib/artifacts/encryption.ts"
import type { ArchiveSidecar } from "../../../src/lib/artifacts/snapshot.ts"
import { digestFile } from "../../../src/lib/artifacts/tree.ts"
import { OperatorError } from "../../../src/lib/errors.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { type AgeKey, encryptedFor, headerEnd, makeAgeKey } from "../../support/age.ts"

const { signal } = new AbortController()
const again = "comfyume restore --env sandbox --only env-file"
// Several chunks of 64 KiB, the last of them not full.
const content = randomBytes(200_000)
const chunk = 64 * 1024 + 16

let directory: string
let key: AgeKey
let other: AgeKey
beforeAll(async () => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-encryption-"))
	key = await makeAgeKey()
	other = await makeAgeKey()
})
afterAll(() => rmSync(directory, { recursive: true }))

const path = (name: string) => join(directory, name)

const sidecarFor = (...recipients: string[]): ArchiveSidecar => ({
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
		digest: "0".repeat(64),
		sizeBytes: 1,
		members: 1,
		unpackedBytes: 1,
	},
	...{ ownership: false, changedWhileRead: [], encryption: { recipients, treeDigest: "" } },
})

/** As a restore does it, once the digest has been proven. */
async function opened(bytes: Buffer, identity: string | undefined, ...recipients: string[]): Promise<Buffer> {
	writeFileSync(path("stored"), bytes)
	rmSync(path("open"), { force: true })
	const secret = identity === undefined ? undefined : new Secret(identity)
	await checkEncrypted(path("stored"), bytes.length, recipients.length)
	const files = { from: path("stored"), to: path("open"), signal }
	await openArchive(sidecarFor(...recipients), { identity: secret, again }, files)
	return readFileSync(path("open"))
}

async function refusal(work: Promise<unknown>): Promise<OperatorError> {
	const error = await work.then(
		() => undefined,
		(thrown: unknown) => thrown,
	)
	if (error instanceof OperatorError) return error
	throw new Error(`not refused in the operator's words: ${error}`)
}

const flipped = (bytes: Buffer, at: number) => {
	const damaged = Buffer.from(bytes)
	damaged[at] = (damaged[at] ?? 0) ^ 1
	return damaged
}

describe("an archive", () => {
	test("is encrypted for all recipients, each opens it, and only its owner can read what is on the disk", async () => {
		writeFileSync(path("plain"), content)
		const { digest } = await digestFile(path("plain"))
		const recipients = [key.recipient, other.recipient]
		const work = { from: path("plain"), digest, to: path("encrypted"), recipients, signal }
		expect(await encryptFile(work)).toEqual(await digestFile(path("encrypted")))
		expect(statSync(path("encrypted")).mode & 0o777).toBe(0o600)
		const encrypted = readFileSync(path("encrypted"))
		for (const { identity } of [key, other])
			expect((await opened(encrypted, identity, ...recipients)).equals(content)).toBe(true)
		expect(statSync(path("open")).mode & 0o777).toBe(0o600)
	})

	test("that changed after it was judged is not encrypted", async () => {
		writeFileSync(path("judged"), content)
		const { digest } = await digestFile(path("judged"))
		writeFileSync(path("judged"), flipped(content, 100_000))
		const work = { from: path("judged"), digest, to: path("late"), recipients: [key.recipient], signal }
		expect((await refusal(encryptFile(work))).message).toMatch(/doesn't hold what was encrypted/)
	})

	test("is opened by one identity of several", async () => {
		const encrypted = await encryptedFor(content, key.recipient)
		const both = `# two keys\n${other.identity}\n${key.identity}\n`
		expect((await opened(encrypted, both, key.recipient)).equals(content)).toBe(true)
	})
})

describe("without the right key", () => {
	test("nothing is opened: none is there, with the name of what is missing", async () => {
		const { message, exitCode, hint } = await refusal(
			opened(await encryptedFor(content, key.recipient), undefined, key.recipient),
		)
		expect(message).toBe(
			`env-file of 2026-11-21T06:00:00.000Z is encrypted for ${key.recipient}, and there is no AGE_IDENTITY`,
		)
		expect([exitCode, hint]).toEqual([6, expect.stringContaining(again)])
	})

	test("nothing is opened: it is another's, with whose it is", async () => {
		const { message, exitCode } = await refusal(
			opened(await encryptedFor(content, key.recipient), other.identity, key.recipient),
		)
		expect(message).toContain(`AGE_IDENTITY is the key of ${other.recipient}`)
		expect(exitCode).toBe(6)
		expect(message).not.toContain("AGE-SECRET-KEY-1")
	})

	test("nothing is opened: it is mistyped, and isn't shown", async () => {
		const mistyped = key.identity.replace(/.$/, (last) => (last === "Q" ? "P" : "Q"))
		const { message, exitCode } = await refusal(
			opened(await encryptedFor(content, key.recipient), mistyped, key.recipient),
		)
		expect([exitCode, message]).toEqual([
			2,
			expect.stringContaining("AGE_IDENTITY is not an age identity (line 1)"),
		])
		expect(message).not.toContain(mistyped.slice(20, 40))
	})
})

describe("what passes for an encrypted archive is refused, and nothing of it is left", () => {
	const one = () => encryptedFor(content, key.recipient)
	const replaced = async (from: RegExp, to: string) => {
		const bytes = await one()
		const header = bytes.subarray(0, headerEnd(bytes)).toString("latin1").replace(from, to)
		return Buffer.concat([Buffer.from(header, "latin1"), bytes.subarray(headerEnd(bytes))])
	}
	const passphrase = async () => {
		const encrypter = new Encrypter()
		encrypter.setPassphrase("made up")
		encrypter.setScryptWorkFactor(4)
		return Buffer.from(await encrypter.encrypt(content))
	}
	test.each<[string, () => Promise<Buffer>, RegExp]>([
		["cut in its header", async () => (await one()).subarray(0, 150), /its header has no end/],
		["cut behind its header", async () => (await one()).subarray(0, headerEnd(await one()) + 16), /cut off/],
		["cut within its last chunk", async () => (await one()).subarray(0, -1), /content is damaged/],
		[
			"cut within the last chunk's tag",
			async () => (await one()).subarray(0, headerEnd(await one()) + 16 + 3 * chunk + 5),
			/cut off/,
		],
		[
			"cut between two chunks",
			async () => (await one()).subarray(0, headerEnd(await one()) + 16 + 2 * chunk),
			/content is damaged/,
		],
		["empty", async () => Buffer.alloc(0), /not a file of age's/],
		["with one bit flipped in its version", async () => flipped(await one(), 3), /not a file of age's/],
		[
			"with one bit flipped in a stanza",
			async () => flipped(await one(), 40),
			/not for the recipients|damaged/,
		],
		[
			"with one bit flipped in the seal of its header",
			async () => flipped(await one(), headerEnd(await one()) - 5),
			/^its header is damaged$/,
		],
		[
			"with one bit flipped in its nonce",
			async () => flipped(await one(), headerEnd(await one()) + 3),
			/content is damaged/,
		],
		[
			"with one bit flipped in its first chunk",
			async () => flipped(await one(), headerEnd(await one()) + 1000),
			/content is damaged/,
		],
		[
			"with one bit flipped in its last chunk",
			async () => flipped(await one(), (await one()).length - 20),
			/content is damaged/,
		],
		[
			"with two chunks swapped",
			async () => {
				const bytes = await one()
				const at = headerEnd(bytes) + 16
				const [first, second] = [bytes.subarray(at, at + chunk), bytes.subarray(at + chunk, at + 2 * chunk)]
				return Buffer.concat([bytes.subarray(0, at), second, first, bytes.subarray(at + 2 * chunk)])
			},
			/content is damaged/,
		],
		[
			"with something behind its end",
			async () => Buffer.concat([await one(), Buffer.from("x".repeat(100))]),
			/content is damaged/,
		],
		[
			"with a stanza of garbage",
			() => replaced(/-> X25519 \S+/, "-> X25519 AAAA"),
			/decrypting it: invalid X25519 stanza/,
		],
		[
			"with a stanza of too many words",
			() => replaced(/-> X25519 /, "-> X25519 a "),
			/decrypting it: invalid X25519 stanza/,
		],
		[
			"with a stanza more than its sidecar says",
			() => encryptedFor(content, key.recipient, other.recipient),
			/for 2 recipients, its sidecar names 1/,
		],
		[
			"for somebody else than its sidecar says",
			() => encryptedFor(content, other.recipient),
			/not for the recipients that its sidecar names/,
		],
		["encrypted with a passphrase", passphrase, /with a passphrase/],
		[
			"a passphrase that would take all memory there is",
			async () => Buffer.from((await passphrase()).toString("latin1").replace(/ 4\n/, " 63\n"), "latin1"),
			/with a passphrase/,
		],
		["in armor", async () => Buffer.from(armor.encode(await one())), /armored/],
		["not encrypted at all", async () => content, /not a file of age's/],
	])("%s", async (_, make, says) => {
		const { message, exitCode } = await refusal(opened(await make(), key.identity, key.recipient))
		expect([exitCode, message]).toEqual([3, expect.stringMatching(says)])
		expect(existsSync(path("open"))).toBe(false)
	})
})

describe("the tree's digest in a sidecar", () => {
	const sealed = async (text: string, ...recipients: string[]) => {
		const sidecar = sidecarFor(...recipients)
		const encryption = { recipients, treeDigest: await encryptText(text, recipients) }
		return openTreeDigest({ ...sidecar, encryption }, { identity: new Secret(key.identity), again })
	}

	test("is another text each time, and opens to the same", async () => {
		const twice = await Promise.all([
			encryptText("digest", [key.recipient]),
			encryptText("digest", [key.recipient]),
		])
		expect(twice[0]).not.toBe(twice[1])
		expect(await sealed("digest", key.recipient, other.recipient)).toBe("digest")
	})

	test.each<[string, () => Promise<string>, RegExp]>([
		["garbage", async () => "AAAA", /not a file of age's/],
		["for somebody else", () => encryptText("digest", [other.recipient]), /not for the recipients/],
		[
			"damaged",
			async () =>
				flipped(Buffer.from(await encryptText("digest", [key.recipient]), "base64"), 190).toString("base64"),
			/damaged/,
		],
	])("that is %s is refused", async (_, make, says) => {
		const encryption = { recipients: [key.recipient], treeDigest: await make() }
		const opening = openTreeDigest(
			{ ...sidecarFor(), encryption },
			{ identity: new Secret(key.identity), again },
		)
		expect((await refusal(opening)).message).toMatch(says)
	})
})

test("the catalogue marks what holds keys and passwords, and nothing of it is incremental", () => {
	const text = readFileSync(new URL("../../../manifests/artifacts.yaml", import.meta.url), "utf8")
	const secret = parseCatalogue(text, "artifacts.yaml").artifacts.flatMap((artifact) =>
		artifact.kind === "archive" && artifact.secret ? [artifact.name] : [],
	)
	expect(secret.sort()).toEqual([
		...["certificates", "env-file", "home", "root-home"],
		...["ssh-host-keys", "stack", "tailscale-identity", "ubuntu-pro"],
	])
	const both = text.replace(/( +)incremental: true/, "$1incremental: true\n$1secret: true")
	expect(() => parseCatalogue(both, "artifacts.yaml")).toThrow(/user-data is secret and incremental/)
})
