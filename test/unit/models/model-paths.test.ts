import fc from "fast-check"
import { describe, expect, test } from "vitest"
import { parseModelPaths, unreachable } from "../../../src/lib/models/model-paths.ts"
import { assertOften } from "../../support/properties.ts"

const said = (text: string) =>
	parseModelPaths(text).problems.map(({ line, severity, message }) => `${line} ${severity}: ${message}`)
const pathsOf = (text: string, surroundings = {}) =>
	parseModelPaths(text, surroundings).searchPaths.map(({ key, path }) => `${key} ${path}`)

const right = `# the share
comfyume:
  base_path: /models
  is_default: true
  checkpoints: checkpoints/
  unet: diffusion_models
  text_encoders: |
    text_encoders/
    clip/
  loras: /elsewhere/loras
  custom_nodes: more_nodes
nothing:
`

test("a file that ComfyUI takes has no problems, and every directory of it is known", () => {
	const { searchPaths, problems } = parseModelPaths(right)
	expect(problems).toEqual([])
	expect(searchPaths.map(({ folderType, path, line }) => `${line} ${folderType} ${path}`)).toEqual([
		"5 checkpoints /models/checkpoints",
		"6 diffusion_models /models/diffusion_models",
		"7 text_encoders /models/text_encoders",
		"7 text_encoders /models/clip",
		"10 loras /elsewhere/loras",
		"11 custom_nodes /models/more_nodes",
	])
	expect(searchPaths.every(({ isDefault, section }) => isDefault && section === "comfyume")).toBe(true)
})

test("directories are those that ComfyUI makes of base_path, home, variables and the file's own place", () => {
	const text =
		"a:\n  base_path: ~/$SHARE/$UNKNOWN\n  vae: ./vae/\nb:\n  base_path: below\n  vae: vae\nc:\n  vae: vae\n"
	const variables = { HOME: "/home/u", SHARE: "share" }
	expect(pathsOf(text, { fileDirectory: "/etc/comfy", variables })).toEqual([
		"vae /home/u/share/$UNKNOWN/vae",
		"vae /etc/comfy/below/vae",
		"vae /etc/comfy/vae",
	])
	expect(pathsOf("a:\n  base_path: ~/x\n  vae: vae")).toEqual(["vae ~/x/vae"])
})

describe("a problem is said with its line", () => {
	const unknown = "ComfyUI knows no such folder type, and will find none of its models"
	test.each([
		["a:\n  lorsa: x\n", `2 error: a.lorsa: ${unknown}; did you mean loras?`],
		["a:\n  t2i_adapter: x\n", `2 error: a.t2i_adapter: ${unknown}; did you mean controlnet?`],
		["a:\n  vae: x\n  zzzzzzzz: x\n", `3 error: a.zzzzzzzz: ${unknown}`],
		[
			"a:\n  upscale_models: latent_upscale_models/\n",
			"2 warning: a.upscale_models: it leads to latent_upscale_models, which is the directory of another folder type: " +
				"the key would be latent_upscale_models, not upscale_models",
		],
		["a:\n  vae: ~/vae\n", "2 warning: a.vae: ~ and variables are expanded in base_path alone"],
		["a:\n  vae: |\n    vae \n    b\n", '2 warning: a.vae: "vae " has space around it, which counts'],
		["a:\n  is_default: maybe\n", "2 warning: a.is_default is neither true nor false"],
		["a:\n  base_path: 7\n", "2 error: a.base_path is no text: ComfyUI stops when it reads it"],
		["a:\n  vae:\n", expect.stringMatching(/^2 error: a\.vae is no text/)],
		["a:\n  vae: [x, y]\n", expect.stringMatching(/^2 error: a\.vae is no text/)],
		["a: 7\n", expect.stringMatching(/^1 error: a: it has no keys/)],
		["- a\n", expect.stringMatching(/^1 error: it has no sections/)],
		["", expect.stringMatching(/^1 error: it has no sections/)],
		["a:\n  vae: x\n  vae: y\n", expect.stringMatching(/^3 error: .*unique/)],
		["a: &a\n  vae: x\nb: *a\n", expect.stringMatching(/^3 error: b: .*aliases are not taken/)],
		["x".repeat(1_100_000), "1 error: it is larger than 1 MiB"],
	])("%.40j", (text, expected) => {
		expect(said(text)).toEqual([expected])
	})

	test("the older names unet and clip lead to directories of their own type", () => {
		expect(said("a:\n  diffusion_models: unet\n  clip: text_encoders\n  controlnet: t2i_adapter\n")).toEqual(
			[],
		)
	})
})

describe("a directory is unreachable", () => {
	const models = ["latent_upscale_models/a.st", "loras/b.st", "loras/c.st", "unet/d.st"]
	const hidden = (text: string, seenAt?: string) =>
		unreachable(models, parseModelPaths(text).searchPaths, seenAt).map(
			({ directory, models: count, because }) => `${directory} ${count}: ${because}`,
		)
	const wrongKey =
		"s:\n  base_path: /models\n  upscale_models: latent_upscale_models/\n  loras: loras/\n  diffusion_models: unet\n"

	test("when a key of another type alone leads to it", () => {
		const expected = [
			"latent_upscale_models 1: only s.upscale_models (line 3) leads to it: the key would be latent_upscale_models",
		]
		expect(hidden(wrongKey, "/models")).toEqual(expected)
		expect(hidden(wrongKey)).toEqual(expected)
		expect(hidden(`${wrongKey}  latent_upscale_models: latent_upscale_models\n`, "/models")).toEqual([])
	})

	test("when no key leads to it, or one that ComfyUI doesn't know", () => {
		expect(hidden("s:\n  base_path: /models\n  lorsa: loras\n  diffusion_models: unet\n", "/models")).toEqual(
			[
				"latent_upscale_models 1: no key leads to it: the key would be latent_upscale_models",
				"loras 2: only s.lorsa (line 3) leads to it: the key would be loras",
			],
		)
	})

	test("when the base path is another than where ComfyUI sees the models", () => {
		expect(hidden(wrongKey, "/mnt/sfs/models/shared")).toHaveLength(3)
	})
})

test("no text makes it throw, alias bombs neither", async () => {
	const layers = Array.from(
		{ length: 30 },
		(_, index) => `a${index + 1}: &a${index + 1} [*a${index}, *a${index}]`,
	)
	expect(said(["a0: &a0 [x]", ...layers].join("\n")).length).toBeLessThan(40)
	const cut = fc
		.tuple(fc.nat(right.length), fc.nat(right.length), fc.string())
		.map(([from, to, put]) => right.slice(0, from) + put + right.slice(to))
	const text = fc.oneof(fc.string({ unit: "binary" }), fc.json(), cut)
	const property = fc.property(text, (input) => {
		const read = parseModelPaths(input)
		expect(parseModelPaths(input)).toEqual(read)
		for (const { line, message } of read.problems) {
			expect(line).toBeGreaterThan(0)
			expect(message).not.toBe("")
		}
		unreachable(["vae/a", ""], read.searchPaths, "/models")
	})
	await assertOften(property, 1000)
})
