// Workflows that nobody means well with, and texts that are none.
import fc from "fast-check"
import { expect, test } from "vitest"
import { parseWorkflow } from "../../../src/lib/formats/workflow.ts"
import { assertOften } from "../../support/properties.ts"
import { documentedWorkflows, type MadeNode, node, subgraph, workflow } from "../../support/workflow-maker.ts"

const refusal = (text: string) => {
	const finding = parseWorkflow(text)
	return finding.state === "workflow" ? "a workflow" : `${finding.state}: ${finding.because}`
}

const chain = (length: number, last: MadeNode[]) =>
	Array.from({ length }, (_, index) =>
		subgraph(`g${index}`, index === length - 1 ? last : [node(`g${index + 1}`, [])]),
	)
const nested = (depth: number): MadeNode =>
	depth === 0
		? subgraph("d0", [])
		: { ...subgraph(`d${depth}`, []), definitions: { subgraphs: [nested(depth - 1)] } }

test.each([
	["", "broken: it is empty"],
	["{", "broken: it is not JSON"],
	[" ".repeat(64 * 1024 * 1024 + 1), "broken: it is larger than 64 MiB"],
	["<html>", "broken: it is not JSON"],
	["[]", "none: it is JSON, and no workflow"],
	["7", "none: it is JSON, and no workflow"],
	["{}", "none: it is JSON, and no workflow"],
	['{"nodes":{}}', "none: it is JSON, and no workflow"],
	['{"nodes":[null,7,{},[],{"type":4}]}', "a workflow"],
	['{"__proto__":{"nodes":[]}}', "none: it is JSON, and no workflow"],
	['{"__proto__":{"class_type":"VAELoader","inputs":{"__proto__":{"vae_name":"a"}}}}', "a workflow"],
	['{"nodes":[{"type":"constructor","widgets_values":{"__proto__":7}},{"type":"__proto__"}]}', "a workflow"],
	["[".repeat(1_000_000), "broken: it is not JSON"],
	[JSON.stringify(workflow([node("g0", [])], chain(30, []))), "a workflow"],
	[
		JSON.stringify(workflow([node("g0", [])], chain(60, []))),
		"broken: its subgraphs are nested deeper than 32",
	],
	[JSON.stringify(workflow([], [nested(40)])), "broken: its subgraphs are nested deeper than 32"],
	[
		JSON.stringify(workflow([node("g0", [])], chain(9, [node("g4", [])]))),
		expect.stringMatching(/^broken: its subgraph "named g[4-8]" contains itself$/),
	],
	[
		JSON.stringify(workflow(Array.from({ length: 100_001 }, () => ({ type: "x" })))),
		"broken: it has more than 100000 nodes",
	],
])("foreign text %# is told for what it is", (text, expected) => {
	expect(refusal(text)).toEqual(expected)
})

test("work and answer stay small for what is made to make them large", () => {
	const long = "x".repeat(100_000)
	const many = Array.from({ length: 300 }, (_, index) => `${index}.safetensors`)
	const started = performance.now()
	const texts = [
		workflow(
			[node("g0", [], { id: long })],
			[
				subgraph(
					"g0",
					many.map((name) => node("VAELoader", [`${long}${name}`])),
				),
			],
		),
		workflow([node("Odd", Array(200_000).fill("a.safetensors"))]),
		workflow(
			[node("g0", [])],
			[
				...chain(
					30,
					many.map((name) => node("VAELoader", [name])),
				),
				...Array.from({ length: 3000 }, (_, index) => subgraph(`h${index}`, [node("g0", [])])),
			],
		),
		workflow(
			Array.from({ length: 50_000 }, () => ({ type: "g0" })),
			[
				subgraph(
					"g0",
					Array.from({ length: 49_000 }, (_, index) => ({ type: "Odd", widgets_values: [`${index}.pt`] })),
				),
			],
		),
		workflow(
			[],
			[
				subgraph(
					"g0",
					Array.from({ length: 40_000 }, (_, index) => ({ type: "Odd", widgets_values: [`${index}.pt`] })),
				),
				...Array.from({ length: 20_000 }, (_, index) => subgraph(`h${index}`, [{ type: "g0" }])),
			],
		),
	].map((value) => JSON.stringify(parseWorkflow(JSON.stringify(value))))
	for (const text of texts) expect(text.length).toBeLessThan(10_000_000)
	expect(performance.now() - started).toBeLessThan(15_000)
})

