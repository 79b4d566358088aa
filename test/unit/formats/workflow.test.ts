import { describe, expect, test } from "vitest"
import { type ModelReference, parseWorkflow } from "../../../src/lib/formats/workflow.ts"
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
