// `comfyume verify-models --workflows` and `--model-paths` as a shell and a CI job see them.
import {
	mkdirSync,
	mkdtempSync,
	readFileSync,
	rmSync,
	symlinkSync,
	truncateSync,
	writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { parse, stringify } from "yaml"
import { makeModel } from "../../support/model-maker.ts"
import { type Ran, run } from "../../support/run.ts"
import { documentedWorkflows, node, workflow } from "../../support/workflow-maker.ts"

const repository = fileURLToPath(new URL("../../..", import.meta.url))
let directory = ""
const path = (...parts: string[]) => join(directory, ...parts)
const write = (file: string, content: string | Buffer) => {
	mkdirSync(dirname(path(file)), { recursive: true })
	writeFileSync(path(file), content)
}
const verify = (...words: string[]): Promise<Ran> =>
	run(process.execPath, [join(repository, "bin/comfyume.js"), "verify-models", ...words], {
		workingDirectory: directory,
		allowedExitCodes: "any",
	})
const shipped = () => readFileSync(join(repository, "manifests/models.yaml"), "utf8")
const workflows = ["--workflows", "workflows", "--manifest", "models.yaml"]
const linesOf = ({ stdout }: Ran) =>
	stdout
		.split("\n")
		.filter(Boolean)
		.map((line) => JSON.parse(line))

beforeEach(() => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-workflows-"))
	for (const [name, value] of Object.entries(documentedWorkflows()))
		write(`workflows/${name}`, JSON.stringify(value, undefined, 2))
	write("models.yaml", shipped())
})
afterEach(() => rmSync(directory, { recursive: true }))

describe("without any models at hand", () => {
	test("the shipped manifest provides the documented workflows", async () => {
		const words = [workflows, ["--workflows", "workflows"]]
		for (const { exitCode, stdout, stderr } of await Promise.all(words.map((one) => verify(...one)))) {
			expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "all 5 workflows have their models\n" })
			expect(stdout).toContain("ok flux2_klein_9b_text_to_image.json: needs 4 models\n")
		}
	})

	test("a manifest without one of them ends with 3 and names workflow, model, node and source", async () => {
		const manifest: { models: { path: string }[] } = parse(shipped())
		const gone = "latent_upscale_models/ltx-2-spatial-upscaler-x2-1.0.safetensors"
		write(
			"models.yaml",
			stringify({ ...manifest, models: manifest.models.filter((one) => one.path !== gone) }),
		)
		const { exitCode, stdout, stderr } = await verify(...workflows)
		expect(exitCode).toBe(3)
		expect(stderr).toBe(
			"2 of 5 workflows can't run: ltx2_text_to_video.json, ltx2_text_to_video_distilled.json\n",
		)
		expect(stdout).toMatch(
			/incomplete ltx2_text_to_video\.json: lacks 1 of 5 models\n {2}latent_upscale_models\/\S+: nothing provides it\n {4}for the node \d+:\d+ LatentUpscaleModelLoader\n {4}get it from https:\/\/huggingface\.co\/Lightricks\/LTX-2\/\S+\.safetensors\n/,
		)
		const lines = linesOf(await verify(...workflows, "--json"))
		expect(lines.map(({ event, path: name, right }) => `${event} ${name} ${right}`)).toEqual([
			"workflow example_workflow.json true",
			"workflow flux2_klein_4b_text_to_image.json true",
			"workflow flux2_klein_9b_text_to_image.json true",
			"workflow ltx2_text_to_video.json false",
			"workflow ltx2_text_to_video_distilled.json false",
			"end undefined undefined",
		])
		const missing = lines[3].models.filter(({ because }: { because?: string }) => because !== undefined)
		expect(missing).toEqual([
			{
				name: "ltx-2-spatial-upscaler-x2-1.0.safetensors",
				directory: "latent_upscale_models",
				optional: false,
				nodes: [{ type: "LatentUpscaleModelLoader", id: expect.stringMatching(/^\d+:\d+$/) }],
				because: "nothing provides it",
				url: "https://huggingface.co/Lightricks/LTX-2/resolve/main/ltx-2-spatial-upscaler-x2-1.0.safetensors",
			},
		])
	})

	test("a model in another directory is named, a gated one is called so", async () => {
		write(
			"models.yaml",
			shipped().replace("- path: diffusion_models/flux-2-klein-9b", "- path: checkpoints/flux-2-klein-9b"),
		)
		const { exitCode, stdout } = await verify(...workflows)
		expect(exitCode).toBe(3)
		expect(stdout).toContain("checkpoints/flux-2-klein-9b-fp8.safetensors has its name, and isn't found")
		expect(stdout).toContain(
			"get it from https://huggingface.co/black-forest-labs/FLUX.2-klein-9b-fp8 (gated",
		)
	})

	test("what can't be read fails, what is no workflow is noted, and links are followed", async () => {
		rmSync(path("workflows"), { recursive: true })
		write("elsewhere/fine.json", JSON.stringify(workflow([])))
		write("workflows/settings.json", "{}")
		write("workflows/readme.md", "{")
		symlinkSync("../elsewhere", path("workflows/link"))
		expect(await verify(...workflows)).toMatchObject({
			exitCode: 0,
			stdout: expect.stringMatching(/ok +link\/fine\.json: needs 0 models/),
			stderr: expect.stringContaining("note: settings.json: it is JSON, and no workflow"),
		})
		write("workflows/cut.json", '{"nodes":[')
		symlinkSync("nowhere", path("workflows/broken.json"))
		await run("mkfifo", [path("workflows/pipe.json")])
		write("workflows/huge.json", "{}")
		truncateSync(path("workflows/huge.json"), 5_000_000_000)
		const { exitCode, stdout } = await verify(...workflows)
		expect(exitCode).toBe(3)
		expect(stdout).toMatch(/broken +cut\.json: it is not JSON/)
		expect(stdout).toMatch(/broken +huge\.json: it is larger than 64 MiB/)
		expect(stdout).toMatch(/broken +pipe\.json: it is no file/)
		expect(stdout).toMatch(/broken +broken\.json: it can't be read: it is a link to nowhere/)
	})

	test("a directory that holds no workflow is no success, and none at all is a wrong call", async () => {
		mkdirSync(path("empty"))
		expect(await verify("--workflows", "empty")).toMatchObject({
			exitCode: 3,
			stderr: expect.stringContaining("there is no workflow below"),
		})
		expect(await verify("--workflows", "nowhere")).toMatchObject({
			exitCode: 2,
			stderr: expect.stringContaining("there is no directory of workflows"),
		})
		// Then the models of an environment are meant, and there is no configuration here.
		expect(await verify()).toMatchObject({ exitCode: 2, stderr: expect.stringContaining("next: ") })
	})
})

