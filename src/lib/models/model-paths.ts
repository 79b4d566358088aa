// extra_model_paths.yaml: where ComfyUI looks for models besides its own directories. A key there is a folder type; one
// that ComfyUI doesn't know makes a type that no node asks for, and nothing is said about it.
import { posix } from "node:path"
import { type Document, isMap, isScalar, LineCounter, type Pair, parseDocument } from "yaml"
import { messageOf } from "../errors.ts"
import { closest } from "../formats/closest.ts"
import { folderTypeOf, knownDirectories } from "./directories.ts"

export type PathsProblem = { line: number; severity: "error" | "warning"; message: string }

/** One directory that ComfyUI will look into. */
export type SearchPath = {
	line: number
	section: string
	key: string
	/** Undefined for a key that ComfyUI doesn't know. */
	folderType?: string
	/** As ComfyUI joins it; with `~` and variables in it where they aren't known here. */
	path: string
	isDefault: boolean
}

export type ModelPaths = { searchPaths: readonly SearchPath[]; problems: readonly PathsProblem[] }

export type ModelPathsSurroundings = {
	/** Where the file lies on the machine that ComfyUI runs on: what is relative is so from there. */
	fileDirectory?: string
	/** The variables that ComfyUI is started with. `HOME` is what `~` stands for. */
	variables?: Readonly<Record<string, string>>
}

/** ComfyUI v0.11's folder types, with the two older names that it translates. */
export const folderTypeKeys: readonly string[] = [
	// Searched for controlnet, and no type of its own.
	...knownDirectories.filter((directory) => directory !== "t2i_adapter"),
	"custom_nodes",
]

const longestText = 1024 * 1024
const aliasesHint = "aliases are not taken here: write the values out"

/** Reads the file's text as ComfyUI would, and says what is wrong with it, in the order of its lines. Never throws. */
export function parseModelPaths(text: string, surroundings: ModelPathsSurroundings = {}): ModelPaths {
	const problems: PathsProblem[] = []
	const searchPaths: SearchPath[] = []
	const lines = new LineCounter()
	const failed = (message: string) => ({
		searchPaths,
		problems: [{ line: 1, severity: "error" as const, message }],
	})
	if (text.length > longestText) return failed("it is larger than 1 MiB")
	let document: Document.Parsed
	try {
		// ComfyUI reads it with PyYAML, which knows version 1.1 alone.
		document = parseDocument(text, { version: "1.1", lineCounter: lines, prettyErrors: false })
	} catch (error) {
		return failed(`it can't be read: ${messageOf(error)}`)
	}
	const lineAt = (offset: number | undefined) => Math.max(1, lines.linePos(offset ?? 0).line)
	const add = (severity: PathsProblem["severity"], line: number, message: string) =>
		void problems.push({ line, severity, message })
	for (const { message, pos } of [...document.errors, ...document.warnings])
		add("error", lineAt(pos[0]), message)
	if (problems.length > 0) return { searchPaths, problems }
	if (!isMap(document.contents)) return failed("it has no sections: ComfyUI stops when it reads it")

	const pairsOf = (map: unknown) =>
		(isMap(map) ? map.items : []).map((pair) => ({ ...keyOf(pair), node: pair.value }))
	const keyOf = ({ key }: Pair) => ({
		key: isScalar(key) ? String(key.value) : "",
		line: lineAt(isScalar(key) ? key.range?.[0] : undefined),
	})
	for (const { key: section, line, node } of pairsOf(document.contents)) {
		if (isEmpty(node)) continue
		if (!isMap(node)) {
			add("error", line, `${section}: it has no keys: ComfyUI stops when it reads it (or ${aliasesHint})`)
			continue
		}
		const pairs = pairsOf(node)
		const base = pairs.find(({ key }) => key === "base_path")
		const basePath = base === undefined ? undefined : textOf(base.node)
		if (base !== undefined && basePath === undefined)
			add("error", base.line, `${section}.base_path is no text: ComfyUI stops when it reads it`)
		const isDefault = pairs.find(({ key }) => key === "is_default")
		const isDefaultValue = isScalar(isDefault?.node) ? isDefault.node.value : undefined
		if (isDefault !== undefined && typeof isDefaultValue !== "boolean")
			add("warning", isDefault.line, `${section}.is_default is neither true nor false`)
		for (const { key, line: keyLine, node: value } of pairs) {
			if (key === "base_path" || key === "is_default") continue
			const folderType = folderTypeKeys.includes(key) ? folderTypeOf(key) : undefined
			if (folderType === undefined) add("error", keyLine, unknownKey(section, key))
			const written = textOf(value)
			if (written === undefined) {
				const message = `${section}.${key} is no text, of one directory a line: ComfyUI stops when it reads it`
				add("error", keyLine, `${message} (${aliasesHint})`)
				continue
			}
			for (const directory of written.split("\n").filter((one) => one !== "")) {
				for (const message of doubts(directory, key, folderType))
					add("warning", keyLine, `${section}.${key}: ${message}`)
				searchPaths.push({
					line: keyLine,
					section,
					key,
					...(folderType !== undefined && { folderType }),
					path: resolvePath(directory, basePath, surroundings),
					isDefault: isDefaultValue === true,
				})
			}
		}
	}
	return { searchPaths, problems: problems.sort((one, other) => one.line - other.line) }
}

