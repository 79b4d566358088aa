// What healing must never do: destroy a right model, take bytes that aren't the manifest's, or say more than it knows.
import { readFileSync } from "node:fs"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { makeModel } from "../../support/model-maker.ts"
import { createModelWorld, entryOf, flipped, type ModelWorld } from "../../support/model-world.ts"

const [model, _other] = ["checkpoints/model.safetensors", "diffusion_models/other.safetensors"] as const
const [one, _two] = [makeModel(40_000, 1), makeModel(40_000, 2)]

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
