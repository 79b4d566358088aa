// What `docker save` writes, made by hand, and everything that may be wrong with it.
import { createHash } from "node:crypto"
import { Readable } from "node:stream"
import { expect, test } from "vitest"
import { readDockerImage } from "../../../src/lib/formats/docker-image.ts"
import { type MadeMember, makeTar } from "../../support/tar-maker.ts"

const image = "comfyume-frontend:v0.11.0"
const sha256 = (content: string | Buffer) => createHash("sha256").update(content).digest("hex")
const blob = (content: string | Buffer): MadeMember => ({ path: `blobs/sha256/${sha256(content)}`, content })

const layers = ["the first layer", "the second layer"]
const configuration = JSON.stringify({
	rootfs: { type: "layers", diff_ids: layers.map((layer) => `sha256:${sha256(layer)}`) },
})
const configurationId = `sha256:${sha256(configuration)}`
const saved = (change: object = {}) =>
	JSON.stringify([
		{
			Config: `blobs/sha256/${sha256(configuration)}`,
			RepoTags: [image],
			Layers: layers.map((layer) => `blobs/sha256/${sha256(layer)}`),
			...change,
		},
	])

/** As Docker 25 and newer write it. */
const oci = (): MadeMember[] => [
	{ path: "blobs/", type: "5" },
	...layers.map(blob),
	blob(configuration),
	{ path: "manifest.json", content: saved() },
]

/** As older ones do: layers in directories of their own. */
const older = (): MadeMember[] => [
	{ path: "one/", type: "5" },
	...layers.map((content, at) => ({ path: `${at}/layer.tar`, content })),
	{ path: `${sha256(configuration)}.json`, content: configuration },
	{
		path: "manifest.json",
		content: saved({ Config: `${sha256(configuration)}.json`, Layers: ["0/layer.tar", "1/layer.tar"] }),
	},
]

/** As containerd's store gives it: layers compressed, and a manifest that names them. */
const compressed = layers.map((layer) => `compressed: ${layer}`)
const manifest = JSON.stringify({
	config: { digest: configurationId },
	layers: compressed.map((layer) => ({ digest: `sha256:${sha256(layer)}` })),
})
const index = JSON.stringify({
	manifests: [{ digest: `sha256:${sha256(manifest)}` }, { digest: `sha256:${"0".repeat(64)}` }],
})
const containerd = (): MadeMember[] => [
	...compressed.map(blob),
	blob(configuration),
	blob(manifest),
	blob(index),
	{ path: "index.json", content: JSON.stringify({ manifests: [{ digest: `sha256:${sha256(index)}` }] }) },
	{
		path: "manifest.json",
		content: saved({ Layers: compressed.map((layer) => `blobs/sha256/${sha256(layer)}`) }),
	},
]

const read = (members: readonly MadeMember[], name = image) =>
	readDockerImage(Readable.from([makeTar(members)]), name)
const without = (members: readonly MadeMember[], path: string) =>
	members.filter((member) => member.path !== path)
const changed = (members: readonly MadeMember[], path: string, change: Partial<MadeMember>) =>
	members.map((member) => (member.path === path ? { ...member, ...change } : member))

test("both layouts are the image that their configuration's digest names", async () => {
	expect(await read(oci())).toEqual({ ids: [configurationId] })
	expect(await read(older())).toEqual({ ids: [configurationId] })
})

test("of containerd's, the manifest and its index are the names that prove the compressed layers", async () => {
	expect(await read(containerd())).toEqual({ ids: [`sha256:${sha256(index)}`, `sha256:${sha256(manifest)}`] })
})

test("a layer that is a link to an equal one is that one", async () => {
	const twice = JSON.stringify({
		rootfs: { diff_ids: [layers[0], layers[0]].map((layer) => `sha256:${sha256(layer ?? "")}`) },
	})
	const members = [
		{ path: "0/layer.tar", content: layers[0] ?? "" },
		{ path: "1/layer.tar", type: "2", target: "../0/layer.tar" },
		{ path: `${sha256(twice)}.json`, content: twice },
		{
			path: "manifest.json",
			content: saved({ Config: `${sha256(twice)}.json`, Layers: ["0/layer.tar", "1/layer.tar"] }),
		},
	]
	expect(await read(members)).toEqual({ ids: [`sha256:${sha256(twice)}`] })
})

test.each([
	["redis:7-alpine", "docker.io/library/redis:7-alpine"],
	["docker.io/library/redis:7-alpine", "redis:7-alpine"],
	["registry.example.test:5000/redis:latest", "registry.example.test:5000/redis"],
])("%s and %s are one name", async (tag, name) => {
	const members = changed(oci(), "manifest.json", { content: saved({ RepoTags: [tag] }) })
	expect((await read(members, name)).ids).toEqual([configurationId])
})

