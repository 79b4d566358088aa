// Rosters, passwords and differences: what has to hold for any of them.
import { chmod, mkdtemp, rm, stat } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import fc from "fast-check"
import { expect, test } from "vitest"
import { readEnvFile } from "../../../src/lib/formats/env-file.ts"
import { isPassword } from "../../../src/lib/formats/htpasswd.ts"
import { localHost } from "../../../src/lib/host/local.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { comparisonOf, keepCompared, readCompared } from "../../../src/lib/stack/compared.ts"
import {
	makeHtpasswd,
	readCredentials,
	renderCredentials,
	renderCsv,
} from "../../../src/lib/stack/credentials.ts"
import { diffLines } from "../../../src/lib/stack/diff.ts"
import { quoteForEnvFile } from "../../../src/lib/stack/env-render.ts"
import { changeRoster, userId, userNumber } from "../../../src/lib/stack/roster.ts"
import { assertOften } from "../../support/properties.ts"

const signal = new AbortController().signal
const passwordText = fc
	.string({ unit: "grapheme", minLength: 1, maxLength: 40 })
	.filter((text) => Buffer.byteLength(text) <= 72 && !/['\p{Cc}]/u.test(text))

test("a user's id and number are each other's", () => {
	for (let number = 1; number <= 500; number++) expect(userNumber(userId(number))).toBe(number)
	for (const id of ["user000", "user501", "user1", "user0001", "USER001", "user001 ", "admin"])
		expect(userNumber(id)).toBeUndefined()
})

test("a count takes the lowest free numbers and never takes anybody away", async () => {
	const rosters = fc.uniqueArray(fc.integer({ min: 1, max: 60 }), { maxLength: 40 })
	await assertOften(
		fc.property(rosters, fc.integer({ min: 0, max: 40 }), (numbers, more) => {
			const before = numbers.toSorted((one, other) => one - other)
			const count = Math.max(1, before.length + more)
			const after = changeRoster(before, { count })
			expect(after.length).toBe(count)
			expect(before.every((number) => after.includes(number))).toBe(true)
			expect(after).toEqual(after.toSorted((one, other) => one - other))
			const added = after.filter((number) => !before.includes(number))
			const highest = added.at(-1) ?? 0
			for (let number = 1; number < highest; number++) expect(after).toContain(number)
		}),
		500,
	)
})

test("any password that is taken comes back from the credentials file and the link as it was", async () => {
	await assertOften(
		fc.property(passwordText, passwordText, (password, other) => {
			const given = new Map([
				["user001", new Secret(password)],
				["admin", new Secret(other)],
			])
			const text = renderCredentials(given, [1], "admin")
			const read = readCredentials(text, { where: "x", adminName: "admin" })
			expect(read.get("user001")?.reveal()).toBe(password)
			expect(read.get("admin")?.reveal()).toBe(other)
			const link = renderCsv(given, [1], "workshop.example.test").trimEnd().split(",").at(-1) ?? ""
			expect(decodeURIComponent(new URL(link).password)).toBe(password)
		}),
		1000,
	)
})

test("any value is refused or read back from an env file as it was", async () => {
	await assertOften(
		fc.property(fc.string({ unit: "grapheme" }), (value) => {
			let quoted: string
			try {
				quoted = quoteForEnvFile("NAME", value)
			} catch {
				expect(value).toMatch(/['\p{Cc}]/u)
				return
			}
			const { entries, problems, notes } = readEnvFile(`NAME=${quoted}\nNEXT=1\n`)
			expect(problems).toEqual([])
			expect(notes).toEqual([])
			expect(entries.map((entry) => entry.value)).toEqual([value, "1"])
		}),
		1000,
	)
})

test("hashes that fit are kept to the letter, and one that doesn't is made anew", async () => {
	const credentials = new Map([
		["user001", new Secret("one")],
		["admin", new Secret("two")],
	])
	const known = new Set<string>()
	const first = await makeHtpasswd(credentials, "", { known, signal })
	expect(first.hashed).toBe(2)
	const second = await makeHtpasswd(credentials, first.text, { known, signal })
	expect(second).toEqual({ text: first.text, hashed: 0, compared: first.compared })
	// Of another password, of another kind, and of nobody in the roster.
	const [line = ""] = first.text.split("\n")
	const spoiled = `user001:${line.slice(8).replace("$2y$", "$2b$")}\nadmin:${line.slice(8)}\nuser009:${line.slice(8)}\n`
	// What was found of other pairs says nothing of these.
	const third = await makeHtpasswd(credentials, spoiled, { known: first.compared, signal })
	expect(third.hashed).toBe(2)
	expect(third.text).not.toContain("user009")
	for (const [name, password] of credentials) {
		const hash = third.text.split("\n").find((one) => one.startsWith(`${name}:`)) ?? ""
		expect(await isPassword(password, hash.slice(name.length + 1))).toBe(true)
	}
})

test("a pair that was compared before is not compared again, and one that changed is", async () => {
	const credentials = new Map([["user001", new Secret("one")]])
	const hash = `$2y$10$${"a".repeat(53)}`
	// Nothing that bcrypt would take for a fit: that it is kept is by the earlier comparison alone.
	const known = new Set([comparisonOf(new Secret("one"), hash)])
	const kept = await makeHtpasswd(credentials, `user001:${hash}\n`, { known, signal })
	expect(kept).toEqual({ text: `user001:${hash}\n`, hashed: 0, compared: known })
	const changed = await makeHtpasswd(new Map([["user001", new Secret("two")]]), `user001:${hash}\n`, {
		known,
		signal,
	})
	expect(changed.hashed).toBe(1)
	expect([...changed.compared]).not.toEqual([...known])
})

test("what was compared is kept for root alone, and passed over when others could have written it", async () => {
	const root = await mkdtemp(join(tmpdir(), "comfyume-compared-"))
	try {
		const host = localHost({ name: "here", root, environment: process.env })
		const one = new Set([comparisonOf(new Secret("one"), "hash")])
		await keepCompared(host, { known: new Set(), compared: one })
		expect(await readCompared(host)).toEqual(one)
		const file = join(root, "var/lib/comfyume/digests/passwords")
		expect((await stat(file)).mode & 0o777).toBe(0o600)
		await chmod(file, 0o606)
		expect(await readCompared(host)).toEqual(new Set())
	} finally {
		await rm(root, { recursive: true })
	}
})

test("a difference leads from the one text to the other", async () => {
	const text = fc
		.array(fc.constantFrom("a", "b", "c", ""), { maxLength: 12 })
		.map((lines) => lines.join("\n"))
	await assertOften(
		fc.property(text, text, (before, after) => {
			const difference = diffLines(before, after)
			const lines = (of: string) => (of === "" ? [] : of.split("\n"))
			const going = difference.filter((line) => line.startsWith("-")).length
			const coming = difference.filter((line) => line.startsWith("+")).length
			if (before === after) expect(difference).toEqual([])
			expect(lines(before).length - going).toBe(lines(after).length - coming)
			const left = (of: string, sign: string) => {
				const gone = difference.filter((line) => line.startsWith(sign)).map((line) => line.slice(2))
				return lines(of)
					.filter((line) => {
						const at = gone.indexOf(line)
						if (at !== -1) gone.splice(at, 1)
						return at === -1
					})
					.toSorted()
			}
			// What neither goes nor comes is the same in both.
			expect(left(before, "-")).toEqual(left(after, "+"))
		}),
		1000,
	)
})
