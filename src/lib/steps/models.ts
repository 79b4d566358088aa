// Where models are put, and where they come from: shared by their restore, their backup and their healing.
import { stat } from "node:fs/promises"
import { join } from "node:path"
import type { Source } from "../artifacts/source.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import type { Manifest } from "../models/manifest.ts"
import { type ModelSource, storeSource } from "../models/offer.ts"
import { originSource } from "../models/origin.ts"
import { manifestOf, readManifest, readManifestText } from "../models/read-manifest.ts"
import type { SummaryRow } from "../plan/step.ts"
import type { StepContext } from "./context.ts"
import { openShareModels, shareDirectory } from "./open.ts"

/** A directory of models that is to be put right. */
export type ModelsTarget = {
	/** In the operator's words: `share`. */
	name: string
	/** On this machine. */
	directory: string
	/** Asked before every write. @throws {OperatorError} when it isn't there, as a share that isn't mounted. */
	ready: () => Promise<void>
}

/**
 * The share's directory of models.
 * @throws {OperatorError} (2) when the environment has no share
 */
export function shareTarget({ environment, host }: StepContext): ModelsTarget {
	const { share } = environment
	if (share === undefined)
		throw new OperatorError(`${environment.name} has no share`, {
			exitCode: exitCodes.usage,
			hint: "comfyume config check",
		})
	// Not one of the sources: it is where models are put, also when `--from` names others.
	const store = openShareModels(host, share)
	return {
		name: "share",
		directory: join(...shareDirectory(host, share)),
		ready: () => store.probe(),
	}
}

/**
 * The manifest that the operator named, for `files` of a command: a host elsewhere doesn't have it.
 * @throws {OperatorError} (2) when it can't be read or isn't right
 */
export async function namedManifest(
	places: { packageRoot: string; workingDirectory: string },
	named: string | undefined,
): Promise<Record<string, string>> {
	if (named === undefined) return {}
	const { file, text } = await readManifestText(places, named)
	manifestOf(text, file, named)
	return { manifest: text }
}

export const manifestIn = (files: Readonly<Record<string, string>>): { manifestText?: string } =>
	files["manifest"] === undefined ? {} : { manifestText: files["manifest"] }

/** The manifest that was named, or the one that comes with comfyume. */
export async function modelManifest(
	packageRoot: string,
	{ manifest, manifestText }: { manifest?: string; manifestText?: string },
): Promise<Manifest> {
	if (manifestText === undefined)
		return readManifest({ packageRoot, workingDirectory: packageRoot }, undefined)
	return manifestOf(manifestText, manifest ?? "the manifest", manifest)
}

/** Any other directory of this machine. */
export function directoryTarget(directory: string): ModelsTarget {
	return {
		name: directory,
		directory,
		ready: async () => {
			const facts = await stat(directory).catch(() => undefined)
			if (facts?.isDirectory() !== true)
				throw new OperatorError(`there is no directory of models at ${directory}`, {
					exitCode: exitCodes.usage,
					hint: `ls -ld ${directory}`,
				})
		},
	}
}

/** Where models can be had, best first; the publisher only by the operator's choice. */
export async function modelSources(
	{ openModels, publisher, signal }: StepContext,
	target: ModelsTarget,
	{ fromOrigin }: { fromOrigin: boolean },
): Promise<ModelSource[]> {
	const places = (await openModels()).filter(({ name }) => name !== target.name)
	return [
		...places.map(ofPlace),
		...(fromOrigin ? [originSource({ tokenOrigin: publisher.origin, token: publisher.token, signal })] : []),
	]
}

function ofPlace({ name, store, trouble }: Source): ModelSource {
	return trouble === undefined ? storeSource(store) : { name, find: () => Promise.reject(trouble) }
}

export const stepOf = (path: string): string => `models/${path}`

/** The table's rows: what was right all along in one, and each model that there is something to say of. */
export function modelRows(
	paths: readonly string[],
	{
		right,
		said,
		otherwise,
	}: {
		/** The models that there is nothing to say of, and in one line what holds of them all. */
		right: { paths: ReadonlySet<string>; source: string; verified: string }
		said: ReadonlyMap<string, Omit<SummaryRow, "artifact">>
		/** What a model's row says when its step has failed. */
		otherwise: string
	},
): SummaryRow[] {
	const count = right.paths.size
	const together = {
		artifact: "models",
		source: right.source,
		snapshot: "none",
		verified: `${count} ${count === 1 ? "model" : "models"} ${right.verified}`,
		ok: true,
	}
	const rows = paths
		.filter((path) => !right.paths.has(path))
		.map((path) => ({
			artifact: stepOf(path),
			...(said.get(path) ?? { source: "nowhere", snapshot: "none", verified: otherwise, ok: false }),
		}))
	return count === 0 ? rows : [together, ...rows]
}