// Keys and values that the reader looks for, in every wrong place.
const words = fc.constantFrom(
	...[
		"nodes",
		"definitions",
		"subgraphs",
		"id",
		"type",
		"mode",
		"name",
		"widgets_values",
		"properties",
		"models",
	],
	...[
		"directory",
		"url",
		"class_type",
		"inputs",
		"prompt",
		"vae_name",
		"__proto__",
		"constructor",
		"toString",
	],
	...["VAELoader", "DualCLIPLoader", "g", "h", "a.safetensors", "taesd", "None"],
)
const { value: anyJson } = fc.letrec((tie) => ({
	value: fc.oneof(
		{ maxDepth: 7 },
		words,
		fc.oneof(fc.string(), fc.integer(), fc.constantFrom(2, 4, null, true)),
		fc.array(tie("value"), { maxLength: 4 }),
		fc.dictionary(fc.oneof(words, fc.string()), tie("value"), { maxKeys: 5 }),
	),
}))
const ids = fc.constantFrom("g", "h", "i", "VAELoader", "UNETLoader", "Odd", "Note")
const anyNode = fc.record({
	id: fc.oneof(fc.nat(99), anyJson),
	type: fc.oneof(ids, anyJson),
	mode: fc.constantFrom(0, 2, 4),
	widgets_values: fc.oneof(fc.array(words, { maxLength: 3 }), anyJson),
	properties: fc.oneof(
		fc.record({ models: fc.array(fc.record({ name: words, directory: words })) }),
		anyJson,
	),
})
const anyNodes = fc.array(anyNode, { maxLength: 6 })
const anyGraph = fc.record({ id: fc.oneof(ids, anyJson), nodes: anyNodes })
const anyWorkflow = fc.record({
	nodes: anyNodes,
	definitions: fc.oneof(fc.record({ subgraphs: fc.array(anyGraph, { maxLength: 4 }) }), anyJson),
})
const anyApi = fc.dictionary(fc.string(), fc.record({ class_type: fc.oneof(ids, anyJson), inputs: anyJson }))
const whole = Object.values(documentedWorkflows()).map((value) => JSON.stringify(value))
const changed = fc
	.tuple(fc.constantFrom(...whole), fc.double({ min: 0, max: 1, noNaN: true }), fc.nat(30), fc.string())
	.map(([text, at, cut, put]) => {
		const from = Math.floor(at * text.length)
		return `${text.slice(0, from)}${put}${text.slice(from + cut)}`
	})
const anyText = fc.oneof(
	fc.string({ unit: "binary" }),
	fc.oneof(anyJson, anyWorkflow, anyApi).map((value) => JSON.stringify(value)),
	changed,
)

test("no text makes it throw; the same text gives the same, in bounds", async () => {
	const property = fc.property(anyText, (text) => {
		const finding = parseWorkflow(text)
		expect(parseWorkflow(text)).toEqual(finding)
		if (finding.state !== "workflow") {
			expect(finding.because).not.toBe("")
			return
		}
		const { references } = finding.workflow
		expect(references.length).toBeLessThanOrEqual(text.length)
		for (const { name, nodeType, optional } of references) {
			expect(name.trim()).not.toBe("")
			expect(typeof nodeType).toBe("string")
			expect(typeof optional).toBe("boolean")
		}
	})
	await assertOften(property, 4000)
})

test("the order of subgraphs and of nodes changes nothing but the order of the answer", async () => {
	const loadersAt = fc.array(fc.constantFrom("a", "b", "c"), { maxLength: 3 })
	const graph = fc.record({
		files: loadersAt,
		inner: fc.array(fc.nat(3), { maxLength: 2 }),
		mode: fc.constantFrom(0, 4),
	})
	const property = fc.property(fc.array(graph, { minLength: 1, maxLength: 4 }), (graphs) => {
		const made = graphs.map(({ files, inner, mode }, index) => ({
			id: `g${index}`,
			nodes: [
				...files.map((file, at) => ({ id: at, type: "VAELoader", widgets_values: [`${file}.pt`] })),
				// Only later ones: no circles.
				...inner.map((step, at) => ({ id: 10 + at, type: `g${index + 1 + step}`, mode })),
			],
		}))
		const [first, ...others] = made
		const root = { nodes: first?.nodes, definitions: { subgraphs: others } }
		const turned = {
			nodes: first?.nodes.toReversed(),
			definitions: { subgraphs: others.map((one) => ({ ...one, nodes: one.nodes.toReversed() })).reverse() },
		}
		const said = (value: unknown) => {
			const finding = parseWorkflow(JSON.stringify(value))
			if (finding.state !== "workflow") throw new Error(finding.because)
			return finding.workflow.references.map(({ name, optional }) => `${name} ${optional}`).sort()
		}
		expect(said(turned)).toEqual(said(root))
	})
	await assertOften(property, 1000)
})
