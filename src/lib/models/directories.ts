// How models lie on the share: one directory for each kind of model that ComfyUI knows.
import { readdir, stat } from "node:fs/promises"
import { join } from "node:path"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { lockName } from "../storage/keys.ts"

/** ComfyUI's own directories below `models/`; `unet` and `clip` are older names that it still reads. */
export const knownDirectories: readonly string[] = [
	"audio_encoders",
	"checkpoints",
	"classifiers",
	"clip",
	"clip_vision",
	"configs",
	"controlnet",
	"diffusers",
	"diffusion_models",
	"embeddings",
	"gligen",
	"hypernetworks",
	"latent_upscale_models",
	"loras",
	"model_patches",
	"photomaker",
	"style_models",
	"t2i_adapter",
	"text_encoders",
	"unet",
	"upscale_models",
	"vae",
	"vae_approx",
]

export { isKeptAside, isModelName } from "../formats/model-name.ts"

// Directories that ComfyUI searches for one and the same kind of model.
const sameKind: ReadonlyMap<string, string> = new Map([
	["unet", "diffusion_models"],
	["clip", "text_encoders"],
	["t2i_adapter", "controlnet"],
])

/** The kind of model that ComfyUI looks for in a directory: its folder type. */
export const folderTypeOf = (directory: string): string => sameKind.get(directory) ?? directory

/** Whether a model's structure can be read. */
export const isSafetensorsName = (path: string): boolean => /\.(safetensors|sft)$/i.test(path)

// What downloaders leave beside models, and our own lock.
const isSkipped = (path: string) =>
	path.endsWith(".index.json") || path.endsWith(".metadata") || path === lockName

/**
 * Every file below a directory, links followed, in byte order. Broken links and what is no file are listed too. A
 * directory that several links lead to is listed by each; behind a link, those that were listed before are not followed
 * again, or directories that are linked with each other would be walked in every order there is.
 * @returns paths relative to the directory
 * @throws what the system throws
 */
export async function listFiles(directory: string, signal?: AbortSignal): Promise<string[]> {
	const found: string[] = []
	const seen = new Set<string>()
	const visit = async (path: string, above: readonly string[], behindLink: boolean): Promise<void> => {
		signal?.throwIfAborted()
		const entries = await readdir(join(directory, path), { withFileTypes: true })
		// Which of two ways leads to a directory first must not depend on the file system.
		entries.sort((one, other) => byBytes(one.name, other.name))
		for (const entry of entries) {
			const inner = path === "" ? entry.name : `${path}/${entry.name}`
			const facts = entry.isFile() ? undefined : await stat(join(directory, inner)).catch(() => undefined)
			if (facts?.isDirectory()) {
				// A link to a directory that it lies in would never end.
				const identity = `${facts.dev}:${facts.ino}`
				const isLink = entry.isSymbolicLink()
				if (above.includes(identity) || (isLink && behindLink && seen.has(identity))) continue
				seen.add(identity)
				await visit(inner, [...above, identity], behindLink || isLink)
			} else found.push(inner)
		}
	}
	const { dev, ino } = await stat(directory)
	await visit("", [`${dev}:${ino}`], false)
	return found.sort(byBytes)
}

/**
 * Every file below a directory of models, as `listFiles` does it, without `.index.json` and `.metadata` files.
 * @throws {OperatorError} (2) when there is no such directory
 */
export async function listModels(directory: string, signal?: AbortSignal): Promise<string[]> {
	try {
		return (await listFiles(directory, signal)).filter((path) => !isSkipped(path))
	} catch (error) {
		if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR")
			throw new OperatorError(`there is no directory of models at ${directory}`, {
				exitCode: exitCodes.usage,
				hint: "findmnt; name the directory that holds checkpoints, loras, vae, … with --models",
			})
		throw systemError(error, `listing ${directory}`)
	}
}

/** The order of paths everywhere: by their bytes, the same in every locale. */
export const byBytes = (one: string, other: string): number =>
	Buffer.compare(Buffer.from(one), Buffer.from(other))
