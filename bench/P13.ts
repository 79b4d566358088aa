// P13: what is transferred when one block in a hundred is damaged, of a file of 10 GiB. Most of it is holes, which are
// read, hashed, sent and written like anything else; each block begins with random bytes, so that no two are the same.
import { randomFillSync } from "node:crypto"
import { copyFileSync, ftruncateSync, openSync, rmSync, writeSync } from "node:fs"
import { join } from "node:path"
import { openHashPool } from "../src/lib/storage/hash-pool.ts"
import { blockBytes, transfer } from "../src/lib/storage/transfer.ts"
import { scratch } from "./support/files.ts"
import { publish } from "./support/measure.ts"
import { startNginx } from "./support/servers.ts"
import { plain, storeAt } from "./support/transfers.ts"

const count = 640
const sizeBytes = count * blockBytes
const [file, seedFile, partialFile] = ["ten-gibibytes", "damaged", "healed"].map((name) =>
	join(scratch, name),
) as [string, string, string]
for (const left of [file, seedFile, partialFile, `${partialFile}.json`]) rmSync(left, { force: true })
const writing = openSync(file, "w")
ftruncateSync(writing, sizeBytes)
const beginning = Buffer.alloc(64 * 1024)
for (let block = 0; block < count; block++)
	writeSync(writing, randomFillSync(beginning), 0, beginning.length, block * blockBytes)
await using pool = openHashPool(1)
const { blocks = [] } = await pool.hashFile(file, { blocks: true })
copyFileSync(file, seedFile)
const damaging = openSync(seedFile, "r+")
const damagedBlocks = Math.ceil(count / 100)
for (let damaged = 0; damaged < damagedBlocks; damaged++)
	writeSync(damaging, "damage", damaged * 97 * blockBytes + 4711 + damaged)
using _server = await startNginx(scratch, "ten-gibibytes", "")
await using store = storeAt(plain)
const head = await store.head("model")
if (head === undefined) throw new Error("no model")
const startedAt = performance.now()
const { transferredBytes } = await transfer(store.byteSource(head), {
	partialFile,
	expected: { blocks },
	seedFile,
})
const seconds = Number(((performance.now() - startedAt) / 1000).toFixed(1))
for (const done of [file, partialFile, seedFile]) rmSync(done)
const comparison = {
	what: `${damagedBlocks} of its ${count} blocks damaged`,
	ratio: (transferredBytes / sizeBytes) * 100,
	goal: 2,
	stretch: 1.2,
	most: true as const,
	unit: " %",
}
publish("P13", "transferred to heal 10 GiB,", [comparison], {
	transferredBytes,
	seconds,
	notes: [`The healing took ${seconds} s.`],
})
