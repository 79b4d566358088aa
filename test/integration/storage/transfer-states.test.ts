// Whatever an interruption, a sick disk or somebody's hand left behind: a transfer ends with the right file, or says
// why not and ends with it the next time.
import { createHash, randomBytes } from "node:crypto"
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import fc from "fast-check"
import { afterAll, beforeAll, expect, test } from "vitest"
import { directoryStore } from "../../../src/lib/storage/directory.ts"
import { transfer } from "../../../src/lib/storage/transfer.ts"

const blockSizeBytes = 1000
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex")

let scratch: string
beforeAll(async () => {
	scratch = await mkdtemp(join(tmpdir(), "transfer-states-"))
})
afterAll(() => rm(scratch, { recursive: true }))

/** A copy that is cut or lengthened, and has bytes changed. */
function damage(bytes: Buffer, { length, changes }: { length: number; changes: readonly number[] }): Buffer {
	const damaged = Buffer.alloc(Math.floor(length * bytes.length), 7)
	bytes.copy(damaged)
	for (const change of changes) {
		const at = Math.floor(change * damaged.length)
		if (at < damaged.length) damaged[at] = (damaged[at] ?? 0) ^ 1
	}
	return damaged
}

const damageOf = fc.record({
	length: fc.oneof(fc.constant(1), fc.double({ min: 0, max: 1.5, noNaN: true })),
	changes: fc.array(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), { maxLength: 4 }),
})

const states = fc.record({
	sizeBytes: fc.oneof(fc.constantFrom(0, 1, 999, 1000, 1001, 3000), fc.integer({ min: 0, max: 12_000 })),
	expects: fc.constantFrom("blocks" as const, "digest" as const),
	partial: fc.option(damageOf),
	seed: fc.option(damageOf),
	/** What is noted: of this object or another one, which blocks, with which digests, how it ends. */
	notes: fc.option(
		fc.record({
			etag: fc.constantFrom("this", "another", "none"),
			claims: fc.array(fc.tuple(fc.nat(14), fc.constantFrom("right", "as on the disk", "wrong"))),
			ending: fc.constantFrom("", '{"block":1,"sha', "\0\0\0\n", "null\n7\n"),
		}),
	),
})

test("every state of partial file, notes and seed converges to the source's bytes", async () => {
	await fc.assert(
		fc.asyncProperty(states, async ({ sizeBytes, expects, partial, seed, notes }) => {
			const directory = await mkdtemp(join(scratch, "run-"))
			const content = randomBytes(sizeBytes)
			await writeFile(join(directory, "model"), content)
			const store = directoryStore({ name: "share", directory })
			const head = await store.head("model")
			if (head === undefined) throw new Error("nothing there")
			const source = store.byteSource(head)
			const partialFile = join(directory, "partial")
			const seedFile = join(directory, "seed")
			const left = partial === null ? undefined : damage(content, partial)
			if (left !== undefined) await writeFile(partialFile, left)
			if (seed !== null) await writeFile(seedFile, damage(content, seed))
			const block = (bytes: Buffer, number: number) =>
				sha256(bytes.subarray(number * blockSizeBytes, (number + 1) * blockSizeBytes))
			if (notes !== null) {
				const etag = { this: head.etag, another: '"another"', none: undefined }[notes.etag]
				const lines = notes.claims.map(([number, claim]) => {
					const bytes = { right: content, "as on the disk": left ?? content, wrong: Buffer.from("wrong") }[
						claim
					]
					return { block: number, sha256: block(bytes, number) }
				})
				const text = [{ sizeBytes, blockBytes: blockSizeBytes, etag }, ...lines].map((line) =>
					JSON.stringify(line),
				)
				await writeFile(`${partialFile}.json`, `${text.join("\n")}\n${notes.ending}`)
			}
			const blocks = Array.from({ length: Math.ceil(sizeBytes / blockSizeBytes) }, (_, number) =>
				block(content, number),
			)
			const expected = expects === "blocks" ? { blocks } : { digest: sha256(content) }
			const run = () => transfer(source, { partialFile, expected, seedFile, blockSizeBytes })
			// Notes that vouch for bytes which never came of this object are found out by the whole digest alone.
			const lies = expects === "digest" && notes?.etag === "this"
			if (lies) await run().catch(run)
			else await run()
			expect(await readFile(partialFile)).toEqual(content)
			await rm(directory, { recursive: true })
		}),
		{ numRuns: 60 },
	)
})
