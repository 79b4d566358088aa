// What an image is built from, and when it counts as another one.
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterEach, beforeEach, expect, test } from "vitest"
import { buildWords, digestOfInputs, imageBuilds } from "../../../src/lib/stack/images.ts"
import { stackFor } from "../../support/stack.ts"

const repository = fileURLToPath(new URL("../../..", import.meta.url))
let root = ""

beforeEach(() => {
	root = mkdtempSync(join(tmpdir(), "comfyume-images-"))
	cpSync(join(repository, "templates"), join(root, "templates"), { recursive: true })
	for (const service of ["queue-manager", "auth-gate", "worker-agent"]) {
		mkdirSync(join(root, "dist", service), { recursive: true })
		writeFileSync(join(root, "dist", service, "main.js"), service)
	}
})
afterEach(() => rmSync(root, { recursive: true, force: true }))

const digests = async (changes: Parameters<typeof stackFor>[1] = {}) =>
	Object.fromEntries(
		await Promise.all(
			imageBuilds(stackFor(1, changes)).map(
				async (build) => [build.name, await digestOfInputs(root, build)] as const,
			),
		),
	)
const changed = (before: Record<string, string>, after: Record<string, string>) =>
	Object.keys(before).filter((name) => before[name] !== after[name])

test("every image that is named comfyume-… is built here, and no other", () => {
	const { images } = stackFor(1)
	const ours = Object.values(images).filter((image) => image.startsWith("comfyume-"))
	expect(
		imageBuilds(stackFor(1))
			.map(({ image }) => image)
			.sort(),
	).toEqual(ours.sort())
})

test("an image is another one when a file of it changes, or comes or goes", async () => {
	const before = await digests()
	expect(await digests()).toEqual(before)
	writeFileSync(join(root, "dist/queue-manager/main.js"), "newer")
	expect(changed(before, await digests())).toEqual(["queueManager"])
	writeFileSync(join(root, "templates/stack/frontend/more.sh"), "")
	expect(changed(before, await digests())).toEqual(["queueManager", "frontend"])
	// What Python leaves beside its modules is no part of it.
	const now = await digests()
	mkdirSync(join(root, "templates/stack/frontend/__pycache__"))
	writeFileSync(join(root, "templates/stack/frontend/__pycache__/x.pyc"), "")
	expect(changed(now, await digests())).toEqual([])
})

test("an image is another one with its Dockerfile or its base", async () => {
	const before = await digests()
	writeFileSync(join(root, "templates/worker-agent/Dockerfile"), "FROM scratch\n")
	expect(changed(before, await digests())).toEqual(["workerAgent"])
	const { images } = stackFor(1).configuration
	const other = await digests({ images: { ...images, python: "registry.example.test/python:3.12" } })
	expect(changed(before, other)).toEqual(["frontend", "worker", "workerAgent"])
})

test("a clone whose services were not bundled says what to type", async () => {
	rmSync(join(root, "dist"), { recursive: true })
	await expect(digests()).rejects.toMatchObject({ exitCode: 2, hint: "npm run build" })
})

test("no service's image installs or fetches anything while it is built", () => {
	const services = imageBuilds(stackFor(1)).filter(({ context }) => context.startsWith("dist/"))
	expect(services.length).toBe(3)
	for (const { dockerfile } of services)
		expect(readFileSync(join(repository, dockerfile), "utf8")).not.toMatch(/^(RUN|ADD)\b/m)
})

test("a build says which files and which revision it is of", () => {
	const [build] = imageBuilds(stackFor(1))
	if (build === undefined) throw new Error("no image")
	const words = buildWords("/opt/comfyume/x", build, "0".repeat(64), "abc").join(" ")
	expect(words).toContain(
		`--label comfyume.inputs=${"0".repeat(64)} --label org.opencontainers.image.revision=abc`,
	)
	expect(words).toContain("--build-arg NODE_IMAGE=node:24-slim")
	expect(words).toMatch(/ \/opt\/comfyume\/x\/dist\/queue-manager$/)
})
