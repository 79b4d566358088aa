// What was written is flushed while more comes, and no failure of it is lost.
import { expect, test } from "vitest"
import { earlyFlush } from "../../../src/lib/storage/early-flush.ts"

function slowDisk() {
	const calls: string[] = []
	const waiting: { resolve: () => void; reject: (error: Error) => void }[] = []
	const datasync = () => {
		calls.push("datasync")
		return new Promise<void>((resolve, reject) => waiting.push({ resolve, reject }))
	}
	const sync = async () => void calls.push("sync")
	return { calls, waiting, file: { datasync, sync } }
}

const settled = () => new Promise((resolve) => setImmediate(resolve))

test("flushes when enough was written, one flush at a time, and syncs at the end", async () => {
	const { calls, waiting, file } = slowDisk()
	const flush = earlyFlush(file, 100)
	flush.wrote(99)
	expect(calls).toEqual([])
	flush.wrote(1)
	flush.wrote(200)
	expect(calls).toEqual(["datasync"])
	waiting[0]?.resolve()
	await settled()
	flush.wrote(1)
	expect(calls).toEqual(["datasync", "datasync"])
	const finished = flush.finish()
	await settled()
	expect(calls).toHaveLength(2)
	waiting[1]?.resolve()
	await finished
	expect(calls).toEqual(["datasync", "datasync", "sync"])
})

test("a flush that failed fails the next write, and the end, though the system says all is well by then", async () => {
	const { calls, waiting, file } = slowDisk()
	const flush = earlyFlush(file, 100)
	flush.wrote(100)
	waiting[0]?.reject(new Error("EIO"))
	await settled()
	expect(() => flush.wrote(1)).toThrow("EIO")
	await expect(flush.finish()).rejects.toThrow("EIO")
	expect(calls).not.toContain("sync")
})

test("a flush that fails while the end waits for it fails the end", async () => {
	const { waiting, file } = slowDisk()
	const flush = earlyFlush(file, 100)
	flush.wrote(100)
	const finished = flush.finish()
	waiting[0]?.reject(new Error("ENOSPC"))
	await expect(finished).rejects.toThrow("ENOSPC")
})
