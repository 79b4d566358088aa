// Workflows for tests: nodes in few words, and five files that ask for what the platform's own five ask for.

export type MadeNode = Readonly<Record<string, unknown>>

let lastId = 0

type MadeModel = string | { name: string; directory: string; url: string }

/** A node of the UI format. What `models` names stands in its properties; a text is `directory/name`. */
export function node(
	type: string,
	widgets: readonly unknown[],
	more: MadeNode & { models?: readonly MadeModel[] } = {},
) {
	const { models, ...others } = more
	const inProperties = models?.map((model) => {
		if (typeof model !== "string") return model
		const [directory, name] = model.split("/")
		return { name, directory, url: `https://example.test/${model}` }
	})
	lastId++
	const properties = { "Node name for S&R": type, ...(inProperties && { models: inProperties }) }
	return {
		id: lastId,
		type,
		mode: 0,
		inputs: [],
		outputs: [],
		properties,
		widgets_values: widgets,
		...others,
	}
}

/** A workflow of the UI format. */
export const workflow = (nodes: readonly MadeNode[], subgraphs: readonly MadeNode[] = []) => ({
	id: "00000000-0000-4000-8000-000000000000",
	version: 0.4,
	nodes,
	links: [],
	...(subgraphs.length > 0 && { definitions: { subgraphs } }),
})

export const subgraph = (id: string, nodes: readonly MadeNode[]) => ({
	id,
	name: `named ${id}`,
	version: 1,
	nodes,
})

/** Comfy-Org's repositories have directories, others have the file at their root. */
function declared(directory: string, name: string, repository: string) {
	const below = repository.startsWith("Comfy-Org/") ? `split_files/${directory}/` : ""
	return { name, directory, url: `https://huggingface.co/${repository}/resolve/main/${below}${name}` }
}

/** A loader with one file, as ComfyUI's templates have it: in its widget, and in its properties with an address. */
const loader = (type: string, directory: string, name: string, repository: string) =>
	node(type, [name, "default"], { models: [declared(directory, name, repository)] })

const flux4b = "Comfy-Org/flux2-klein"
const flux9b = "Comfy-Org/flux2-klein-9B"
const fluxVae = () => loader("VAELoader", "vae", "flux2-vae.safetensors", "Comfy-Org/flux2-dev")

function flux4bWorkflow() {
	const unets = ["flux-2-klein-4b.safetensors", "flux-2-klein-base-4b.safetensors"]
	const graphs = unets.map((unet, index) =>
		subgraph(`4b-${index}`, [
			loader("UNETLoader", "diffusion_models", unet, flux4b),
			loader("CLIPLoader", "text_encoders", "qwen_3_4b.safetensors", flux4b),
			fluxVae(),
		]),
	)
	const instances = unets.map((unet, index) =>
		node(`4b-${index}`, ["a cat", unet, "qwen_3_4b.safetensors", "flux2-vae.safetensors"]),
	)
	return workflow([...instances, node("MarkdownNote", ["models/vae/other.safetensors"])], graphs)
}

/** Its two largest models stand in widgets alone. */
const flux9bWorkflow = () =>
	workflow(
		[node("9b", ["a cat", "flux-2-klein-9b-fp8.safetensors"]), node("SaveImage", ["9b"])],
		[
			subgraph("9b", [
				node("UNETLoader", ["flux-2-klein-9b-fp8.safetensors", "default"]),
				node("UNETLoader", ["flux-2-klein-base-9b-fp8.safetensors", "default"]),
				loader("CLIPLoader", "text_encoders", "qwen_3_8b_fp8mixed.safetensors", flux9b),
				fluxVae(),
			]),
		],
	)

function ltxWorkflow(checkpoint: string, loras: readonly string[]) {
	const lora = (name: string) => {
		const camera = name.includes("camera") ? "LTX-2-19b-LoRA-Camera-Control-Dolly-Left" : "LTX-2"
		return loader("LoraLoaderModelOnly", "loras", name, `Lightricks/${camera}`)
	}
	const gemma = "gemma_3_12B_it_fp4_mixed.safetensors"
	const encoder = node("LTXAVTextEncoderLoader", [gemma, checkpoint, "default"], {
		models: [
			declared("text_encoders", gemma, "Comfy-Org/ltx-2"),
			declared("checkpoints", checkpoint, "Lightricks/LTX-2"),
		],
	})
	const upscaler = "ltx-2-spatial-upscaler-x2-1.0.safetensors"
	return workflow(
		[node("ltx", ["a cat", checkpoint]), encoder],
		[
			subgraph("ltx", [
				loader("CheckpointLoaderSimple", "checkpoints", checkpoint, "Lightricks/LTX-2"),
				node("LTXVAudioVAELoader", [checkpoint]),
				loader("LatentUpscaleModelLoader", "latent_upscale_models", upscaler, "Lightricks/LTX-2"),
				...loras.map(lora),
			]),
		],
	)
}

const dolly = "ltx-2-19b-lora-camera-control-dolly-left.safetensors"

/** By the names of their files. */
export const documentedWorkflows = (): Readonly<Record<string, unknown>> => ({
	"example_workflow.json": workflow([node("SaveImage", ["example"])]),
	"flux2_klein_4b_text_to_image.json": flux4bWorkflow(),
	"flux2_klein_9b_text_to_image.json": flux9bWorkflow(),
	"ltx2_text_to_video.json": ltxWorkflow("ltx-2-19b-dev-fp8.safetensors", [
		"ltx-2-19b-distilled-lora-384.safetensors",
		dolly,
	]),
	"ltx2_text_to_video_distilled.json": ltxWorkflow("ltx-2-19b-distilled.safetensors", [dolly]),
})
