import { describe, expect, test } from "vitest"
import {
	encryptedBytes,
	isWholeSize,
	readAgeHeader,
	readIdentities,
	recipientProblem,
} from "../../../src/lib/formats/age.ts"
import { encryptedFor, headerEnd, makeAgeKey } from "../../support/age.ts"

const key = await makeAgeKey()
const other = await makeAgeKey()
const share = "A".repeat(43)

describe("a recipient", () => {
	test("that age-keygen made is one", () => {
		expect(recipientProblem(key.recipient)).toBeUndefined()
	})

	test("with any one letter mistyped is none", () => {
		for (let at = 4; at < key.recipient.length; at++) {
			const letter = key.recipient[at] === "q" ? "p" : "q"
			const mistyped = `${key.recipient.slice(0, at)}${letter}${key.recipient.slice(at + 1)}`
			expect(recipientProblem(mistyped)?.message).toMatch(/is not an age recipient/)
		}
	})

	test.each<[string, string, RegExp]>([
		["cut off", key.recipient.slice(0, -1), /mistyped, or cut off/],
		["in capitals", key.recipient.toUpperCase(), /is not an age recipient/],
		["with a space behind it", `${key.recipient} `, /is not an age recipient/],
		["empty", "", /is not an age recipient/],
		["a private key", key.identity, /is a private key/],
		["an SSH key", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI operator@example.test", /is an SSH key/],
		["of a hardware key", `age1yubikey1${"q".repeat(60)}`, /Debian's age can't open/],
		["of a newer kind", `age1pq1${"q".repeat(80)}`, /Debian's age can't open/],
	])("%s is refused in its own words", (_, written, says) => {
		expect(recipientProblem(written)?.message).toMatch(says)
	})
})

describe("an identity", () => {
	test("is read alone, and out of age-keygen's file", () => {
		const file = `# created: 2026-11-20T06:00:00Z\r\n# public key: ${key.recipient}\n${key.identity}\n\n${other.identity}\n`
		expect(readIdentities(key.identity)).toEqual([key.identity])
		expect(readIdentities(file)).toEqual([key.identity, other.identity])
	})

	test.each<[string, string, RegExp]>([
		[
			"mistyped",
			key.identity.replace(/.$/, (last) => (last === "Q" ? "P" : "Q")),
			/not an age identity \(line 1\)/,
		],
		["the public half", key.recipient, /not an age identity/],
		[
			"nothing but comments",
			"# public key: age1, and nothing else in this whole file\n",
			/holds no age identity/,
		],
		["a file with a passphrase", "age-encryption.org/v1\n-> scrypt x 18\n", /is encrypted itself/],
	])("that is %s is refused, and never shown", (_, text, says) => {
		const thrown = (() => {
			try {
				readIdentities(text)
				return undefined
			} catch (error) {
				return error
			}
		})()
		expect(String(thrown)).toMatch(says)
		expect(String(thrown)).not.toContain(text.slice(20, 50))
	})
})

describe("a header", () => {
	test("says how long it is, and for how many", async () => {
		const encrypted = await encryptedFor(Buffer.from("content"), key.recipient, other.recipient)
		expect(readAgeHeader(encrypted)).toEqual({ headerBytes: headerEnd(encrypted), recipients: 2 })
	})

	test("may hold stanzas that nobody knows", () => {
		const grease = `-> 0x-grease ab c\n${"B".repeat(64)}\n\n`
		const header = `age-encryption.org/v1\n${grease}-> X25519 ${share}\n${share}\n--- ${share}\n`
		expect(readAgeHeader(Buffer.from(header))).toEqual({ headerBytes: header.length, recipients: 1 })
	})

	test.each<[string, string, RegExp]>([
		["of nothing", "", /not a file of age's/],
		[
			"of another version",
			`age-encryption.org/v2\n-> X25519 ${share}\n${share}\n--- ${share}\n`,
			/not a file/,
		],
		["in armor", "-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n", /armored/],
		[
			"for a passphrase",
			`age-encryption.org/v1\n-> scrypt ${"A".repeat(22)} 40\n${share}\n--- ${share}\n`,
			/passphrase/,
		],
		["for nobody", `age-encryption.org/v1\n--- ${share}\n`, /for nobody/],
		[
			"for an SSH key alone",
			`age-encryption.org/v1\n-> ssh-ed25519 a b\n${share}\n--- ${share}\n`,
			/for nobody/,
		],
		["without an end", `age-encryption.org/v1\n-> X25519 ${share}\n${share}\n`, /no end/],
		[
			"that goes on and on",
			`age-encryption.org/v1\n-> X25519 ${share}\n${`${"A".repeat(64)}\n`.repeat(2000)}`,
			/no end/,
		],
		[
			"with a body that is no base64",
			`age-encryption.org/v1\n-> X25519 ${share}\n!!\n--- ${share}\n`,
			/damaged/,
		],
		["with a seal too short", `age-encryption.org/v1\n-> X25519 ${share}\n${share}\n--- AAAA\n`, /damaged/],
		[
			"with control characters",
			`age-encryption.org/v1\n-> X25519 \u0007\n${share}\n--- ${share}\n`,
			/damaged/,
		],
		[
			"with CRLF",
			`age-encryption.org/v1\r\n-> X25519 ${share}\r\n${share}\r\n--- ${share}\r\n`,
			/not a file/,
		],
	])("%s is refused in its own words", (_, text, says) => {
		expect(() => readAgeHeader(Buffer.from(text, "latin1"))).toThrow(says)
	})

	test("cut anywhere is none", async () => {
		const encrypted = await encryptedFor(Buffer.from("content"), key.recipient)
		for (let at = 0; at < headerEnd(encrypted); at++)
			expect(() => readAgeHeader(encrypted.subarray(0, at))).toThrow()
	})
})

describe("the size of an encrypted file", () => {
	test.each([1, 100, 65_535, 65_536, 65_537, 131_072, 200_000])(
		"of %i bytes is known before it is made",
		async (bytes) => {
			const encrypted = await encryptedFor(Buffer.alloc(bytes), key.recipient)
			expect(encryptedBytes(headerEnd(encrypted), bytes)).toBe(encrypted.length)
			expect(isWholeSize(headerEnd(encrypted), encrypted.length)).toBe(true)
		},
	)

	test("that ends within a tag, or holds nothing, is no whole one's", () => {
		const chunk = 64 * 1024 + 16
		for (const payload of [-20, 0, 16, chunk + 1, chunk + 16, 3 * chunk + 16])
			expect(isWholeSize(200, 200 + 16 + payload), `${payload}`).toBe(false)
		for (const payload of [17, chunk, chunk + 17]) expect(isWholeSize(200, 200 + 16 + payload)).toBe(true)
	})
})
