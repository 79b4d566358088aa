import fc from "fast-check"
import { describe, expect, test } from "vitest"
import { type ModelReference, parseWorkflow } from "../../../src/lib/formats/workflow.ts"
import { assertOften } from "../../support/properties.ts"
import { documentedWorkflows, type MadeNode, node, subgraph, workflow } from "../../support/workflow-maker.ts"

function read(value: unknown): ModelReference[] {
	const finding = parseWorkflow(JSON.stringify(value))
	if (finding.state !== "workflow") throw new Error(finding.because)
	return finding.workflow.references
}
const paths = (value: unknown, optional = false) =>
	read(value)
		.filter((reference) => reference.optional === optional)
		.map(({ directory = "?", name }) => `${directory}/${name}`)
const refusal = (text: string) => {
	const finding = parseWorkflow(text)
	return finding.state === "workflow" ? "a workflow" : `${finding.state}: ${finding.because}`
}

describe("the models of a loader without properties are those of its widgets", () => {
	test.each([
		["UNETLoader", ["a.safetensors", "default"], ["diffusion_models/a.safetensors"]],
		["CheckpointLoaderSimple", ["a.ckpt"], ["checkpoints/a.ckpt"]],
		["CheckpointLoader", ["v1-inference.yaml", "a.ckpt"], ["checkpoints/a.ckpt"]],
		["unCLIPCheckpointLoader", ["a.ckpt"], ["checkpoints/a.ckpt"]],
		["ImageOnlyCheckpointLoader", ["a.ckpt"], ["checkpoints/a.ckpt"]],
		["CLIPLoader", ["a.gguf", "flux2", "default"], ["text_encoders/a.gguf"]],
		["DualCLIPLoader", ["a.bin", "b.bin", "flux", "default"], ["text_encoders/a.bin", "text_encoders/b.bin"]],
		[
			"TripleCLIPLoader",
			["a.pt", "b.pt", "c.pt"],
			["text_encoders/a.pt", "text_encoders/b.pt", "text_encoders/c.pt"],
		],
		[
			"QuadrupleCLIPLoader",
			["a.pt", "b.pt", "c.pt", "d.pt"],
			["text_encoders/a.pt", "text_encoders/b.pt", "text_encoders/c.pt", "text_encoders/d.pt"],
		],
		["CLIPVisionLoader", ["a.safetensors"], ["clip_vision/a.safetensors"]],
		["VAELoader", ["a.safetensors"], ["vae/a.safetensors"]],
		["LoraLoader", ["a.safetensors", 1, 1], ["loras/a.safetensors"]],
		["LoraLoaderModelOnly", ["a.safetensors", 1], ["loras/a.safetensors"]],
		["LatentUpscaleModelLoader", ["a.safetensors"], ["latent_upscale_models/a.safetensors"]],
		["UpscaleModelLoader", ["a.pth"], ["upscale_models/a.pth"]],
		["ControlNetLoader", ["a.safetensors"], ["controlnet/a.safetensors"]],
		["DiffControlNetLoader", ["a.safetensors"], ["controlnet/a.safetensors"]],
		["StyleModelLoader", ["a.safetensors"], ["style_models/a.safetensors"]],
		["GLIGENLoader", ["a.safetensors"], ["gligen/a.safetensors"]],
		["HypernetworkLoader", ["a.pt", 1], ["hypernetworks/a.pt"]],
		["PhotoMakerLoader", ["a.bin"], ["photomaker/a.bin"]],
		["ModelPatchLoader", ["a.safetensors"], ["model_patches/a.safetensors"]],
		["AudioEncoderLoader", ["a.safetensors"], ["audio_encoders/a.safetensors"]],
		["LTXAVTextEncoderLoader", ["a.st", "b.st", "default"], ["text_encoders/a.st", "checkpoints/b.st"]],
		["LTXVAudioVAELoader", ["a.safetensors"], ["checkpoints/a.safetensors"]],
		["CreateHookLora", ["a.safetensors", 1, 1], ["loras/a.safetensors"]],
	])("%s", (type, widgets, expected) => {
		expect(paths(workflow([node(type, widgets)]))).toEqual(expected)
	})

	test.each([["None"], ["none"], [""], ["  "], [null], [["1", 0]], [7]])("nothing is %j", (value) => {
		expect(read(workflow([node("LoraLoader", [value, 1, 1])]))).toEqual([])
	})

	test("VAEs that are no files, or lie elsewhere", () => {
		const vae = (name: string) => paths(workflow([node("VAELoader", [name])]))
		expect(vae("pixel_space")).toEqual([])
		expect(vae("taesdxl")).toEqual(["vae_approx/taesdxl_encoder", "vae_approx/taesdxl_decoder"])
		expect(vae("taehv.safetensors")).toEqual(["vae_approx/taehv.safetensors"])
		expect(paths(workflow([node("LoraLoader", ["taesd"])]))).toEqual(["loras/taesd"])
	})

	test("subfolders, also as Windows writes them", () => {
		const names = ["sub/a.safetensors", "sub\\deeper\\a.safetensors"]
		expect(paths(workflow(names.map((name) => node("VAELoader", [name]))))).toEqual([
			"vae/sub/a.safetensors",
			"vae/sub/deeper/a.safetensors",
		])
	})

	test("widgets by their names, and values that a primitive feeds", () => {
		const named = node("UNETLoader", [], { widgets_values: { unet_name: "a.safetensors" } })
		const fed = node("UNETLoader", ["b.safetensors", "default"], {
			inputs: [{ name: "unet_name", type: "COMBO", link: 9, widget: { name: "unet_name" } }],
		})
		const primitive = node("PrimitiveNode", ["b.safetensors", "fixed"])
		expect(paths(workflow([named, fed, primitive]))).toEqual([
			"diffusion_models/a.safetensors",
			"diffusion_models/b.safetensors",
		])
	})
})

