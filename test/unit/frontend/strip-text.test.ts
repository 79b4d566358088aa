// What the status strip says, and what a report of the browser's console must not carry.
import { describe, expect, test } from "vitest"

const scripts = new URL("../../../templates/stack/frontend/custom_nodes/comfyume/web/lib/", import.meta.url)
const text = await import(new URL("strip-text.js", scripts).href)
const { scrub } = await import(new URL("scrub.js", scripts).href)

const job = (status: string, more: object = {}) => ({ status, position_in_queue: null, ...more })
const titleOf = (node: string) => ({ "3": "Sampler" })[node]

describe("one job", () => {
	test.each([
		["without a place", job("pending"), "Queued", ""],
		["first", job("pending", { position_in_queue: 0 }), "Queued, next in line", ""],
		[
			"behind others, with an estimate",
			job("pending", { position_in_queue: 11, estimated_wait_time: 400 }),
			"Queued, 12th in line",
			"Starts in about 7 minutes.",
		],
		["claimed", job("running"), "Starting", "A GPU has your job."],
		[
			"a cold start",
			job("running", { progress: { phase: "submitting", message: "cold start: default wakes a GPU" } }),
			"A GPU is starting",
			"The first job after a pause takes a few minutes.",
		],
		[
			"at work",
			job("running", { progress: { phase: "polling", node: "3", value: 1, max: 3 } }),
			"Running",
			"Sampler, 33 %",
		],
		[
			"at a node without a name or steps",
			job("running", { progress: { phase: "polling", node: "12:7" } }),
			"Running",
			"node 12:7",
		],
		["bringing files", job("running", { isSaving: true }), "Saving", "Your result is on its way here."],
		[
			"done",
			job("completed", { started_at: "2026-11-21T10:00:00Z", completed_at: "2026-11-21T10:00:42Z" }),
			"Done",
			"It took 42 s.",
		],
		["done, and nobody knows since when", job("completed"), "Done", ""],
		["cancelled", job("cancelled"), "Cancelled", ""],
	])("%s", (_, one, title, detail) => {
		expect(text.describe([one], titleOf)).toMatchObject({ title, detail })
	})

	test.each([
		["CUDA out of memory. Tried to allocate 2 GiB", "smaller size"],
		["ComfyUI refused the workflow: Value not in list", "red frame"],
		["the share could not be read", "Tell your instructor"],
		["its worker was lost twice", "wasn't your workflow"],
		["something else", "show this to your instructor"],
	])("that failed with «%s» says what to do", (error, advice) => {
		const said = text.describe([job("failed", { error })])
		expect(said.title).toBe(`Failed: ${error}`)
		expect(said.detail).toContain(advice)
		expect(said.isOver).toBe(true)
	})

	test("an endless error is cut, and only its first line is shown", () => {
		const { title } = text.describe([job("failed", { error: `${"x".repeat(400)}\nTraceback` })])
		expect(title.length).toBeLessThan(200)
		expect(title).not.toContain("Traceback")
	})
})

describe("several jobs", () => {
	test("are summed up, with the share of all that is done", () => {
		const jobs = [
			job("completed"),
			job("completed"),
			job("running", { progress: { phase: "polling", node: "3", value: 1, max: 2 } }),
			job("pending", { position_in_queue: 2 }),
		]
		expect(text.describe(jobs, titleOf)).toEqual({
			phase: "running",
			title: "2 of 4 done, 1 running, 1 waiting as 3rd",
			detail: "Sampler, 50 %",
			share: 0.625,
			isOver: false,
		})
	})

	test("name the first place of those that wait", () => {
		const jobs = [job("pending", { position_in_queue: 20 }), job("pending", { position_in_queue: 21 })]
		expect(text.describe(jobs).title).toBe("0 of 2 done, 2 waiting, the first as 21st")
	})

	test("are over when none is left, and failed when one has", () => {
		const failed = job("failed", { error: "out of memory" })
		expect(text.describe([job("completed"), failed])).toMatchObject({
			phase: "failed",
			title: "1 of 2 done, 1 failed",
			detail: "out of memory. Try a smaller size, fewer frames or a smaller batch.",
			isOver: true,
		})
		expect(text.describe([job("completed"), job("cancelled")]).phase).toBe("done")
		expect(text.describe([])).toBeUndefined()
	})
})

test("ordinals are English ones", () => {
	const said = [1, 2, 3, 4, 11, 12, 13, 21, 22, 103, 111].map(text.ordinal)
	expect(said).toEqual("1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 103rd 111th".split(" "))
})

describe("a report", () => {
	test.each([
		["at https://ann:made-up@example.test/a/b.js:3:4", "at https://example.test/a/b.js:3:4"],
		["GET https://example.test:8443/view?token=abc&x=1 failed", "GET https://example.test:8443/view failed"],
		["https://example.test/a.js?v=1:20:5", "https://example.test/a.js:20:5"],
		["Authorization: Bearer made-up-1", "Authorization: […]"],
		['{"password":"made up","user":"ann"}', '{"password":[…],"user":"ann"}'],
		['{"token":"cut o', '{"token":[…]'],
		["sent Bearer made-up-3 twice", "sent Bearer […] twice"],
		["api_key=made-up-2; next", "api_key=[…]; next"],
		[`key ${"a1".repeat(20)}`, "key […]"],
		[
			"TypeError: Cannot read properties of undefined (reading 'x')",
			"TypeError: Cannot read properties of undefined (reading 'x')",
		],
	])("turns «%s» into «%s»", (given, expected) => {
		expect(scrub(given)).toBe(expected)
	})
})
