// Which of ComfyUI's own nodes load which kind of model, and by which of their widgets.

/** A widget that names a model: its input's name in the API format, its place among a node's widgets in the UI format. */
export type LoaderWidget = { input: string; index: number; directory: string }

const one = (input: string, directory: string, index = 0): LoaderWidget[] => [{ input, index, directory }]
const encoders = (count: number): LoaderWidget[] =>
	Array.from({ length: count }, (_, index) => ({
		input: `clip_name${index + 1}`,
		index,
		directory: "text_encoders",
	}))

/** By node type. A map, because node types come from foreign files: `constructor` is none. */
export const loaders: ReadonlyMap<string, readonly LoaderWidget[]> = new Map([
	["AudioEncoderLoader", one("audio_encoder_name", "audio_encoders")],
	// Its first widget is a configuration that comes with ComfyUI.
	["CheckpointLoader", one("ckpt_name", "checkpoints", 1)],
	["CheckpointLoaderSimple", one("ckpt_name", "checkpoints")],
	["CLIPLoader", one("clip_name", "text_encoders")],
	["CLIPVisionLoader", one("clip_name", "clip_vision")],
	["ControlNetLoader", one("control_net_name", "controlnet")],
	["CreateHookLora", one("lora_name", "loras")],
	["CreateHookLoraModelOnly", one("lora_name", "loras")],
	["CreateHookModelAsLora", one("ckpt_name", "checkpoints")],
	["CreateHookModelAsLoraModelOnly", one("ckpt_name", "checkpoints")],
	["DiffControlNetLoader", one("control_net_name", "controlnet")],
	["DualCLIPLoader", encoders(2)],
	["GLIGENLoader", one("gligen_name", "gligen")],
	["HypernetworkLoader", one("hypernetwork_name", "hypernetworks")],
	["ImageOnlyCheckpointLoader", one("ckpt_name", "checkpoints")],
	["LatentUpscaleModelLoader", one("model_name", "latent_upscale_models")],
	["LoraLoader", one("lora_name", "loras")],
	["LoraLoaderModelOnly", one("lora_name", "loras")],
	[
		"LTXAVTextEncoderLoader",
		[...one("text_encoder", "text_encoders"), ...one("ckpt_name", "checkpoints", 1)],
	],
	["LTXVAudioVAELoader", one("ckpt_name", "checkpoints")],
	["ModelPatchLoader", one("name", "model_patches")],
	["PhotoMakerLoader", one("photomaker_model_name", "photomaker")],
	["QuadrupleCLIPLoader", encoders(4)],
	["StyleModelLoader", one("style_model_name", "style_models")],
	["TripleCLIPLoader", encoders(3)],
	["unCLIPCheckpointLoader", one("ckpt_name", "checkpoints")],
	["UNETLoader", one("unet_name", "diffusion_models")],
	["UpscaleModelLoader", one("model_name", "upscale_models")],
	["VAELoader", one("vae_name", "vae")],
])

/** Nodes that no model is loaded by, whatever their texts say: notes, and what hands a widget's value on. */
export const silentNodes: ReadonlySet<string> = new Set(["MarkdownNote", "Note", "PrimitiveNode", "Reroute"])

const imageAutoencoders: ReadonlySet<string> = new Set(["taesd", "taesdxl", "taesd3", "taef1"])
const videoAutoencoders: ReadonlySet<string> = new Set([
	"taehv",
	"lighttaew2_2",
	"lighttaew2_1",
	"lighttaehy1_5",
	"taeltx_2",
])

/** What a widget's text stands for. */
export type Selected = {
	name: string
	directory: string
	/** The name has no ending: ComfyUI takes the first file that begins with it and a dot. */
	anyEnding?: true
}

/** The files that a loader's widget selects; none for `None` and what comes with ComfyUI. */
export function selectedBy({ directory }: LoaderWidget, value: string): Selected[] {
	const name = value.trim()
	if (name === "" || name.toLowerCase() === "none") return []
	if (directory !== "vae") return [{ name, directory }]
	if (name === "pixel_space") return []
	// These two are no files: they stand for pairs of them, or lie in another directory than VAEs do.
	if (imageAutoencoders.has(name))
		return ["encoder", "decoder"].map((part) => ({
			name: `${name}_${part}`,
			directory: "vae_approx",
			anyEnding: true as const,
		}))
	if (videoAutoencoders.has(name.replace(/\.[^.]*$/, ""))) return [{ name, directory: "vae_approx" }]
	return [{ name, directory }]
}
