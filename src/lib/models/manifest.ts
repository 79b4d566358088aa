// The manifest of models: what must be there, how large, with which digest, and who says so.
import { isMap, isNode, LineCounter, parseDocument, stringify } from "yaml"
import { z } from "zod"
import { blockBytes } from "../storage/transfer.ts"
import { byBytes, knownDirectories } from "./directories.ts"

const digestSchema = z.string().regex(/^[0-9a-f]{64}$/, "must be 64 hexadecimal digits in small letters")

const modelSchema = z
	.strictObject({
		/** `<directory>/<file>`, as below the share's models. */
		path: z.string().superRefine((path, context) => {
			const problem = pathProblem(path)
			if (problem !== undefined) context.addIssue({ code: "custom", message: problem })
		}),
		sizeBytes: z.number().int().positive().max(Number.MAX_SAFE_INTEGER).optional(),
		sha256: digestSchema.optional(),
		/** Whose figures sizeBytes and sha256 are. */
		figures: z.strictObject({ from: z.string().min(1), verified: z.boolean() }).optional(),
		blocks: z
			.strictObject({ sizeBytes: z.literal(blockBytes), sha256: z.array(digestSchema).min(1) })
			.optional(),
		/** Where the file itself can be had. */
		url: z.url({ protocol: /^https$/ }).optional(),
		/** `owner/name` on Hugging Face, where no address of the file is known. */
		repository: z
			.string()
			.regex(/^[\w.-]+\/[\w.-]+$/, "must be owner/name")
			.optional(),
		gated: z.boolean().optional(),
		/** A model that is kept but that nothing needs. */
		optional: z.boolean().optional(),
		workflows: z.array(z.string().min(1)).optional(),
		note: z.string().optional(),
	})
	.superRefine(({ sizeBytes, sha256, figures, blocks }, context) => {
		const add = (path: string, message: string) => context.addIssue({ code: "custom", path: [path], message })
		if (figures === undefined && (sizeBytes !== undefined || sha256 !== undefined))
			add("figures", "is missing: say where sizeBytes and sha256 come from, and whether they were verified")
		if (blocks === undefined) return
		if (sizeBytes === undefined || sha256 === undefined) add("blocks", "needs sizeBytes and sha256 beside it")
		else if (blocks.sha256.length !== Math.ceil(sizeBytes / blockBytes))
			add(
				"blocks",
				`has ${blocks.sha256.length} digests; ${sizeBytes} bytes have ${Math.ceil(sizeBytes / blockBytes)}`,
			)
	})

const manifestSchema = z.strictObject({ version: z.literal(1), models: z.array(modelSchema) })

export type ModelEntry = z.output<typeof modelSchema>
export type Manifest = z.output<typeof manifestSchema>

export type ManifestProblem = { line: number; path: string; message: string }

/** Either the manifest, right in every respect, or all that is wrong with it in the order of its lines. Never throws. */
export function parseManifest(
	text: string,
): { manifest: Manifest; problems?: never } | { problems: readonly ManifestProblem[] } {
	const lines = new LineCounter()
	const document = parseDocument(text, { version: "1.2", lineCounter: lines, prettyErrors: false })
	const lineAt = (offset: number) => Math.max(1, lines.linePos(offset).line)
	const syntax = [...document.errors, ...document.warnings].map(({ message, pos }) => ({
		line: lineAt(pos[0]),
		path: "",
		message,
	}))
	if (syntax.length > 0) return { problems: syntax }
	let value: unknown
	try {
		// A manifest has no use for aliases, and some files of them fill the memory.
		value = document.toJS({ maxAliasCount: 0 })
	} catch {
		const message = "*aliases are not taken here: write the values out"
		return { problems: [{ line: 1, path: "", message }] }
	}
	const parsed = manifestSchema.safeParse(value)
	const lineOf = (path: readonly PropertyKey[]) => {
		for (let length = path.length; length > 0; length--) {
			const parent = length === 1 ? document.contents : document.getIn(path.slice(0, length - 1), true)
			const pair = isMap(parent)
				? parent.items.find(({ key }) => String(key) === String(path[length - 1]))
				: undefined
			const node = pair?.key ?? document.getIn(path.slice(0, length), true)
			if (isNode(node) && node.range) return lineAt(node.range[0])
		}
		return 1
	}
	const found = [
		...(parsed.success ? [] : parsed.error.issues),
		...twins(value).map(({ index, message }) => ({ path: ["models", index, "path"], message })),
	]
	const problems = found
		.map(({ path, message }) => ({ line: lineOf(path), path: path.map(String).join("."), message }))
		.sort((one, other) => one.line - other.line)
	return parsed.success && problems.length === 0 ? { manifest: parsed.data } : { problems }
}