describe("properties.models", () => {
	test("say directory and address, and count without a widget", () => {
		expect(read(workflow([node("Loads", [], { id: 7, models: ["odd/a.safetensors"] })]))).toEqual([
			{
				name: "a.safetensors",
				directory: "odd",
				url: "https://example.test/odd/a.safetensors",
				nodeType: "Loads",
				nodeId: "7",
				optional: false,
				found: "properties",
			},
		])
	})

	test("win over the loader's directory, for the file that the widget selects", () => {
		const made = node("CLIPLoader", ["sub/a.safetensors"], { models: ["clip/a.safetensors"] })
		expect(read(workflow([made]))).toMatchObject([
			{ name: "sub/a.safetensors", directory: "clip", found: "properties" },
		])
	})

	test("that name a subfolder too are the same file", () => {
		const model = { name: "sub\\a.safetensors", directory: "vae", url: "https://example.test/a" }
		expect(read(workflow([node("VAELoader", ["sub/a.safetensors"], { models: [model] })]))).toMatchObject([
			{ name: "sub/a.safetensors", url: "https://example.test/a", optional: false },
		])
	})

	test("that name only one of two files leave the other to its widget", () => {
		const made = node("LTXAVTextEncoderLoader", ["a.st", "b.st"], { models: ["text_encoders/a.st"] })
		expect(read(workflow([made])).map(({ name, found }) => `${name} ${found}`)).toEqual([
			"a.st properties",
			"b.st widget",
		])
	})

	test("that the widget was changed away from are optional", () => {
		const made = workflow([node("VAELoader", ["new.safetensors"], { models: ["vae/old.safetensors"] })])
		expect(paths(made)).toEqual(["vae/new.safetensors"])
		expect(paths(made, true)).toEqual(["vae/old.safetensors"])
	})
})

describe("a node that isn't known", () => {
	test("refers by name to what ends as a model does", () => {
		const values = ["a.safetensors", "x", 7, "a.safetensors", "sub/b.gguf"]
		expect(paths(workflow([node("Odd", values)]))).toEqual(["?/a.safetensors", "?/sub/b.gguf"])
	})

	test.each([
		["an address", "https://example.test/a.safetensors"],
		["a text of several lines", "put there\nvae/a.safetensors"],
		["a text that is longer than names are", `${"word ".repeat(200)}a.safetensors`],
	])("not by %s", (_, value) => {
		expect(read(workflow([node("Odd", [value])]))).toEqual([])
	})

	test.each(["Note", "MarkdownNote"])("%s loads nothing", (type) => {
		expect(read(workflow([node(type, ["a.safetensors"])]))).toEqual([])
	})
})

