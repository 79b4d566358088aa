// An image is taken: what is saved is compressed, read back, and held against what Docker calls the image.
import { createHash } from "node:crypto"
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import type { ImageArtifact } from "../../../src/lib/artifacts/catalogue.ts"
import { inspectImage, takeImage } from "../../../src/lib/artifacts/image.ts"
import { type LocalHost, localHost } from "../../../src/lib/host/local.ts"
import { makeTar } from "../../support/tar-maker.ts"

const sha256 = (content: string) => createHash("sha256").update(content).digest("hex")
const layer = "a layer"
const configuration = JSON.stringify({ rootfs: { diff_ids: [`sha256:${sha256(layer)}`] } })
const id = `sha256:${sha256(configuration)}`
const saved = (name: string) =>
	makeTar([
		{ path: `blobs/sha256/${sha256(layer)}`, content: layer },
		{ path: `blobs/sha256/${sha256(configuration)}`, content: configuration },
		{
			path: "manifest.json",
			content: JSON.stringify([
				{
					Config: `blobs/sha256/${sha256(configuration)}`,
					RepoTags: [name],
					Layers: [`blobs/sha256/${sha256(layer)}`],
				},
			]),
		},
	])

const artifact: ImageArtifact = {
	kind: "image",
	name: "image-frontend",
	group: "container-images",
	holds: "an image",
	image: "comfyume-frontend:v0.11.0",
	roles: ["app"],
	byRequest: false,
	bucket: "images",
}
const workDirectory = "/var/lib/comfyume/work"
let directory = ""
let host: LocalHost

beforeEach(() => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-image-"))
	host = localHost({ name: "app-1", root: directory, environment: process.env })
})
afterEach(() => rmSync(directory, { recursive: true, force: true }))

const take = (content: Buffer, found = { id, sizeBytes: content.length }) =>
	takeImage({
		host,
		artifact,
		origin: { comfyume: "0.0.0-test", environment: "sandbox", host: "app-1" },
		predecessor: undefined,
		found,
		save: async (file) => writeFileSync(file, content),
		workDirectory,
		now: () => new Date("2026-11-21T03:00:00Z"),
		signal: new AbortController().signal,
	})

test("a good one is named by time and digest, and its sidecar says what Docker called it", async () => {
	const { id: snapshot, sidecar, archiveFile } = await take(saved(artifact.image))
	expect(snapshot).toBe(`20261121T030000Z-${sidecar.digest.slice(0, 12)}`)
	expect(sidecar).toMatchObject({ kind: "image", image: artifact.image, imageId: id })
	expect(existsSync(host.path(archiveFile))).toBe(true)
	expect(existsSync(host.path(`${workDirectory}/image-frontend.tar`))).toBe(false)
})

test.each([
	[
		"another image under the name",
		saved(artifact.image),
		{ id: `sha256:${"1".repeat(64)}`, sizeBytes: 1 },
		"it holds",
	],
	["the image under another name", saved("redis:7-alpine"), undefined, "it is the image redis:7-alpine"],
	["half of it", saved(artifact.image).subarray(0, 1500), undefined, "not a whole archive: cut short"],
	["nothing", Buffer.alloc(0), undefined, "not a whole archive: cut short"],
	["more than there is room for", saved(artifact.image), { id, sizeBytes: 2 ** 50 }, "bytes free"],
])("%s is no snapshot", async (_, content, found, says) => {
	await expect(take(content, found)).rejects.toThrow(says)
})

test("one that unpacks to more than its sidecar says is not read to its end", async () => {
	const { sidecar, archiveFile } = await take(saved(artifact.image))
	const less = { ...sidecar, unpackedBytes: sidecar.unpackedBytes - 1 }
	const { signal } = new AbortController()
	await expect(inspectImage(host.path(archiveFile), less, signal)).rejects.toThrow(
		"unpacked it is larger than",
	)
	expect(await inspectImage(host.path(archiveFile), sidecar, signal)).toEqual([id])
})
