// P13: what is transferred when one block in a hundred is damaged.
import { copyFileSync, openSync, rmSync, writeSync } from "node:fs"
import { join } from "node:path"
import { transfer } from "../src/lib/storage/transfer.ts"
import { digestsOf, randomFile, scratch } from "./support/files.ts"
import { publish } from "./support/measure.ts"
import { startNginx } from "./support/servers.ts"
import { plain, storeAt } from "./support/transfers.ts"

const sizeBytes = 100 * 16 * 1024 * 1024
const file = await randomFile("hundred-blocks", sizeBytes)
const { blocks, md5 } = await digestsOf(file)
const seedFile = join(scratch, "damaged")
copyFileSync(file, seedFile)
writeSync(openSync(seedFile, "r+"), "damage", 42 * 16 * 1024 * 1024 + 4711)
const partialFile = join(scratch, "healed")
rmSync(partialFile, { force: true })
using _server = await startNginx(scratch, "hundred-blocks", md5)
await using store = storeAt(plain)
const head = await store.head("model")
if (head === undefined) throw new Error("no model")
const startedAt = performance.now()
const { transferredBytes } = await transfer(store.byteSource(head), {
	partialFile,
	expected: { blocks },
	seedFile,
})
const seconds = (performance.now() - startedAt) / 1000
for (const done of [partialFile, seedFile]) rmSync(done)
const ratio = (transferredBytes / sizeBytes) * 100
const comparison = {
	what: "1 % of the blocks damaged",
	ratio,
	goal: 2,
	stretch: 1.2,
	most: true as const,
	unit: " %",
}
publish("P13", "transferred to heal 1.6 GiB,", [comparison], { transferredBytes, seconds })