describe("what is muted or bypassed is optional", () => {
	const vae = (more: MadeNode = {}) => node("VAELoader", ["a.safetensors"], more)
	const instance = (type: string, mode: number, id = 5) => node(type, [], { mode, id })

	test.each([
		[0, false],
		[2, true],
		[4, true],
		[1, false],
	])("mode %i", (mode, optional) => {
		expect(read(workflow([vae({ mode })]))).toMatchObject([{ optional }])
	})

	test("with the nodes of a subgraph whose instances all are", () => {
		const graphs = [subgraph("g", [vae({ id: 12 })])]
		expect(read(workflow([instance("g", 4), instance("g", 2, 6)], graphs))).toMatchObject([
			{ optional: true, nodeId: "5:12" },
		])
		expect(read(workflow([instance("g", 4), instance("g", 0, 6)], graphs))).toMatchObject([
			{ optional: false, nodeId: "6:12" },
		])
	})

	test("with those of subgraphs inside of it, which are written before or after it", () => {
		const inner = subgraph("inner", [vae({ id: 12 })])
		const outer = subgraph("outer", [instance("inner", 0, 6)])
		for (const graphs of [
			[inner, outer],
			[outer, inner],
			[{ ...outer, definitions: { subgraphs: [inner] } }],
		]) {
			expect(read(workflow([instance("outer", 4)], graphs))).toMatchObject([
				{ optional: true, nodeId: "5:6:12" },
			])
			expect(read(workflow([instance("outer", 0)], graphs))).toMatchObject([{ optional: false }])
		}
	})

	test("a subgraph without an instance counts as needed", () => {
		expect(read(workflow([], [subgraph("g", [vae()])]))).toMatchObject([{ optional: false }])
	})
})

test("what a subgraph's instance repeats of its nodes is no reference of its own, and what it changes is", () => {
	const graphs = [
		subgraph("inner", [node("VAELoader", ["a.safetensors"])]),
		subgraph("outer", [node("inner", ["a.safetensors"])]),
	]
	expect(paths(workflow([node("outer", ["a.safetensors", "b.safetensors"])], graphs))).toEqual([
		"?/b.safetensors",
		"vae/a.safetensors",
	])
})

describe("API format", () => {
	const prompt = {
		"3": { class_type: "LTXAVTextEncoderLoader", inputs: { text_encoder: "a.st", ckpt_name: "b.st" } },
		"57:12": { class_type: "UNETLoader", inputs: { unet_name: ["9", 0], weight_dtype: "default" } },
		"9": { class_type: "PrimitiveString", inputs: { value: "c.safetensors" } },
		"10": { class_type: "VAELoader", inputs: { vae_name: "d.safetensors" }, _meta: { title: "VAE" } },
	}
	const expected = ["text_encoders/a.st", "checkpoints/b.st", "?/c.safetensors", "vae/d.safetensors"]

	test("is read by the inputs' names, plain and wrapped", () => {
		expect(paths(prompt).sort()).toEqual(expected.toSorted())
		expect(paths({ prompt, client_id: "x" }).sort()).toEqual(expected.toSorted())
	})
})

test("the documented workflows ask for what is documented", () => {
	const names = (file: string) => new Set(paths(documentedWorkflows()[file]))
	expect(names("flux2_klein_9b_text_to_image.json")).toEqual(
		new Set([
			"diffusion_models/flux-2-klein-9b-fp8.safetensors",
			"diffusion_models/flux-2-klein-base-9b-fp8.safetensors",
			"text_encoders/qwen_3_8b_fp8mixed.safetensors",
			"vae/flux2-vae.safetensors",
		]),
	)
	expect(names("ltx2_text_to_video.json").size).toBe(5)
	expect(names("example_workflow.json").size).toBe(0)
})

const chain = (length: number, last: MadeNode[]) =>
	Array.from({ length }, (_, index) =>
		subgraph(`g${index}`, index === length - 1 ? last : [node(`g${index + 1}`, [])]),
	)
