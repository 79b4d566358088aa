import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import type { Instance } from "../support/instance/instance.ts"
import { makeModel } from "../support/model-maker.ts"
import { type ModelPlaces, openModelPlaces } from "../support/model-places.ts"
import { describeWith } from "../support/parts.ts"
import { openWorkshop, type Workshop } from "../support/workshop.ts"

// The models of a server are looked at from a laptop: the bytes stay where they are, only what was found comes back.
describeWith("instances", "models are verified over SSH", () => {
	let workshop: Workshop
	let server: Instance
	let places: ModelPlaces
	const models = {
		"loras/a.safetensors": makeModel(300_000, 1),
		"vae/b.safetensors": makeModel(200_000, 2),
	}

	beforeAll(async () => {
		workshop = await openWorkshop()
		places = await openModelPlaces(
			workshop.share,
			{ accessKeyId: "made-up-key-id", secretAccessKey: "made-up-secret-access-key" },
			workshop.world.address,
		)
		for (const [path, bytes] of Object.entries(models)) await places.everywhere(path, bytes)
		server = await workshop.freshInstance("server")
		const identity = await workshop.makeServer(server)
		await workshop.pointAt(server, identity)
		const file = join(workshop.laptop, "comfyume.yaml")
		writeFileSync(
			file,
			readFileSync(file, "utf8").replace("buckets: {", `buckets: { ${places.bucketLine()},`),
		)
		// It lies on the laptop alone.
		writeFileSync(join(workshop.laptop, "models.yaml"), places.manifestOf(models))
	})
	afterAll(async () => {
		await places?.s3.close()
		await workshop?.[Symbol.asyncDispose]()
	})

	const verify = async (...words: string[]) => {
		const ended = await workshop.comfyume(
			...["verify-models", "--env", "rehearsal", "--manifest", "models.yaml", "--json", ...words],
		)
		const events = ended.stdout
			.split("\n")
			.filter((line) => line !== "")
			.map((line) => JSON.parse(line))
		const found = events
			.filter(({ event }) => event === "model")
			.map(({ place, path, status, tier }) => `${place} ${path} ${status} ${tier}`)
		return { ...ended, found }
	}

	test("all are right, by the laptop's manifest; the host remembers their digests", async () => {
		const first = await verify("--level", "digest")
		expect(first.exitCode, first.stdout + first.stderr).toBe(0)
		expect(first.found).toEqual([
			"share loras/a.safetensors ok digest",
			"share vae/b.safetensors ok digest",
			"r2 loras/a.safetensors ok structure",
			"r2 vae/b.safetensors ok structure",
		])
		expect(readdirSync(join(server.root, "var/lib/comfyume"))).toEqual(["digests"])
		expect(await verify("--scrub", "1/2")).toMatchObject({ exitCode: 0 })
	})

	test("what is wrong comes back with its place, and the same exit code", async () => {
		places.onShare("loras/a.safetensors", Buffer.from("<!DOCTYPE html><html>"))
		rmSync(join(places.directory, "vae/b.safetensors"))
		const { exitCode, found } = await verify()
		expect(exitCode).toBe(3)
		expect(found.slice(0, 2)).toEqual([
			"share loras/a.safetensors html structure",
			"share vae/b.safetensors missing exists",
		])
		const shown = await workshop.comfyume(
			...["verify-models", "--env", "rehearsal", "--manifest", "models.yaml"],
		)
		expect(shown).toMatchObject({
			exitCode: 3,
			stdout: expect.stringMatching(/^model +share +r2 +size +because\n/),
		})
		const manifest = join(workshop.laptop, "broken.yaml")
		writeFileSync(manifest, "version: 1\nmodels:\n  - path: ../x\n")
		expect(
			await workshop.comfyume("verify-models", "--env", "rehearsal", "--manifest", "broken.yaml"),
		).toMatchObject({ exitCode: 2, stderr: expect.stringContaining("comfyume manifest check") })
	})
})
