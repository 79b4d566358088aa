// Large models: only what is damaged crosses the network, and what came before an interruption doesn't come again.
import { spawn } from "node:child_process"
import { randomFillSync } from "node:crypto"
import { existsSync, readFileSync, rmSync, statSync } from "node:fs"
import { open } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import { afterEach, beforeEach, expect, test } from "vitest"
import { OperatorError } from "../../../src/lib/errors.ts"
import { blockBytes } from "../../../src/lib/storage/transfer.ts"
import { makeHeader, tensorsOf } from "../../support/model-maker.ts"
import { createModelWorld, entryOf, type ModelWorld } from "../../support/model-world.ts"
import { until } from "../../support/processes.ts"

const launcher = fileURLToPath(new URL("../../../bin/comfyume.js", import.meta.url))
const mebibyte = 1024 * 1024
const connections = 8
const path = "checkpoints/large.safetensors"

let world: ModelWorld
beforeEach(async () => {
	world = await createModelWorld({ large: true })
})
afterEach(() => world[Symbol.asyncDispose]())

/** A whole model of exactly this size. */
function largeModel(sizeBytes: number): Buffer {
	const content = Buffer.alloc(sizeBytes)
	const header = (dataBytes: number) => makeHeader(tensorsOf([dataBytes]))
	let dataBytes = sizeBytes - header(sizeBytes).length
	while (header(dataBytes).length + dataBytes < sizeBytes) dataBytes++
	const begin = header(dataBytes)
	expect(begin.length + dataBytes).toBe(sizeBytes)
	begin.copy(content)
	const noise = randomFillSync(Buffer.alloc(4 * mebibyte))
	for (let at = begin.length; at < sizeBytes; at += noise.length) {
		noise.writeUInt32LE(at % 0xffff_ffff)
		noise.copy(content, at)
	}
	return content
}

test("of 1 GiB with 1 % of its blocks damaged at most 2 % are sent", { timeout: 180_000 }, async () => {
	const content = largeModel(1024 * mebibyte)
	const entry = entryOf(path, content)
	expect(entry.blocks?.sha256).toHaveLength(64)
	await world.store(path, content)
	world.declare([entry])
	world.write(path, content)
	const file = await open(world.file(path), "r+")
	// A stretch in the middle of the 41st block.
	await file.write(Buffer.alloc(100_000, 0xee), 0, 100_000, 40 * blockBytes + 5 * mebibyte)
	await file.close()

	const { exitCode, outcome, notes } = await world.restore({ deep: true })
	expect([exitCode, outcome(path)]).toEqual([0, "applied"])
	expect(world.digest(path)).toBe(entry.sha256)
	expect(world.sentBytes()).toBeGreaterThanOrEqual(blockBytes)
	expect(world.sentBytes()).toBeLessThanOrEqual(0.02 * content.length)
	expect(notes).toContainEqual(expect.stringMatching(/ of .* came from r2$/))
})

test("a transfer that is stopped is gone on with", { timeout: 120_000 }, async () => {
	const content = largeModel(320 * mebibyte)
	await world.store(path, content)
	world.declare([entryOf(path, content)])
	rmSync(world.models, { recursive: true })
	const stop = new AbortController()
	// A few blocks are under way at once; by now most of them have come as a whole.
	const enough = 0.7 * content.length
	const stopped = await world.restore({
		limit: 150 * mebibyte,
		signal: stop.signal,
		onEvent: (event) => {
			if (event.event === "progress" && event.doneBytes > enough)
				stop.abort(new OperatorError("stopped by the test", { exitCode: 130 }))
		},
	})
	expect([stopped.exitCode, stopped.outcome(path)]).toEqual([130, "aborted"])
	expect(world.names().some((name) => name === path)).toBe(false)
	const before = world.sentBytes()
	expect(before).toBeGreaterThan(enough)
	const { exitCode, notes } = await world.restore()
	expect(exitCode, notes.join("\n")).toBe(0)
	expect(world.names()).toEqual([path])
	expect(statSync(world.file(path)).size).toBe(content.length)
	// Of each connection at most the block that was under way comes again.
	const again = world.sentBytes() - before
	expect(again).toBeLessThanOrEqual(content.length - enough + connections * blockBytes)
})

test("kill -9 while workers write leaves the old file, and a second run repeats a block per connection at most", {
	timeout: 120_000,
}, async () => {
	const content = largeModel(208 * mebibyte)
	const entry = entryOf(path, content)
	await world.store(path, content)
	world.declare([entry])
	const old = content.subarray(0, 1000)
	world.write(path, old)
	const words = ["restore", "--only", "models", "--env", "sandbox", "--config", world.configuration]
	const child = spawn(
		process.execPath,
		[launcher, ...words, "--manifest", world.manifestFile, "--limit", "40MiB"],
		{
			cwd: world.directory,
			env: { PATH: process.env.PATH, HOME: world.directory },
			stdio: "ignore",
		},
	)
	const ended = new Promise((resolve) => child.once("close", (_, signal) => resolve(signal)))
	const notes = world.file("checkpoints/.large.safetensors.comfyume.partial.json")
	const noted = () => (existsSync(notes) ? readFileSync(notes, "utf8").split("\n").length - 2 : 0)
	await until("some blocks have come, and others are coming", () => noted() >= 3, 60_000)
	child.kill("SIGKILL")
	expect(await ended).toBe("SIGKILL")
	expect(readFileSync(world.file(path)).equals(old)).toBe(true)

	const came = noted() * blockBytes
	const from = new Date()
	const again = await world.restore()
	// The server logs a request at its end: some of the killed run's come only now.
	const sent = world.requests("GetObject").filter(({ at }) => at >= from)
	expect(sent.reduce((sum, { bytesOut }) => sum + bytesOut, 0)).toBeLessThanOrEqual(content.length - came)
	expect([again.exitCode, again.outcome(path)]).toEqual([0, "applied"])
	expect(world.digest(path)).toBe(entry.sha256)
	expect(world.sentBytes()).toBeLessThanOrEqual(content.length + connections * blockBytes)
	expect(again.notes).toContainEqual(expect.stringMatching(/ of .* came from r2$/))
	expect(world.names().filter((name) => name.includes("partial"))).toEqual([])
})
