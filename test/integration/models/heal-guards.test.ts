// What healing must never do: destroy a right model, take bytes that aren't the manifest's, or say more than it knows.
import { mkdirSync, readFileSync, symlinkSync } from "node:fs"
import { dirname } from "node:path"
import { Readable } from "node:stream"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { verifyObject } from "../../../src/lib/models/remote.ts"
import { verifyModel } from "../../../src/lib/models/verify.ts"
import type { GetOptions, ObjectStore } from "../../../src/lib/storage/object-store.ts"
import { makeHeader, makeModel, tensorsOf } from "../../support/model-maker.ts"
import { createModelWorld, entryOf, flipped, type ModelWorld, sha256 } from "../../support/model-world.ts"

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
