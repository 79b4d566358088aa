// What goes beside a prompt, so that ComfyUI writes it into pictures.
import { expect, test } from "vitest"
import { withPngInfo } from "../../../src/queue-manager/outputs/png-info.ts"
import { planOutputs } from "../../../src/queue-manager/outputs/prefix.ts"
import { imageWorkflow } from "../../support/share-world.ts"

const bytes = (value: unknown) => Buffer.from(JSON.stringify(value))
const extra = { extra_pnginfo: { workflow: { nodes: [] } } }

test("a job's graph goes beside its prompt, and the outputs are planned as before", () => {
	const name = { job: "job-1", attempt: 1, createdAt: new Date("2026-11-21T10:00:00Z") }
	const workflow = imageWorkflow()
	const wrapped = JSON.parse(withPngInfo(bytes(workflow), bytes({ batch_index: 0, ...extra })).toString())
	expect(wrapped).toEqual({ prompt: workflow, extra_data: extra })
	expect(planOutputs(wrapped, name)).toEqual({ ...planOutputs(workflow, name), extraData: extra })
})

test.each([
	["no metadata", {}],
	["a graph that is none", { extra_pnginfo: "text" }],
	["the word elsewhere", { note: '"extra_pnginfo"' }],
])("with %s the workflow stays as it came", (_, metadata) => {
	const workflow = bytes(imageWorkflow())
	expect(withPngInfo(workflow, bytes(metadata))).toBe(workflow)
})

test("what is wrapped already isn't wrapped again", () => {
	const workflow = bytes({ prompt: imageWorkflow(), extra_data: {} })
	expect(withPngInfo(workflow, bytes(extra))).toBe(workflow)
})