describe("with models on a disk", () => {
	const model = "models/vae/a.safetensors"
	beforeEach(() => {
		rmSync(path("workflows"), { recursive: true })
		write(model, makeModel(5000))
		write("workflows/needs.json", JSON.stringify(workflow([node("VAELoader", ["a.safetensors"])])))
		write("models.yaml", "version: 1\nmodels:\n  - {path: vae/a.safetensors, optional: true}\n")
	})
	const withModels = (...words: string[]) =>
		verify("--models", "models", "--workflows", "workflows", ...words)

	test("a workflow runs when its model is right there, with and without a manifest", async () => {
		expect(await withModels("--manifest", "models.yaml")).toMatchObject({ exitCode: 0 })
		expect(await withModels()).toMatchObject({ exitCode: 0 })
	})

	test("a damaged one, a missing one and one in no manifest make it fail, and say why", async () => {
		truncateSync(path(model), 3000)
		expect((await withModels()).stdout).toMatch(
			/incomplete +needs\.json: lacks 1 of 1 model\n +vae\/a\.safetensors: truncated/,
		)
		rmSync(path(model))
		write("models/vae/b.safetensors", makeModel(5000))
		const missing = await withModels("--manifest", "models.yaml", "--json")
		expect(missing.exitCode).toBe(3)
		const lines = linesOf(missing)
		expect(lines.map(({ event, path: name, right }) => `${event} ${name} ${right}`)).toEqual([
			"model vae/a.safetensors true",
			"model vae/b.safetensors true",
			"workflow needs.json false",
			// The manifest's list of workflows has no such one.
			"note undefined undefined",
			"end undefined undefined",
		])
		expect(lines[2].models[0].because).toMatch(/^missing: /)
		write("workflows/needs.json", JSON.stringify(workflow([node("VAELoader", ["b.safetensors"])])))
		expect((await withModels("--manifest", "models.yaml")).stdout).toMatch(/extra: it is not in the manifest/)
	})
})

describe("extra_model_paths.yaml", () => {
	const types = ["checkpoints", "diffusion_models", "loras", "text_encoders", "vae"]
	const yaml = (upscalers: string) =>
		`shared:\n  base_path: /models\n${types.map((type) => `  ${type}: ${type}/\n`).join("")}  ${upscalers}\n`
	const lint = (...words: string[]) => verify("--model-paths", "extra_model_paths.yaml", ...words)

	test("that leads to every model of the manifest is right", async () => {
		write("extra_model_paths.yaml", yaml("latent_upscale_models: latent_upscale_models/"))
		for (const more of [[], ["--models-seen-at", "/models"]])
			expect(await lint(...more)).toMatchObject({ exitCode: 0, stdout: "" })
		const elsewhere = await lint("--models-seen-at", "/mnt/sfs/models/shared")
		expect(elsewhere).toMatchObject({
			exitCode: 3,
			stdout: expect.stringContaining("none of the 8 models in loras"),
		})
	})

	test("that hides the upscaler behind another key ends with 3, with the line", async () => {
		write("extra_model_paths.yaml", yaml("upscale_models: latent_upscale_models/"))
		const { exitCode, stdout, stderr } = await lint()
		expect({ exitCode, stderr }).toEqual({ exitCode: 3, stderr: "extra_model_paths.yaml: 1 error\n" })
		expect(stdout).toMatch(
			/^extra_model_paths\.yaml:8 warning: shared\.upscale_models: it leads to latent_upscale/,
		)
		expect(stdout).toContain("error: ComfyUI doesn't find the model in latent_upscale_models: only")
		expect(linesOf(await lint("--json")).map(({ event, severity }) => `${event} ${severity}`)).toEqual([
			"model-paths warning",
			"model-paths error",
			"end undefined",
		])
	})

	test("that isn't there is a wrong call", async () => {
		expect(await lint()).toMatchObject({
			exitCode: 2,
			stderr: expect.stringContaining("extra_model_paths.yaml"),
		})
	})
})