const nested = (depth: number): MadeNode =>
	depth === 0
		? subgraph("d0", [])
		: { ...subgraph(`d${depth}`, []), definitions: { subgraphs: [nested(depth - 1)] } }

test.each([
	["", "broken: it is empty"],
	["{", "broken: it is not JSON"],
	[" ".repeat(64 * 1024 * 1024 + 1), "broken: it is larger than 64 MiB"],
	["<html>", "broken: it is not JSON"],
	["[]", "none: it is JSON, and no workflow"],
	["7", "none: it is JSON, and no workflow"],
	["{}", "none: it is JSON, and no workflow"],
	['{"nodes":{}}', "none: it is JSON, and no workflow"],
	['{"nodes":[null,7,{},[],{"type":4}]}', "a workflow"],
	['{"__proto__":{"nodes":[]}}', "none: it is JSON, and no workflow"],
	['{"__proto__":{"class_type":"VAELoader","inputs":{"__proto__":{"vae_name":"a"}}}}', "a workflow"],
	['{"nodes":[{"type":"constructor","widgets_values":{"__proto__":7}},{"type":"__proto__"}]}', "a workflow"],
	["[".repeat(1_000_000), "broken: it is not JSON"],
	[JSON.stringify(workflow([node("g0", [])], chain(30, []))), "a workflow"],
	[
		JSON.stringify(workflow([node("g0", [])], chain(60, []))),
		"broken: its subgraphs are nested deeper than 32",
	],
	[JSON.stringify(workflow([], [nested(40)])), "broken: its subgraphs are nested deeper than 32"],
	[
		JSON.stringify(workflow([node("g0", [])], chain(9, [node("g4", [])]))),
		expect.stringMatching(/^broken: its subgraph "named g[4-8]" contains itself$/),
	],
	[
		JSON.stringify(workflow(Array.from({ length: 100_001 }, () => ({ type: "x" })))),
		"broken: it has more than 100000 nodes",
	],
])("foreign text %# is told for what it is", (text, expected) => {
	expect(refusal(text)).toEqual(expected)
})

test("work and answer stay small for what is made to make them large", () => {
	const long = "x".repeat(100_000)
	const many = Array.from({ length: 300 }, (_, index) => `${index}.safetensors`)
	const started = performance.now()
	const texts = [
		workflow(
			[node("g0", [], { id: long })],
			[
				subgraph(
					"g0",
					many.map((name) => node("VAELoader", [`${long}${name}`])),
				),
			],
		),
		workflow([node("Odd", Array(200_000).fill("a.safetensors"))]),
		workflow(
			[node("g0", [])],
			[
				...chain(
					30,
					many.map((name) => node("VAELoader", [name])),
				),
				...Array.from({ length: 3000 }, (_, index) => subgraph(`h${index}`, [node("g0", [])])),
			],
		),
		workflow(
			Array.from({ length: 50_000 }, () => ({ type: "g0" })),
			[
				subgraph(
					"g0",
					Array.from({ length: 49_000 }, (_, index) => ({ type: "Odd", widgets_values: [`${index}.pt`] })),
				),
			],
		),
		workflow(
			[],
			[
				subgraph(
					"g0",
					Array.from({ length: 40_000 }, (_, index) => ({ type: "Odd", widgets_values: [`${index}.pt`] })),
				),
				...Array.from({ length: 20_000 }, (_, index) => subgraph(`h${index}`, [{ type: "g0" }])),
			],
		),
	].map((value) => JSON.stringify(parseWorkflow(JSON.stringify(value))))
	for (const text of texts) expect(text.length).toBeLessThan(10_000_000)
	expect(performance.now() - started).toBeLessThan(5000)
})

