// What a worker is handed out: the same names as planOutputs makes, in text that is otherwise as it came.
import fc from "fast-check"
import { expect, test } from "vitest"
import { isolateWorkflow } from "../../../src/queue-manager/outputs/isolate.ts"
import { planOutputs } from "../../../src/queue-manager/outputs/prefix.ts"
import { runs } from "../../support/runs.ts"

const name = { job: "job-1", attempt: 2, createdAt: new Date("2026-11-21T23:59:59Z") }
const isolate = async (text: string) => (await isolateWorkflow(Buffer.from(text), name)).toString("utf8")

test("names the same places as the plan that outputs are matched by", async () => {
	const inputs = fc.dictionary(
		fc.constantFrom("filename_prefix", "inputs", "x"),
		fc.oneof(fc.string({ unit: "binary" }), fc.jsonValue({ maxDepth: 2 }), fc.constant(["5", 0])),
	)
	const node = fc.record({
		class_type: fc.constantFrom("SaveImage", "Other"),
		inputs,
		_meta: fc.jsonValue({ maxDepth: 2 }),
	})
	const id = fc.oneof(fc.nat(12).map(String), fc.constantFrom("57:8", "57-8", "__proto__", "inputs", "é"))
	await fc.assert(
		fc.asyncProperty(fc.array(fc.tuple(id, node), { maxLength: 4 }), fc.nat(2), async (nodes, indent) => {
			const text = JSON.stringify(Object.fromEntries(nodes), undefined, indent)
			const saves = text.includes('"filename_prefix"')
			const expected = (): unknown => {
				try {
					return planOutputs(JSON.parse(text) as Record<string, unknown>, name).prompt
				} catch {
					return undefined // None of its nodes saves: then nothing is to be changed.
				}
			}
			const isolated = await isolate(text)
			expect(JSON.parse(isolated)).toEqual(expected() ?? JSON.parse(text))
			if (!saves) expect(isolated).toBe(text)
		}),
		{ numRuns: runs(60) },
	)
})

test.each([
	["a name that is written with escapes", '{"9":{"inp\\u0075ts":{"filename\\u005fprefix":"../x"}}}'],
	[
		"a name that comes twice, of which the last counts",
		'{"9":{"inputs":{"filename_prefix":"x","filename_prefix":"y"}}}',
	],
	["inputs that come twice", '{"9":{"inputs":{},"inputs":{"filename_prefix":"x"}}}'],
	["a link in a prefix's place", '{"9":{"inputs":{"filename_prefix":["12",{"a":[1]}]}}}'],
	[
		"a list behind another node's prefix",
		'{"8":{"inputs":{"filename_prefix":"x"}},"9":{"_meta":[[]],"inputs":{"filename_prefix":"y"}}}',
	],
	["a node without a class", '{"9":{"inputs":{"filename_prefix":"/etc/x"},"more":{"filename_prefix":"y"}}}'],
])("%s leads nowhere else", async (_, text) => {
	const { "9": node } = JSON.parse(await isolate(text)) as { "9": { inputs: { filename_prefix: string } } }
	expect(node.inputs.filename_prefix).toMatch(/^cq\/20261121\/job-1\/a2\/9~[A-Za-z]+$/)
})

test("what only looks like a place for files stays", async () => {
	const text =
		'{"9":[{"filename_prefix":"a"}],"8":{"inputs":[{"filename_prefix":"b"}],"x":{"filename_prefix":"c"}},"filename_prefix":"d"}'
	expect(await isolate(text)).toBe(text)
})

// Each took the queue manager's only thread for minutes to hours, for everybody, and again after its restart.
test.each([
	[
		"ids that come out alike",
		() => Array.from({ length: 25_000 }, (_, at) => [`${"x".repeat(60)}${at}`, "a"]),
	],
	["one name without an end", () => [["9", "n".repeat(60_000)]]],
	["long names", () => Array.from({ length: 4_000 }, (_, at) => [String(at), "é".repeat(500)])],
])(
	"a hostile workflow of %s is done in time that grows with its size",
	async (_, nodesOf) => {
		const nodes = nodesOf().map(([id = "", prefix]) => [id, { inputs: { filename_prefix: prefix } }] as const)
		const isolated = await isolate(JSON.stringify(Object.fromEntries(nodes)))
		const values = Object.values(
			JSON.parse(isolated) as Record<string, { inputs: { filename_prefix: string } }>,
		)
		expect(new Set(values.map(({ inputs }) => inputs.filename_prefix)).size).toBe(nodes.length)
	},
	20_000,
)
