// What healing must never do: destroy a right model, take bytes that aren't the manifest's, or say more than it knows.
import { execFileSync } from "node:child_process"
import { existsSync, mkdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from "node:fs"
import { dirname } from "node:path"
import { Readable } from "node:stream"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { localHost } from "../../../src/lib/host/local.ts"
import { lockFile } from "../../../src/lib/host/lock.ts"
import { verifyObject } from "../../../src/lib/models/remote.ts"
import { verifyModel } from "../../../src/lib/models/verify.ts"
import type { GetOptions, ObjectStore } from "../../../src/lib/storage/object-store.ts"
import { makeHeader, makeModel, tensorsOf } from "../../support/model-maker.ts"
import { createModelWorld, entryOf, flipped, type ModelWorld, sha256 } from "../../support/model-world.ts"
import { describeWith } from "../../support/parts.ts"

const [model, other] = ["checkpoints/model.safetensors", "diffusion_models/other.safetensors"] as const
const [one, two] = [makeModel(40_000, 1), makeModel(40_000, 2)]

let world: ModelWorld
beforeEach(async () => {
	world = await createModelWorld()
})
afterEach(() => world[Symbol.asyncDispose]())

describe("a manifest whose blocks contradict its sha256", () => {
	const contradicting = () => {
		const { blocks } = entryOf(model, flipped(one))
		return entryOf(model, one, blocks === undefined ? {} : { blocks })
	}

	test("never gives the name to bytes without that sha256, in the first run nor in the second", async () => {
		world.write(model, one.subarray(0, 20_000))
		await world.store(model, flipped(one), null)
		world.declare([contradicting()])
		for (const _ of ["first", "second"]) {
			const { exitCode, because } = await world.heal()
			expect([exitCode, because(model)]).toEqual([
				3,
				expect.stringContaining("the manifest contradicts itself"),
			])
			expect(readFileSync(world.file(model)).equals(one.subarray(0, 20_000))).toBe(true)
			expect(world.names()).toEqual([model])
		}
	})
})

describe("a link to a model that is another one by the manifest", () => {
	const linked = () => {
		mkdirSync(dirname(world.file(other)))
		symlinkSync("../checkpoints/model.safetensors", world.file(other))
	}
	beforeEach(async () => {
		await world.store(model, one)
		await world.store(other, two)
	})
	const orders = [
		["after it", [entryOf(model, one), entryOf(other, two)]],
		["before it", [entryOf(other, two), entryOf(model, one)]],
	] as const
	const contents = [
		["the one", one],
		["the other", two],
		["neither", one.subarray(0, 20_000)],
	] as const
	const cases = orders.flatMap(([order, entries]) =>
		contents.map(([what, content]) => [order, what, entries, content] as const),
	)

	test.each(cases)(
		"is replaced %s where %s lies there, and a second run changes nothing",
		async (...given) => {
			const [, , entries, content] = given
			world.write(model, content)
			linked()
			world.declare(entries)
			const first = await world.heal({ level: "digest" })
			expect(first.exitCode, first.notes.join("; ")).toBe(0)
			expect([world.digest(model), world.digest(other)]).toEqual([sha256(one), sha256(two)])
			const names = world.names()
			const second = await world.heal({ level: "digest" })
			expect([second.exitCode, second.outcome(model), second.outcome(other)]).toEqual([
				0,
				"satisfied",
				"satisfied",
			])
			expect(world.names()).toEqual(names)
		},
	)

	test("or leads, as another's link does, to what the manifest doesn't name, is replaced", async () => {
		const linking = ["loras/a.safetensors", "loras/b.safetensors"] as const
		world.write("loras/shared.safetensors", one.subarray(0, 20_000))
		for (const path of linking) symlinkSync("shared.safetensors", world.file(path))
		await world.store(linking[0], one)
		await world.store(linking[1], two)
		world.declare([entryOf(linking[0], one), entryOf(linking[1], two)])
		for (const _ of ["first", "second"]) {
			expect((await world.heal({ level: "digest" })).exitCode).toBe(0)
			expect(linking.map(world.digest)).toEqual([sha256(one), sha256(two)])
		}
	})

	test("further up its path is refused, and the model stays", async () => {
		world.write(model, one)
		symlinkSync("checkpoints", `${world.models}/diffusion_models`)
		const twin = "diffusion_models/model.safetensors"
		await world.store(twin, two)
		world.declare([entryOf(model, one), entryOf(twin, two)])
		const { exitCode, because } = await world.heal({ level: "digest" })
		expect([exitCode, because(twin)]).toEqual([8, expect.stringContaining("which is another model")])
		expect(world.digest(model)).toBe(sha256(one))
	})
})

describe("a right model that ends in a megabyte of zeros", () => {
	const zeros = "vae/zeros.safetensors"
	const content = Buffer.concat([makeHeader(tensorsOf([3_000_000])), Buffer.alloc(3_000_000)])
	content.fill(1, content.length - 3_000_000, content.length - 1_500_000)
	const look = async (level: "structure" | "digest") => {
		const onDisk = await verifyModel(world.models, zeros, entryOf(zeros, content), { level })
		const store = {
			head: async () => head,
			get: async (_key: string, { range }: GetOptions = {}) =>
				Readable.from([content.subarray(range?.first ?? 0, (range?.last ?? content.length) + 1)]),
		} as unknown as ObjectStore
		const head = {
			key: zeros,
			etag: '"made-up"',
			sizeBytes: content.length,
			storedAt: new Date(),
			claimedDigest: sha256(content),
		}
		const options = { level, deep: false, now: () => new Date() }
		const inVault = await verifyObject(store, head, entryOf(zeros, content), options)
		return [onDisk.status, inVault.status]
	}

	test("is right for every command, and one without its digest is not", async () => {
		world.write(zeros, content)
		world.declare([entryOf(zeros, content)])
		expect(await look("structure")).toEqual(["ok", "ok"])
		expect((await look("digest"))[1]).toBe("ok")
		expect((await world.backup()).outcome(zeros)).toBe("applied")
		expect((await world.heal()).outcome(zeros)).toBe("satisfied")
		const unknown = await verifyModel(world.models, zeros, undefined, { level: "structure" })
		expect(unknown.status).toBe("zero-tail")
		world.write(zeros, Buffer.concat([content.subarray(0, -1_600_000), Buffer.alloc(1_600_000)]))
		expect((await look("structure"))[0]).toBe("zero-tail")
	})
})

test("what has neither digest nor structure isn't called whole", async () => {
	const path = "vae/garbage.pt"
	await world.store(path, Buffer.from("garbage garbage"), null)
	world.declare([{ path }])
	const { notes, rows } = await world.heal()
	expect(notes).toContain("not proven: no digest is known; its structure can't be judged either")
	expect(rows.map(({ verified }) => verified)).toEqual(["not proven: no digest is known"])
})

describeWith("instances", "a read-only share", () => {
	test.each([false, true])(
		"a share that can't be written to is named with what to look at (dry run: %s)",
		async (dryRun) => {
			world.write(other, one)
			world.declare([entryOf(model, one)])
			await world.store(model, one)
			execFileSync("mount", ["--bind", world.share, world.share])
			try {
				execFileSync("mount", ["-o", "remount,ro,bind", world.share])
				const { exitCode, because, hint } = await world.heal({ dryRun })
				expect([exitCode, because(model), hint(model)]).toEqual([
					3,
					`writing to ${world.models}: the file system is read-only`,
					"dmesg | tail; mount",
				])
				const options = { purpose: "a test", shown: "the lock" }
				const host = localHost({
					name: "app-1",
					root: world.directory,
					environment: { PATH: process.env.PATH },
				})
				await expect(lockFile(host, world.file(".comfyume.lock"), options)).rejects.toMatchObject({
					message: expect.stringMatching(/the file system is read-only$/),
				})
			} finally {
				execFileSync("umount", [world.share])
			}
		},
	)
})

test("a directory where a model is to be fetched to is named with what to type", async () => {
	const partial = world.file("checkpoints/.model.safetensors.comfyume.partial")
	mkdirSync(partial, { recursive: true })
	world.declare([entryOf(model, one)])
	await world.store(model, one)
	const { exitCode, because, hint } = await world.heal()
	expect([exitCode, because(model), hint(model)]).toEqual([
		8,
		expect.stringContaining(`${partial} is no plain file`),
		`ls -ld '${partial}'; rm -r '${partial}'`,
	])
})

test("the copies that were set aside are summed up in one note", async () => {
	world.declare([entryOf(model, one)])
	await world.store(model, one)
	world.write(model, "damaged")
	expect((await world.heal()).exitCode).toBe(0)
	const { notes } = await world.heal()
	expect(notes).toEqual([
		expect.stringMatching(/^1 set-aside copy takes 7 B; .*: find '.*' -regextype .* -delete$/),
	])
})

test("nothing is written where the share vanishes between the look and the healing", async () => {
	world.declare([entryOf(model, one), entryOf(other, two)])
	await world.store(model, one)
	await world.store(other, two)
	const { exitCode, because } = await world.restore({
		onEvent: (event) => {
			if (event.event !== "checked" || event.step !== `models/${model}`) return
			if (existsSync(world.share)) renameSync(world.share, `${world.share}-elsewhere`)
		},
	})
	expect(existsSync(world.share)).toBe(false)
	expect([exitCode, because(model)]).toEqual([expect.any(Number), expect.stringContaining(world.share)])
	expect(exitCode).not.toBe(0)
})

test("without a bucket for models they come from who published them, where that is chosen", async () => {
	const text = readFileSync(world.configuration, "utf8")
	writeFileSync(world.configuration, text.replace(/^ +models: .*\n/m, ""))
	world.write(model, one)
	world.declare([entryOf(model, one)])
	await expect(world.restore()).rejects.toMatchObject({ exitCode: 2 })
	const { exitCode, outcome } = await world.restore({ fromOrigin: true })
	expect([exitCode, outcome(model)]).toEqual([0, "satisfied"])
})