// Keys and values that the reader looks for, in every wrong place.
const words = fc.constantFrom(
	...[
		"nodes",
		"definitions",
		"subgraphs",
		"id",
		"type",
		"mode",
		"name",
		"widgets_values",
		"properties",
		"models",
	],
	...[
		"directory",
		"url",
		"class_type",
		"inputs",
		"prompt",
		"vae_name",
		"__proto__",
		"constructor",
		"toString",
	],
	...["VAELoader", "DualCLIPLoader", "g", "h", "a.safetensors", "taesd", "None"],
)
const { value: anyJson } = fc.letrec((tie) => ({
	value: fc.oneof(
		{ maxDepth: 7 },
		words,
		fc.oneof(fc.string(), fc.integer(), fc.constantFrom(2, 4, null, true)),
		fc.array(tie("value"), { maxLength: 4 }),
		fc.dictionary(fc.oneof(words, fc.string()), tie("value"), { maxKeys: 5 }),
	),
}))
const ids = fc.constantFrom("g", "h", "i", "VAELoader", "UNETLoader", "Odd", "Note")
const anyNode = fc.record({
	id: fc.oneof(fc.nat(99), anyJson),
	type: fc.oneof(ids, anyJson),
	mode: fc.constantFrom(0, 2, 4),
	widgets_values: fc.oneof(fc.array(words, { maxLength: 3 }), anyJson),
	properties: fc.oneof(
		fc.record({ models: fc.array(fc.record({ name: words, directory: words })) }),
		anyJson,
	),
})
const anyNodes = fc.array(anyNode, { maxLength: 6 })
const anyGraph = fc.record({ id: fc.oneof(ids, anyJson), nodes: anyNodes })
const anyWorkflow = fc.record({
	nodes: anyNodes,
	definitions: fc.oneof(fc.record({ subgraphs: fc.array(anyGraph, { maxLength: 4 }) }), anyJson),
})
const anyApi = fc.dictionary(fc.string(), fc.record({ class_type: fc.oneof(ids, anyJson), inputs: anyJson }))
const whole = Object.values(documentedWorkflows()).map((value) => JSON.stringify(value))
const changed = fc
	.tuple(fc.constantFrom(...whole), fc.double({ min: 0, max: 1, noNaN: true }), fc.nat(30), fc.string())
	.map(([text, at, cut, put]) => {
		const from = Math.floor(at * text.length)
		return `${text.slice(0, from)}${put}${text.slice(from + cut)}`
	})
const anyText = fc.oneof(
	fc.string({ unit: "binary" }),
	fc.oneof(anyJson, anyWorkflow, anyApi).map((value) => JSON.stringify(value)),
	changed,
)

test("no text makes it throw; the same text gives the same, in bounds", async () => {
	const property = fc.property(anyText, (text) => {
		const finding = parseWorkflow(text)
		expect(parseWorkflow(text)).toEqual(finding)
		if (finding.state !== "workflow") {
			expect(finding.because).not.toBe("")
			return
		}
		const { references } = finding.workflow
		expect(references.length).toBeLessThanOrEqual(text.length)
		for (const { name, nodeType, optional } of references) {
			expect(name.trim()).not.toBe("")
			expect(typeof nodeType).toBe("string")
			expect(typeof optional).toBe("boolean")
		}
	})
	await assertOften(property, 4000)
})

test("the order of subgraphs and of nodes changes nothing but the order of the answer", async () => {
	const loadersAt = fc.array(fc.constantFrom("a", "b", "c"), { maxLength: 3 })
	const graph = fc.record({
		files: loadersAt,
		inner: fc.array(fc.nat(3), { maxLength: 2 }),
		mode: fc.constantFrom(0, 4),
	})
	const property = fc.property(fc.array(graph, { minLength: 1, maxLength: 4 }), (graphs) => {
		const made = graphs.map(({ files, inner, mode }, index) => ({
			id: `g${index}`,
			nodes: [
				...files.map((file, at) => ({ id: at, type: "VAELoader", widgets_values: [`${file}.pt`] })),
				// Only later ones: no circles.
				...inner.map((step, at) => ({ id: 10 + at, type: `g${index + 1 + step}`, mode })),
			],
		}))
		const [first, ...others] = made
		const root = { nodes: first?.nodes, definitions: { subgraphs: others } }
		const turned = {
			nodes: first?.nodes.toReversed(),
			definitions: { subgraphs: others.map((one) => ({ ...one, nodes: one.nodes.toReversed() })).reverse() },
		}
		const said = (value: unknown) =>
			read(value)
				.map(({ name, optional }) => `${name} ${optional}`)
				.sort()
		expect(said(turned)).toEqual(said(root))
	})
	await assertOften(property, 1000)
})