const isEmpty = (node: unknown) =>
	node === null || node === undefined || (isScalar(node) && node.value === null)
const textOf = (node: unknown) => (isScalar(node) && typeof node.value === "string" ? node.value : undefined)

function unknownKey(section: string, key: string): string {
	// Long keys are no typing mistakes, and comparing them takes long.
	const meant =
		key === "t2i_adapter" ? "controlnet" : key.length > 60 ? undefined : closest(key, folderTypeKeys)
	const says = `${section}.${key.slice(0, 60)}: ComfyUI knows no such folder type, and will find none of its models`
	return meant === undefined ? says : `${says}; did you mean ${meant}?`
}

function doubts(directory: string, key: string, folderType: string | undefined): string[] {
	const last = directory.trim().replace(/\/+$/, "").split("/").at(-1) ?? ""
	const other = knownDirectories.includes(last) ? folderTypeOf(last) : undefined
	return [
		...(folderType !== undefined && other !== undefined && other !== folderType
			? [
					`it leads to ${last}, which is the directory of another folder type: the key would be ${other}, not ${key}`,
				]
			: []),
		...(directory.trim() === directory
			? []
			: [`${JSON.stringify(directory)} has space around it, which counts`]),
		...(/^~|\$/.test(directory) ? ["~ and variables are expanded in base_path alone"] : []),
	]
}

function resolvePath(
	directory: string,
	basePath: string | undefined,
	{ fileDirectory = "", variables = {} }: ModelPathsSurroundings,
): string {
	const known = new Map(Object.entries(variables))
	const base = (basePath ?? "")
		.replace(/^~(?=\/|$)/, (written) => known.get("HOME") ?? written)
		.replaceAll(/\$(?:\{(\w+)\}|(\w+))/g, (written, braced, bare) => known.get(braced ?? bare) ?? written)
	const joined = directory.startsWith("/") ? directory : posix.join(base, directory)
	const isAbsolute = /^[/~$]/.test(joined)
	return posix.normalize(isAbsolute ? joined : posix.join(fileDirectory, joined)).replace(/(?<=.)\/+$/, "")
}

/**
 * The directories of models that ComfyUI finds through no key, and why.
 * @param paths of models, `<directory>/<file>`
 * @param modelsDirectory as ComfyUI's machine or container sees it; without it directories are compared by their names
 */
export function unreachable(
	paths: readonly string[],
	searchPaths: readonly SearchPath[],
	modelsDirectory?: string,
): { directory: string; models: number; because: string }[] {
	const leadsTo = (path: string, directory: string) => {
		if (modelsDirectory === undefined || /^[~$]/.test(path)) return path.split("/").at(-1) === directory
		const wanted = posix.join(modelsDirectory, directory)
		return wanted === path || wanted.startsWith(path === "/" ? path : `${path}/`)
	}
	const groups = Map.groupBy(paths, (path) => path.split("/")[0] ?? "")
	return [...groups].flatMap(([directory, models]) => {
		const leading = searchPaths.filter(({ path }) => leadsTo(path, directory))
		if (leading.some(({ folderType }) => folderType === folderTypeOf(directory))) return []
		const [wrong] = leading
		const because =
			wrong === undefined
				? "no key leads to it"
				: `only ${wrong.section}.${wrong.key} (line ${wrong.line}) leads to it`
		return {
			directory,
			models: models.length,
			because: `${because}: the key would be ${folderTypeOf(directory)}`,
		}
	})
}
