import { execFileSync } from "node:child_process"
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import fc from "fast-check"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { readTar, TarError, type TarMember } from "../../../src/lib/formats/tar.ts"
import { makeMember, makeTar, withChecksum } from "../../support/tar-maker.ts"

async function* inChunks(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
	for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

async function read(bytes: Buffer, chunkSize = 65_536): Promise<TarMember[]> {
	const members: TarMember[] = []
	for await (const member of readTar(inChunks(bytes, chunkSize))) members.push(member)
	return members
}

describe("archives that GNU tar writes", () => {
	let directory: string
	const longName = `${"deep/".repeat(30)}${"n".repeat(90)}.txt`

	beforeAll(() => {
		directory = mkdtempSync(join(tmpdir(), "comfyume-tar-"))
		mkdirSync(join(directory, "in", "deep/".repeat(30)), { recursive: true })
		writeFileSync(join(directory, "in", longName), "long")
		writeFileSync(join(directory, "in", "naïve – файл.txt"), "unicode")
		writeFileSync(join(directory, "in", "block"), Buffer.alloc(512, 7))
		writeFileSync(join(directory, "in", "empty"), "")
		symlinkSync("t".repeat(150), join(directory, "in", "link"))
	})
	afterAll(() => rmSync(directory, { recursive: true }))

	test.each(["gnu", "posix", "ustar"])(
		"in its %s format are read as they are, in chunks of any size",
		async (format) => {
			const names = ["naïve – файл.txt", "block", "empty"].concat(
				format === "ustar" ? [] : ["link", longName],
			)
			const bytes = execFileSync("tar", ["-c", `--format=${format}`, "-C", join(directory, "in"), ...names], {
				maxBuffer: 1e8,
			})
			for (const chunkSize of [1, 511, 513, 1_000_000]) {
				const members = await read(bytes, chunkSize)
				expect(members.map(({ path }) => path)).toEqual(names)
				expect(members.find(({ path }) => path === "block")?.digest).toBe(
					execFileSync("sha256sum", [join(directory, "in/block")])
						.toString()
						.slice(0, 64),
				)
				if (format !== "ustar")
					expect(members.find(({ path }) => path === "link")?.target).toBe("t".repeat(150))
			}
		},
	)

	test("cut at any byte are refused, except where only the padding of the last record is missing", async () => {
		const bytes = execFileSync("tar", ["-c", "-b1", "-C", join(directory, "in"), "block", "empty"])
		for (let length = 0; length < bytes.length; length++)
			await expect(read(bytes.subarray(0, length)), `cut to ${length}`).rejects.toThrow(TarError)
		expect(await read(bytes)).toHaveLength(2)
	})
})

test("a flipped bit in a header is noticed", async () => {
	const bytes = makeTar([{ path: "a", content: "x" }])
	for (let bit = 0; bit < 512 * 8; bit++) {
		const damaged = Buffer.from(bytes)
		damaged[bit >> 3] = (damaged[bit >> 3] ?? 0) ^ (1 << (bit & 7))
		// The bits of the checksum's own closing NUL and space, and case-like padding, may leave its value as it is.
		const outcome = await read(damaged).catch((error: unknown) => error)
		if (!(outcome instanceof TarError)) expect(outcome).toEqual(await read(bytes))
	}
})

test.each([
	[
		"garbage after the end",
		Buffer.concat([makeTar([{ path: "a" }]), Buffer.alloc(512, 1)]),
		/garbage after the end/,
	],
	[
		"a zero block between members",
		Buffer.concat([Buffer.alloc(512), makeTar([{ path: "a" }])]),
		/single zero block/,
	],
	["a directory with content", makeTar([{ path: "a/", type: "5", content: "x" }]), /directory with content/],
	["an unknown member type", makeTar([{ path: "a", type: "S" }]), /not understood/],
	[
		"a global header that renames",
		makeTar([{ path: "g", type: "g", content: "12 path=evi\n" }]),
		/global header/,
	],
	[
		"an extended header that lies about its length",
		makeTar([{ path: "x", type: "x", content: "99 path=a\n" }]),
		/damaged extended header/,
	],
	[
		"content that is shorter than stated",
		makeMember({ path: "a", content: "x", statedSize: 9000 }),
		/bytes of the content of a are missing/,
	],
	["a huge extended header", makeMember({ path: "x", type: "x", statedSize: 2 ** 30 }), /extended header of/],
])("%s is refused", async (_, bytes, message) => {
	await expect(read(bytes)).rejects.toThrow(message)
})

test("a number that isn't octal is refused", async () => {
	const member = makeMember({ path: "a" })
	member.write("12345678zz7\0", 124, "latin1")
	await expect(read(Buffer.concat([withChecksum(member), Buffer.alloc(1024)]))).rejects.toThrow(
		/damaged number/,
	)
})

test("any bytes at all end in members or in a TarError", async () => {
	const blocks = fc.array(
		fc.oneof(
			fc.uint8Array({ minLength: 512, maxLength: 512 }),
			fc
				.record({
					path: fc.string(),
					type: fc.constantFrom("0", "1", "2", "5", "x", "L", "g"),
					content: fc.string(),
				})
				.map(makeMember),
			fc.constant(Buffer.alloc(512)),
		),
		{ maxLength: 8 },
	)
	await fc.assert(
		fc.asyncProperty(blocks, async (parts) => {
			const outcome = await read(Buffer.concat(parts)).catch((error: unknown) => error)
			expect(Array.isArray(outcome) || outcome instanceof TarError).toBe(true)
		}),
		{ numRuns: 2000 },
	)
})
