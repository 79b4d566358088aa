import { readFileSync } from "node:fs"
import { describe, expect, test } from "vitest"
import { parseWorkflow } from "../../../src/lib/formats/workflow.ts"
import { type ModelEntry, parseManifest } from "../../../src/lib/models/manifest.ts"
import { compareNeeds, listingNotes, type Provider, providersOf } from "../../../src/lib/models/needs.ts"
import { documentedWorkflows, node, workflow } from "../../support/workflow-maker.ts"

const fileOf = (path: string, value: unknown) => ({ path, finding: parseWorkflow(JSON.stringify(value)) })
const compare = (value: unknown, providers: readonly Provider[]) =>
	compareNeeds([fileOf("w.json", value)], providers)[0]
const loads = (type: string, name: string, more = {}) => workflow([node(type, [name], more)])
const shipped = () => {
	const text = readFileSync(new URL("../../../manifests/models.yaml", import.meta.url), "utf8")
	const { manifest } = { manifest: undefined, ...parseManifest(text) }
	return manifest?.models ?? []
}

describe("a reference is provided", () => {
	test.each([
		["UNETLoader", "a.st", "diffusion_models/a.st", true],
		["UNETLoader", "a.st", "unet/a.st", true],
		["CLIPLoader", "a.st", "clip/a.st", true],
		["ControlNetLoader", "a.st", "t2i_adapter/a.st", true],
		["VAELoader", "sub\\a.st", "vae/sub/a.st", true],
		["Odd", "a.pt", "loras/a.pt", true],
		["UNETLoader", "a.st", "checkpoints/a.st", false],
		["VAELoader", "a.st", "vae/sub/a.st", false],
		["VAELoader", "a.st", "vae/A.st", false],
		["Odd", "a.pt", "loras/sub/a.pt", false],
		["VAELoader", "../vae/a.st", "vae/a.st", false],
	])("%s %s by %s: %s", (type, name, path, runs) => {
		expect(compare(loads(type, name), [{ path }])).toMatchObject({
			runs,
			needs: [runs ? { providedBy: path } : { because: expect.stringContaining(`${path} has its name`) }],
		})
	})

	test("only by both halves, for an autoencoder that is two files", () => {
		const providers = [
			{ path: "vae_approx/taesd_encoder.safetensors" },
			{ path: "vae_approx/taesdxl_decoder.pth" },
			{ path: "vae_approx/taesd_decoder2.pth" },
		]
		expect(compare(loads("VAELoader", "taesd"), providers)?.needs).toMatchObject([
			{ name: "taesd_encoder.*", providedBy: "vae_approx/taesd_encoder.safetensors" },
			{ name: "taesd_decoder.*", because: "nothing provides it" },
		])
	})

	test("by the one of two that is right", () => {
		const providers = [{ path: "clip/a.st", wrong: "missing" }, { path: "text_encoders/a.st" }]
		expect(compare(loads("CLIPLoader", "a.st"), providers)?.runs).toBe(true)
		expect(compare(loads("CLIPLoader", "a.st"), providers.slice(0, 1))?.needs).toMatchObject([
			{ providedBy: "clip/a.st", because: "missing" },
		])
	})
})

test("an optional node never makes a workflow fail, and one that isn't optional beside it does", () => {
	const off = node("VAELoader", ["a.st"], { mode: 4 })
	expect(compare(workflow([off]), [])).toMatchObject({ runs: true, needs: [{ optional: true }] })
	expect(compare(workflow([off, node("VAELoader", ["a.st"])]), [])).toMatchObject({
		runs: false,
		needs: [{ optional: false, nodes: [{ type: "VAELoader" }, { type: "VAELoader" }] }],
	})
})

test("where to get it is what the workflow says, else what the manifest does", () => {
	const wrong = "missing: it is not there"
	const entry = {
		path: "vae/a.st",
		url: "https://example.test/manifest",
		repository: "o/n",
		gated: true,
		wrong,
	}
	expect(compare(loads("VAELoader", "a.st", { models: ["vae/a.st"] }), [entry])?.needs).toMatchObject([
		{ url: "https://example.test/vae/a.st", gated: true, repository: "o/n" },
	])
	expect(compare(loads("VAELoader", "a.st"), [entry])?.needs).toMatchObject([{ url: entry.url }])
})

test("what lies on the disk counts as it was judged", () => {
	const verdict = { tier: "exists" as const, because: "x", needed: true, right: false }
	const models: ModelEntry[] = [{ path: "vae/a.st" }, { path: "vae/b.st" }]
	const verdicts = [
		{ ...verdict, path: "vae/a.st", status: "truncated" as const },
		{ ...verdict, path: "vae/b.st", status: "ok" as const },
		{ ...verdict, path: "vae/c.st", status: "extra" as const },
	]
	const wrongs = providersOf(models, verdicts).map(({ path, wrong }) => `${path} ${wrong}`)
	expect(wrongs).toEqual(["vae/a.st truncated: x", "vae/b.st undefined", "vae/c.st extra: x"])
	expect(providersOf(models, undefined)).toEqual(models)
})

test("the manifest that comes with comfyume provides the documented workflows, and lists them as they are", () => {
	const files = Object.entries(documentedWorkflows()).map(([path, value]) => fileOf(path, value))
	const all = compareNeeds(files, shipped())
	expect(all.filter(({ runs }) => runs)).toHaveLength(5)
	expect(listingNotes(all, shipped())).toEqual([])
	// Each model that a workflow is listed for is needed by it.
	for (const gone of shipped().filter(({ workflows }) => workflows !== undefined)) {
		const without = compareNeeds(
			files,
			shipped().filter((model) => model.path !== gone.path),
		)
		const failed = without.filter(({ runs }) => !runs).map(({ workflow: name }) => name)
		expect(failed.sort(), gone.path).toEqual(gone.workflows?.toSorted())
	}
})

test("lists of workflows that are wrong are noted", () => {
	const models = [{ path: "vae/a.st", workflows: ["other.json", "absent.json"] }]
	const files = [fileOf("sub/w.json", loads("VAELoader", "a.st")), fileOf("sub/other.json", workflow([]))]
	expect(listingNotes(compareNeeds(files, models), models)).toEqual([
		"vae/a.st: the manifest says that sub/other.json uses it, and it doesn't",
		"vae/a.st: sub/w.json uses it, and the manifest doesn't say so",
	])
})
