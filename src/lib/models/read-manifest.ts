// The manifest file: the one that is named, or the one that comes with comfyume.
import { join, resolve } from "node:path"
import { exitCodes, OperatorError } from "../errors.ts"
import { quoteForShell } from "../host/command.ts"
import { type Manifest, parseManifest } from "./manifest.ts"
import { readTextFile } from "./text-file.ts"

// A manifest of a thousand models of 25 GB with the digests of all blocks has 110 MB.
const longestBytes = 256 * 1024 * 1024

/** Where the manifest is, and its text. `named` is relative to the working directory. */
export async function readManifestText(
	{ packageRoot, workingDirectory }: { packageRoot: string; workingDirectory: string },
	named: string | undefined,
): Promise<{ file: string; text: string }> {
	const file =
		named === undefined ? join(packageRoot, "manifests/models.yaml") : resolve(workingDirectory, named)
	return { file, text: await readTextFile(file, "the manifest", longestBytes) }
}

/**
 * The manifest, right in every respect.
 * @throws {OperatorError} (2) when it can't be read or isn't right
 */
export async function readManifest(
	places: { packageRoot: string; workingDirectory: string },
	named: string | undefined,
): Promise<Manifest> {
	const { file, text } = await readManifestText(places, named)
	return manifestOf(text, file, named)
}

/**
 * The same from its text.
 * @param named as the operator named the file, for the command to type next
 * @throws {OperatorError} (2) when it isn't right
 */
export function manifestOf(text: string, file: string, named?: string): Manifest {
	const parsed = parseManifest(text)
	if (parsed.problems === undefined) return parsed.manifest
	const [first] = parsed.problems
	const others = parsed.problems.length > 1 ? ` (and ${parsed.problems.length - 1} more)` : ""
	throw new OperatorError(`${file}:${first?.line} ${first?.path} ${first?.message}${others}`, {
		exitCode: exitCodes.usage,
		hint: `comfyume manifest check${named === undefined ? "" : ` --manifest ${quoteForShell(named)}`}`,
	})
}
