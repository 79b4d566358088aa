// The parts of serverless mode that need no world.
import { expect, test } from "vitest"
import { settleTimes } from "../../../src/queue-manager/outputs/settle.ts"
import { placeOf } from "../../../src/queue-manager/outputs/worker-outputs.ts"
import { withAmendment } from "../../../src/queue-manager/serverless/amendment.ts"
import { watchEndpoints } from "../../../src/queue-manager/serverless/endpoint-watch.ts"
import { maxWaitMsOf, settleTimesOf } from "../../../src/queue-manager/serverless/open-serverless.ts"

const file = (filename: string) => ({ filename, subfolder: "ann", type: "output" as const })

test("an amendment is added to its node, kind by kind, and a second time to nothing", () => {
	const result = JSON.stringify({ number: 3, outputs: { "9": { images: [file("a.png")] } } })
	const once = withAmendment(result, { node: "9", key: "images", file: file("b.png") }) ?? ""
	const twice = withAmendment(once, { node: "10", key: "audio", file: file("c.flac") }) ?? ""
	expect(JSON.parse(twice)).toEqual({
		number: 3,
		outputs: { "9": { images: [file("a.png"), file("b.png")] }, "10": { audio: [file("c.flac")] } },
	})
	expect(withAmendment(twice, { node: "9", key: "images", file: file("b.png") })).toBeUndefined()
	const strange = withAmendment(result, { node: "__proto__", key: "images", file: file("d.png") }) ?? ""
	expect(Object.keys((JSON.parse(strange) as { outputs: object }).outputs)).toEqual(["9", "__proto__"])
})

test("a longer settle time makes files wait longer, a shorter one changes nothing", () => {
	expect(settleTimesOf({ SFS_SETTLE_TIME: 2 })).toEqual(settleTimes)
	expect(settleTimesOf({ SFS_SETTLE_TIME: 5 })).toEqual({ ...settleTimes, pictureMs: 5000 })
	expect(settleTimesOf({ SFS_SETTLE_TIME: 30 })).toMatchObject({ pictureMs: 30_000, filmMs: 30_000 })
})

test("a job may take as long as the instructor set, longer than a held request too", () => {
	expect(maxWaitMsOf(new Map([["max_wait", "1800"]]))).toBe(1_800_000)
	expect(maxWaitMsOf(new Map())).toBe(600_000)
})

test("a worker's path leads to where it says below the share, and nowhere else", () => {
	const job = { id: "j1", user: "ann", attempt: 2 }
	const at = (outputPath: unknown, filename: string, subfolder?: unknown) =>
		placeOf(job, "/mnt/share/", outputPath, { filename, subfolder })
	expect(at(undefined, "a.png")).toEqual({ directory: "", name: "a.png", isOwn: false })
	expect(at("/mnt/share", "a.png", "x/y")).toMatchObject({ directory: "x/y" })
	expect(at("/mnt/share/run/", "a.png", "y")).toMatchObject({ directory: "run/y" })
	// The worker's own mount of the same share.
	expect(at("/outputs", "a.png", "y")).toMatchObject({ directory: "y" })
	expect(at("/mnt/share", "a.png", "cq/20261121/j1/a2")).toMatchObject({ isOwn: true })
	for (const subfolder of ["cq/20261121/j1/a1", "cq/20261121/j2/a2", "cq", "cq/20261121/j1/a2/x"])
		expect(() => at("/mnt/share", "a.png", subfolder), subfolder).toThrow(/directory of this attempt/)
	for (const subfolder of ["..", "a/../b", "/etc", "a//b", ".", "a\0b"])
		expect(() => at("/mnt/share", "a.png", subfolder), subfolder).toThrow(/not a path below/)
	expect(() => at("/mnt/share/../x", "a.png")).toThrow(/not a path below/)
	expect(() => at(undefined, "x/a.png")).toThrow(/no \//)
})

test("an endpoint on another volume is blocked until a check passes; silence proves nothing either way", async () => {
	let nowMs = 0
	const found: Parameters<typeof watchEndpoints>[0] extends (name: string) => Promise<infer P> ? P[] : never =
		[
			{ state: "failed", reason: "volume", because: "another volume", hint: "" },
			{ state: "failed", reason: "unreachable", because: "nobody answers", hint: "" },
			{ state: "same-volume" },
		]
	let settled = 0
	const log = { info: () => undefined, error: () => undefined }
	const watch = watchEndpoints(async () => found.shift() ?? { state: "same-volume" }, {
		log: log as never,
		now: () => nowMs,
		onSettled: () => void settled++,
	})
	const turn = async () => {
		const may = watch.mayStart("a")
		await new Promise(setImmediate)
		return may
	}
	expect([await turn(), await turn(), settled]).toEqual([false, false, 1])
	nowMs += 30_000
	expect([await turn(), await turn(), settled]).toEqual([false, false, 2])
	nowMs += 30_000
	expect([await turn(), await turn(), settled]).toEqual([false, true, 3])
	watch.distrust("a", "it answers 401 to a job", undefined)
	expect(watch.of("a")).toMatchObject({ isBlocked: true, preflight: "failed" })
	expect(await turn()).toBe(false)
})