const layerPath = `blobs/sha256/${sha256(layers[1] ?? "")}`
const configurationPath = `blobs/sha256/${sha256(configuration)}`
const otherConfiguration = JSON.stringify({ rootfs: { diff_ids: [`sha256:${sha256(layers[0] ?? "")}`] } })
const otherManifest = manifest.replace(sha256(compressed[1] ?? ""), sha256("another layer"))

test.each<[string, MadeMember[], string]>([
	[
		"a flipped layer",
		changed(oci(), layerPath, { content: "the second lbyer" }),
		"doesn't hold what its name says",
	],
	[
		"a flipped layer of the older layout",
		changed(older(), "1/layer.tar", { content: "the second lbyer" }),
		"the layer 1/layer.tar is not the one that its configuration names",
	],
	[
		"layers in another order",
		changed(oci(), "manifest.json", {
			content: saved({ Layers: [...layers].reverse().map((layer) => `blobs/sha256/${sha256(layer)}`) }),
		}),
		"is not the one that its configuration names",
	],
	["a layer that isn't there", without(oci(), layerPath), "is named, and not there"],
	[
		"one layer fewer than configured",
		changed(oci(), "manifest.json", {
			content: saved({ Layers: [`blobs/sha256/${sha256(layers[0] ?? "")}`] }),
		}),
		"it has 1 layers, its configuration says 2",
	],
	["a configuration that isn't there", without(oci(), configurationPath), "is named, and not there"],
	[
		"a changed configuration of the older layout",
		changed(older(), `${sha256(configuration)}.json`, { content: otherConfiguration }),
		"doesn't hold what its name says",
	],
	[
		"a configuration that is none",
		[
			...without(oci(), "manifest.json"),
			blob("[]"),
			{ path: "manifest.json", content: saved({ Config: `blobs/sha256/${sha256("[]")}` }) },
		],
		"is not what it should be",
	],
	["no manifest.json", without(oci(), "manifest.json"), "manifest.json is named, and not there"],
	[
		"a manifest.json that is none",
		changed(oci(), "manifest.json", { content: "<html>" }),
		"manifest.json is not what it should be",
	],
	[
		"two images",
		changed(oci(), "manifest.json", { content: `${saved().slice(0, -1)},${saved().slice(1)}` }),
		"names 2 images",
	],
	["no image", changed(oci(), "manifest.json", { content: "[]" }), "names 0 images"],
	[
		"another image's name",
		changed(oci(), "manifest.json", { content: saved({ RepoTags: ["redis:7-alpine"] }) }),
		"it is the image redis:7-alpine, not comfyume-frontend:v0.11.0",
	],
	[
		"a second name, which loading would give too",
		changed(oci(), "manifest.json", { content: saved({ RepoTags: [image, "redis:7-alpine"] }) }),
		"it is the image comfyume-frontend:v0.11.0, redis:7-alpine",
	],
	[
		"no name",
		changed(oci(), "manifest.json", { content: saved({ RepoTags: null }) }),
		"it is the image without a name",
	],
	["a member twice", [...oci(), blob(layers[0] ?? "")], "is there twice"],
	["a name that climbs", [...oci(), { path: "../etc/passwd", content: "x" }], "has a name that is not plain"],
	[
		"a name that climbs in its middle",
		[...oci(), { path: "a/../../b", content: "x" }],
		"has a name that is not plain",
	],
	["an absolute name", [...oci(), { path: "/etc/passwd", content: "x" }], "has a name that is not plain"],
	["a device", [...oci(), { path: "null", type: "3" }], "is a character-device"],
	["a hard link", [...oci(), { path: "link", type: "1", target: layerPath }], "is a hardlink"],
	[
		"a link to nowhere for a layer",
		changed(older(), "1/layer.tar", { type: "2", target: "../2/layer.tar", content: "" }),
		"is named, and not there",
	],
	[
		"compressed layers that no manifest names",
		without(containerd(), "index.json"),
		"is not the one that its configuration names",
	],
	[
		"a manifest of other layers",
		[
			...changed(containerd(), "index.json", {
				content: JSON.stringify({ manifests: [{ digest: `sha256:${sha256(otherManifest)}` }] }),
			}),
			blob(otherManifest),
		],
		"is not the one that its configuration names",
	],
])("%s is refused", async (_, members, says) => {
	await expect(read(members)).rejects.toThrow(says)
})

test("an archive that is cut is refused, wherever it is cut", async () => {
	const whole = makeTar(oci())
	for (let length = 0; length < whole.length; length += 300)
		await expect(readDockerImage(Readable.from([whole.subarray(0, length)]), image)).rejects.toThrow(
			"cut short",
		)
})
