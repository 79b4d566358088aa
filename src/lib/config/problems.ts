// Everything that is wrong with a comfyume.yaml, at once: each with its path, its line and what to write instead.
//
// The file is read as YAML 1.2: `yes` and `22:22` are texts there, not a truth value and not a number, and the schema
// then says what was expected. (comfyume writes YAML as 1.1, for readers that still take it so.)
import {
	type Document,
	isAlias,
	isMap,
	isScalar,
	isSeq,
	LineCounter,
	type Node,
	parseDocument,
	visit,
} from "yaml"
import type { z } from "zod"
import { messageOf } from "../errors.ts"
import { closest } from "../formats/closest.ts"
import { configurationSchema, fixMark, type WrittenConfiguration } from "./environment.ts"
import { ruleProblems } from "./rules.ts"

export type Problem = {
	/** As in `environments.production.hosts[0].port`; empty for the file as a whole. */
	path: string
	line: number
	column: number
	message: string
	fix: string
}

export type Path = readonly (string | number)[]
export type PlacedProblem = { path: Path; message: string; fix: string }

/** Either the whole of the file, right in every respect, or all that is wrong with it in the order of its lines. */
export function readConfiguration(
	source: string,
): { written: WrittenConfiguration; problems?: never } | { problems: readonly Problem[] } {
	const lines = new LineCounter()
	const document = parseDocument(source, {
		version: "1.2",
		merge: true,
		lineCounter: lines,
		prettyErrors: false,
	})
	const at = (offset: number) => {
		const { line, col } = lines.linePos(offset)
		return { line: Math.max(1, line), column: Math.max(1, col) }
	}

	const syntax = [...document.errors, ...document.warnings].map(
		({ code, message, pos }): Problem => ({
			path: "",
			...at(pos[0]),
			message: syntaxMessage(code, message, source.slice(pos[0])),
			fix: syntaxFixes[code] ?? "correct the YAML at this place",
		}),
	)
	// With any other mistake of syntax the shape means nothing, and what the schema said about it would mislead.
	if (document.errors.some(({ code }) => code !== "DUPLICATE_KEY")) return { problems: syntax }

	const dangling = danglingAliases(document)
	if (dangling.length > 0)
		return {
			problems: dangling.map(({ source: anchor, offset }) => ({
				path: "",
				...at(offset),
				message: `*${anchor} stands for nothing`,
				fix: `define &${anchor} above this line`,
			})),
		}
	let value: unknown
	try {
		value = document.toJS()
	} catch (error) {
		// What is left: so many aliases of aliases that writing them out would fill the memory.
		const fix = "write the values out instead of *aliases"
		return { problems: [...syntax, { path: "", line: 1, column: 1, message: messageOf(error), fix }] }
	}
	if (value === null || value === undefined) {
		const fix = "copy templates/comfyume.yaml and change it"
		return { problems: [{ path: "", line: 1, column: 1, message: "the file is empty", fix }] }
	}

	const parsed = configurationSchema.safeParse(value, { reportInput: true })
	const placed = [
		...(parsed.success ? [] : parsed.error.issues.flatMap(describeIssue)),
		...ruleProblems(value),
	]
	const problems = [
		...syntax,
		...placed.map(({ path, message, fix }) => ({
			path: pathText(path),
			...at(offsetOf(document, path)),
			message,
			fix,
		})),
	].sort((one, other) => one.line - other.line || one.column - other.column)
	return problems.length === 0 && parsed.success ? { written: parsed.data } : { problems }
}

/** `environments.production.hosts[0].port` */
function pathText(path: Path): string {
	return path.reduce<string>(
		(text, part) => (typeof part === "number" ? `${text}[${part}]` : text === "" ? part : `${text}.${part}`),
		"",
	)
}

const syntaxFixes: Readonly<Record<string, string>> = {
	DUPLICATE_KEY: "keep one of the two",
	TAB_AS_INDENT: "indent with spaces",
	MULTIPLE_DOCS: "keep one document; remove the line ---",
	BAD_INDENT: "indent it as far as its neighbours",
	MISSING_CHAR: "close the quote or bracket",
}

function syntaxMessage(code: string, message: string, from: string): string {
	if (code === "DUPLICATE_KEY") return `the key ${/^[^\s:]*/.exec(from)?.[0]} stands twice in its block`
	if (code === "TAB_AS_INDENT") return "a tab indents this line"
	return message.replace(/\s+at line \d+, column \d+:[\s\S]*$/, "").trim()
}

function danglingAliases(document: Document): { source: string; offset: number }[] {
	const found: { source: string; offset: number }[] = []
	visit(document, {
		Alias(_, alias) {
			if (alias.resolve(document) === undefined)
				found.push({ source: alias.source, offset: alias.range?.[0] ?? 0 })
		},
	})
	return found
}