/** Why a path can't stand in a manifest; undefined when it can. */
export function pathProblem(path: string): string | undefined {
	if (/[\p{Cc}\p{Cf}\u2028\u2029\uFFFD]/u.test(path) || !path.isWellFormed())
		return "has invisible characters in it"
	if (path.includes("\\")) return "has a backslash in it: write /"
	if (path.startsWith("/")) return "is absolute: write it from below the directory of models"
	const parts = path.split("/")
	if (parts.some((part) => part === ".." || part === "."))
		return "climbs: it must lie below the directory of models"
	if (parts.some((part) => part.trim() !== part || part === ""))
		return "has an empty part, or space around one"
	if (Buffer.byteLength(path) > 1024) return "is longer than 1024 bytes"
	if (path.normalize("NFC") !== path)
		return "is not in Unicode's composed form (NFC), and has a twin that looks the same"
	if (parts.length < 2)
		return `must be <directory>/<file>, the directory as ComfyUI or a custom node calls it, as in checkpoints/${path}`
	return undefined
}

/** What is worth knowing of a path that may stand in a manifest: custom nodes bring directories of their own. */
export function pathWarning(path: string): string | undefined {
	const [directory = ""] = path.split("/")
	if (knownDirectories.includes(directory)) return undefined
	return `ComfyUI itself doesn't know the directory ${directory}: right for a custom node's models, else a mistake`
}

/** The same for paths that some disks take for one file. */
export const foldPath = (path: string): string => path.normalize("NFKC").toLowerCase().normalize("NFKC")

/** Paths that are one file somewhere: the same, or the same where case or Unicode's form don't count. */
function twins(value: unknown): { index: number; message: string }[] {
	const models = typeof value === "object" && value !== null && "models" in value ? value.models : undefined
	if (!Array.isArray(models)) return []
	const seen = new Map<string, string>()
	return models.flatMap((model: unknown, index) => {
		const path = typeof model === "object" && model !== null && "path" in model ? model.path : undefined
		if (typeof path !== "string") return []
		const folded = foldPath(path)
		const first = seen.get(folded)
		if (first === undefined) {
			seen.set(folded, path)
			return []
		}
		const message =
			first === path
				? `${path} stands twice`
				: `${path} and ${first} differ only in case or in Unicode's form: some disks take them for one file`
		return [{ index, message }]
	})
}

/** What a manifest doesn't know of its models, each a sentence. */
export function unknownsOf({ models }: Manifest): string[] {
	return models.flatMap((model) => {
		const missing = [
			...(model.sizeBytes === undefined ? ["size"] : []),
			...(model.sha256 === undefined ? ["sha256"] : []),
			...(model.url === undefined ? ["url"] : []),
			...(model.gated === undefined ? ["whether it is gated"] : []),
		]
		const from =
			model.figures?.verified === false ? `; its figures are not verified (${model.figures.from})` : ""
		if (missing.length === 0) return from === "" ? [] : [`${model.path}: ${from.slice(2)}`]
		return [`${model.path}: not known: ${missing.join(", ")}${from}`]
	})
}

/** The manifest as YAML, models in byte order of their paths. The same manifest gives the same bytes. */
export function renderManifest({ version, models }: Manifest): string {
	const sorted = [...models].sort((one, other) => byBytes(one.path, other.path))
	// Version 1.1, because readers that still take it so would read some texts as something else.
	return stringify(
		{ version, models: sorted },
		{ version: "1.1", lineWidth: 0, aliasDuplicateObjects: false },
	)
}

/** Lines for `sha256sum -c`, of the models whose digest is known. */
export function renderSha256sums({ models }: Manifest): string {
	return models
		.flatMap(({ path, sha256 }) => (sha256 === undefined ? [] : [`${sha256}  ${path}\n`]))
		.sort((one, other) => byBytes(one.slice(66), other.slice(66)))
		.join("")
}
