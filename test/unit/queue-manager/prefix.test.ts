import fc from "fast-check"
import { describe, expect, test } from "vitest"
import { promptIdOf } from "../../../src/lib/formats/prompt-id.ts"
import {
	baseNameOf,
	nodeOfFile,
	planOutputs,
	prefixOf,
	promptId,
	WorkflowRefused,
} from "../../../src/queue-manager/outputs/prefix.ts"
import { imageWorkflow, videoWorkflow } from "../../support/share-world.ts"

const name = { job: "job-1", attempt: 2, createdAt: new Date("2026-11-21T23:59:59Z") }

test("every prefix goes to the attempt's own directory, and nothing else is changed", () => {
	const workflow = { ...imageWorkflow(), ...videoWorkflow() }
	const before = structuredClone(workflow)
	const plan = planOutputs(workflow, name)
	expect(plan.directory).toBe("cq/20261121/job-1/a2")
	expect(prefixOf(plan, "9")).toBe("cq/20261121/job-1/a2/9~Film")
	expect(prefixOf(plan, "57:8")).toBe("cq/20261121/job-1/a2/57-8~Take")
	expect(plan.nodes.map(({ node, writes }) => [node, writes])).toEqual([
		["9", "anything"],
		["57:8", "video"],
	])
	expect(plan.prompt["5"]).toEqual(before["5"])
	expect(workflow).toEqual(before)
	expect(promptId(name)).toBe(promptIdOf("job-1", 2))
	expect(planOutputs(workflow, name)).toEqual(plan)
})

test("a further submission has a directory and an id of its own", () => {
	expect(planOutputs(imageWorkflow(), { ...name, submission: 2 }).directory).toBe("cq/20261121/job-1/a2-2")
	expect(promptId({ ...name, submission: 2 })).toMatch(
		/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
	)
	expect(promptId({ ...name, submission: 2 })).not.toBe(promptId(name))
})

test("the frontend's form keeps what goes beside the prompt", () => {
	const plan = planOutputs({ prompt: imageWorkflow(), extra_data: { extra_pnginfo: { workflow: {} } } }, name)
	expect(plan.extraData).toEqual({ extra_pnginfo: { workflow: {} } })
	expect(prefixOf(plan, "9")).toContain("/9~Film")
})

describe("refused with 422", () => {
	test.each([
		[
			"no node writes",
			{ "5": { class_type: "EmptyImage", inputs: {} } },
			/none of the workflow's nodes writes/,
		],
		["it is no prompt", { test: "workflow" }, /"test" is no node/],
		[
			"the only node that could write is asked not to",
			{ "1": { class_type: "VHS_VideoCombine", inputs: { filename_prefix: "x", save_output: false } } },
			/none of/,
		],
	])("when %s", (_, workflow, message) => {
		expect(() => planOutputs(workflow, name)).toThrow(message)
		expect(() => planOutputs(workflow, name)).toThrow(
			expect.objectContaining({ statusCode: 422, name: WorkflowRefused.name }) as Error,
		)
	})
})

test("a prefix that comes from another node is replaced as well", () => {
	expect(prefixOf(planOutputs(imageWorkflow(1, ["5", 0]), name), "9")).toBe("cq/20261121/job-1/a2/9~ComfyUI")
})

test("a node that others build upon is not waited for when there are ends", () => {
	const workflow = {
		...imageWorkflow(),
		"3": { class_type: "Namer", inputs: { filename_prefix: "x" } },
		"4": { class_type: "SaveImage", inputs: { images: ["3", 0], filename_prefix: "y" } },
	}
	expect(planOutputs(workflow, name).nodes.map(({ node }) => node)).toEqual(["4", "9"])
})

test("nodes whose ids look alike keep apart", () => {
	const save = { class_type: "SaveImage", inputs: { filename_prefix: "x" } }
	const plan = planOutputs({ "1:2": save, "1-2": save, "1/2": save }, name)
	const files = ["1:2", "1-2", "1/2"].map((node) => `${prefixOf(plan, node)?.split("/").at(-1)}_00001_.png`)
	expect(new Set(files).size).toBe(3)
	expect(files.map((file) => nodeOfFile(plan, file)?.node)).toEqual(["1:2", "1-2", "1/2"])
})

test("a file is a node's only by the whole of its token", () => {
	const plan = planOutputs(imageWorkflow(), name)
	expect(nodeOfFile(plan, "9~Film_00001_.png")).toEqual({ node: "9", classType: "SaveImage" })
	for (const other of ["99~Film_00001_.png", "~x.png", "9", "Film_00001_.png", "__proto__~x.png"])
		expect(nodeOfFile(plan, other), other).toBeUndefined()
})

test.each([
	["Film", "Film"],
	["video/LTX-2", "LTX-2"],
	["../../etc/passwd", "passwd"],
	["..", "ComfyUI"],
	[".hidden", "hidden"],
	["a\\b\\c", "c"],
	["a~b\0c\n$(x)", "a-b-c--(x)"],
	["Übung 火", "Übung 火"],
	["%year%-%width%x%height%_%batch_num%", "%year%-%width%x%height%_%batch_num%"],
	["100%", "100-"],
	["", "ComfyUI"],
	[7, "ComfyUI"],
])("the base name of %j is %j", (prefix, base) => {
	expect(baseNameOf(prefix)).toBe(base)
})

test("whatever a prefix is, its file stays in the attempt's directory and is found to be the node's", () => {
	fc.assert(
		fc.property(
			fc.string({ unit: "binary", maxLength: 300 }),
			fc.string({ maxLength: 80 }),
			(prefix, node) => {
				const plan = planOutputs(
					{ [node]: { class_type: "SaveImage", inputs: { filename_prefix: prefix } } },
					name,
				)
				const path = prefixOf(plan, node) ?? ""
				const file = path.slice(plan.directory.length + 1)
				expect(path.startsWith(`${plan.directory}/`)).toBe(true)
				expect(file).not.toMatch(/[/\0\n\\]|^\./)
				expect(Buffer.byteLength(file)).toBeLessThan(200)
				expect(nodeOfFile(plan, `${file}_00001_.png`)?.node).toBe(node)
			},
		),
	)
})