function describeIssue(issue: z.core.$ZodIssue): PlacedProblem[] {
	const path = issue.path.map((part) => (typeof part === "symbol" ? String(part) : part))
	switch (issue.code) {
		case "unrecognized_keys":
			return issue.keys.map((key) => ({
				path: [...path, key],
				message: "is not a known key",
				fix: unknownKeyFix(path, key),
			}))
		case "invalid_key": {
			const [message, fix] = splitFix(issue.issues[0]?.message ?? issue.message)
			return [{ path, message, fix }]
		}
		case "invalid_value": {
			const values = issue.values.map(String)
			const written = typeof issue.input === "string" ? closest(issue.input, values) : undefined
			if (issue.input === undefined)
				return [{ path, message: "is missing", fix: `write one of: ${values.join(", ")}` }]
			return [
				{
					path,
					message: `must be ${values.join(" or ")}, not ${shown(issue.input)}`,
					fix: written === undefined ? `write ${values.join(" or ")}` : `did you mean ${written}?`,
				},
			]
		}
		case "too_big":
		case "too_small":
			if (typeof issue.input !== "number") return [custom(issue, path)]
			return [{ path, message: `is ${issue.input}`, fix: limitFix(issue) }]
		case "invalid_type":
			return [{ path, ...typeProblem(issue.expected, issue.input, path) }]
		default:
			return [custom(issue, path)]
	}
}

function custom(issue: z.core.$ZodIssue, path: Path): PlacedProblem {
	const [message, fix] = splitFix(issue.message)
	return {
		path,
		message: typeof issue.input === "string" ? `${shown(issue.input)} ${message}` : message,
		fix,
	}
}

const limitFix = (issue: z.core.$ZodIssueTooBig | z.core.$ZodIssueTooSmall) =>
	issue.code === "too_big"
		? `write a number up to ${issue.maximum}`
		: `write a number ${issue.inclusive ? "from" : "above"} ${issue.minimum}`

const kinds: Readonly<Record<string, string>> = {
	string: "a text",
	number: "a number",
	int: "a whole number",
	boolean: "true or false",
	object: "a block of keys",
	record: "a block of keys",
	array: "a list",
}

function typeProblem(expected: string, input: unknown, path: Path): { message: string; fix: string } {
	const kind = kinds[expected] ?? expected
	const key = path.at(-1)
	if (input === undefined) return { message: "is missing", fix: `add \`${key}:\` (${kind})` }
	if (input === null)
		return { message: "is empty", fix: `write ${kind} behind \`${key}:\`, or remove the key` }
	const message = `must be ${kind}, not ${shown(input)}`
	if (expected === "boolean")
		return { message, fix: /^(yes|on|y)$/i.test(String(input)) ? "write true" : "write true or false" }
	if (expected === "string" && typeof input !== "object")
		return {
			message,
			fix: "put it in quotes, exactly as it is meant: YAML took it for something else than text",
		}
	if (expected === "array") return { message, fix: "write a list: one line with - for each" }
	return { message, fix: `write ${kind}` }
}

function shown(input: unknown): string {
	if (Array.isArray(input)) return "a list"
	if (typeof input === "object" && input !== null) return "a block of keys"
	return typeof input === "string"
		? `"${input.length > 60 ? `${input.slice(0, 57)}...` : input}"`
		: String(input)
}

function splitFix(message: string): [message: string, fix: string] {
	const [says = message, fix] = message.split(fixMark)
	return [says, fix ?? "see templates/comfyume.yaml"]
}

// The keys that the schema knows at a place, found by asking the schema itself.
function unknownKeyFix(path: Path, key: string): string {
	let schema: unknown = configurationSchema
	for (const part of path) schema = inner(schema, part)
	const known = keysOf(schema)
	const meant = closest(key, known)
	return meant === undefined ? `remove it; known here: ${known.join(", ")}` : `did you mean ${meant}?`
}

type Unwrapped = { shape?: Record<string, unknown>; element?: unknown; valueType?: unknown }

function unwrap(schema: unknown): Unwrapped {
	let current = schema as { unwrap?: () => unknown; element?: unknown } & Unwrapped
	while (typeof current.unwrap === "function" && current.element === undefined)
		current = current.unwrap() as typeof current
	return current
}

function inner(schema: unknown, part: string | number): unknown {
	const { shape, element, valueType } = unwrap(schema)
	return typeof part === "number" ? element : (shape?.[part] ?? valueType)
}

const keysOf = (schema: unknown): string[] => Object.keys(unwrap(schema).shape ?? {})

/** Where the value at a path is written; for something missing, the block that should hold it. */
function offsetOf(document: Document, path: Path): number {
	let node: unknown = document.contents
	let offset = 0
	for (const part of path) {
		node = isAlias(node) ? node.resolve(document) : node
		const found = childOf(document, node, part)
		if (found === undefined) break
		offset = found.offset
		node = found.node
	}
	return offset
}

function childOf(
	document: Document,
	node: unknown,
	part: string | number,
): { node: unknown; offset: number } | undefined {
	if (isSeq(node) && typeof part === "number") {
		const item = node.items[part] as Node | undefined
		return item === undefined ? undefined : { node: item, offset: item.range?.[0] ?? 0 }
	}
	if (!isMap(node)) return undefined
	for (const { key, value } of node.items) {
		if (isScalar(key) && String(key.value) === String(part))
			return { node: value, offset: key.range?.[0] ?? 0 }
	}
	for (const { key, value } of node.items) {
		if (!isScalar(key) || (key.value !== "<<" && typeof key.value !== "symbol")) continue
		const merged = isAlias(value) ? value.resolve(document) : value
		const found = childOf(document, merged, part)
		if (found !== undefined) return found
	}
	return undefined
}
