// Which files are delivered, by their endings, and under which of ComfyUI's keys a result names them.
import type { MediaKind } from "../../lib/formats/media.ts"

/** ComfyUI's keys of a node's outputs. */
export type OutputKey = "images" | "gifs" | "audio" | "3d" | "latents" | "files"

type Ending = {
	key: OutputKey
	/** What the content must be; without it the structure isn't known here, and quiet is all there is. */
	content?: readonly MediaKind[]
	isFilm?: boolean
}

const picture: Ending = { key: "images", content: ["png", "jpeg", "gif", "webp"] }
const film: Ending = { key: "images", content: ["mp4", "webm", "avi"], isFilm: true }
const endings: ReadonlyMap<string, Ending> = new Map<string, Ending>([
	...["png", "jpg", "jpeg", "webp", "gif"].map((ending): [string, Ending] => [ending, picture]),
	...["mp4", "m4v", "mov", "webm", "mkv", "avi"].map((ending): [string, Ending] => [ending, film]),
	// SVG and HTML are left out on purpose: a browser runs what is in them, as the user who looks.
	...["exr", "tif", "tiff", "avif"].map((ending): [string, Ending] => [ending, { key: "images" }]),
	["wav", { key: "audio", content: ["wav"] }],
	["flac", { key: "audio", content: ["flac"] }],
	["m4a", { key: "audio", content: ["mp4"] }],
	...["mp3", "opus", "ogg"].map((ending): [string, Ending] => [ending, { key: "audio" }]),
	["glb", { key: "3d", content: ["glb"] }],
	...["gltf", "obj", "stl", "ply", "fbx"].map((ending): [string, Ending] => [ending, { key: "3d" }]),
	["latent", { key: "latents", content: ["safetensors"] }],
	["safetensors", { key: "files", content: ["safetensors"] }],
	...["txt", "json", "csv", "srt"].map((ending): [string, Ending] => [ending, { key: "files" }]),
])

/** Every ending that is delivered; whoever runs the service may allow fewer. */
export const knownEndings: readonly string[] = [...endings.keys()]

export type Sorted =
	| { state: "fits"; key: OutputKey; isFilm: boolean }
	| { state: "refused"; because: string }

/** Sorts a file by its ending, and sees whether its content is what the ending says. */
export function sortFile(
	{ name, kind, classType }: { name: string; kind: MediaKind; classType: string },
	allowed: ReadonlySet<string>,
): Sorted {
	const ending = /\.([A-Za-z0-9]+)$/.exec(name)?.[1]?.toLowerCase() ?? ""
	const found = allowed.has(ending) ? endings.get(ending) : undefined
	if (found === undefined)
		return { state: "refused", because: `files that end in ${JSON.stringify(ending)} are not delivered` }
	if (found.content !== undefined && !found.content.includes(kind))
		return { state: "refused", because: `it is named .${ending}, and its content is ${kind}` }
	// Video Helper Suite names everything it makes, pictures too, under `gifs`.
	const key = classType.startsWith("VHS_") && found.key === "images" ? "gifs" : found.key
	return { state: "fits", key, isFilm: found.isFilm === true }
}
