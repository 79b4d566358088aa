import { describe, expect, test } from "vitest"
import { attribute } from "../../../src/queue-manager/outputs/attribution.ts"
import { nameParts, nextName } from "../../../src/queue-manager/outputs/deliver.ts"
import { partsOf } from "../../../src/queue-manager/outputs/held-files.ts"
import { knownEndings, sortFile } from "../../../src/queue-manager/outputs/kinds.ts"
import { planOutputs } from "../../../src/queue-manager/outputs/prefix.ts"
import { jobResult } from "../../../src/queue-manager/outputs/result.ts"
import { imageWorkflow } from "../../support/share-world.ts"

describe("names are counted as ComfyUI counts", () => {
	test.each([
		["9~Film_00001_.png", [], "Film_00001_.png"],
		["9~Film_00001_.png", ["Film_00007_.png", "Film_00003_.png"], "Film_00008_.png"],
		["9~Film_00001_.png", ["Film_x.png", "Filmed_00009_.png", "Film_.png"], "Film_00001_.png"],
		["57-8~Take_00003-audio.mp4", ["Take_00001.mp4"], "Take_00002-audio.mp4"],
		["9~Film_00001_00002_.png", [], "Film_00001_00001_.png"],
		["9~mesh.glb", ["mesh_00001_.glb"], "mesh_00002_.glb"],
		["9~a~b$_00001_.png", [], "a-b-_00001_.png"],
		["9~../x_00001_.png", [], "-x_00001_.png"],
		["9~Film_99999_.png", ["Film_99999_.png"], "Film_100000_.png"],
		["9~.hidden_00001_.png", [], "hidden_00001_.png"],
		["9~", [], "ComfyUI_00001_"],
	])("%s beside %j becomes %s", (file, names, expected) => {
		expect(nextName(nameParts(file), names).filename).toBe(expected)
	})

	test("a number that is taken is passed over", () => {
		expect(nextName(nameParts("9~Film_00001_.png"), [], 4).filename).toBe("Film_00004_.png")
	})
})

test.each([
	["png", "png", "SaveImage", { state: "fits", key: "images", isFilm: false }],
	["mp4", "mp4", "SaveVideo", { state: "fits", key: "images", isFilm: true }],
	["mp4", "mp4", "VHS_VideoCombine", { state: "fits", key: "gifs", isFilm: true }],
	["PNG", "png", "VHS_VideoCombine", { state: "fits", key: "gifs", isFilm: false }],
	["flac", "flac", "SaveAudio", { state: "fits", key: "audio", isFilm: false }],
	["mp3", "unknown", "SaveAudioMP3", { state: "fits", key: "audio", isFilm: false }],
	["glb", "glb", "SaveGLB", { state: "fits", key: "3d", isFilm: false }],
	["png", "unknown", "SaveImage", { state: "refused" }],
	["mp4", "png", "SaveVideo", { state: "refused" }],
	["html", "unknown", "X", { state: "refused" }],
	["svg", "unknown", "X", { state: "refused" }],
	["py", "unknown", "X", { state: "refused" }],
	["", "png", "X", { state: "refused" }],
] as const)(".%s with %s by %s", (ending, kind, classType, expected) => {
	const given = { name: `9~x.${ending}`, kind, classType }
	expect(sortFile(given, new Set(knownEndings))).toMatchObject(expected)
})

test("an ending that isn't allowed is refused although it is known", () => {
	expect(sortFile({ name: "9~x.png", kind: "png", classType: "X" }, new Set(["mp4"]))).toMatchObject({
		state: "refused",
	})
})

test.each(["..", "a/../b", "/a", "a//b", "a/.", "", "a\0b"])("%j is no path below a directory", (path) => {
	expect(() => partsOf(path)).toThrow(/is not a path below/)
})

describe("a picture's own prompt says whose it is", () => {
	const plan = planOutputs(imageWorkflow(), { job: "job-1", attempt: 1, createdAt: new Date(0) })
	const said = (prompt: unknown) => attribute({ state: "read", text: JSON.stringify(prompt) }, plan, "9")

	test("the same prefix is ours", () => {
		expect(said(plan.prompt)).toEqual({ state: "own" })
	})

	test.each([
		[
			"another job's",
			planOutputs(imageWorkflow(), { job: "job-2", attempt: 1, createdAt: new Date(0) }).prompt,
		],
		[
			"another attempt's",
			planOutputs(imageWorkflow(), { job: "job-1", attempt: 2, createdAt: new Date(0) }).prompt,
		],
		["no prompt at all", {}],
		["a list", []],
		["null", null],
	])("%s is not", (_, prompt) => {
		expect(said(prompt)).toMatchObject({ state: "foreign" })
	})

	test("what isn't JSON is not ours; what isn't there can't be checked", () => {
		expect(attribute({ state: "read", text: "{" }, plan, "9")).toMatchObject({ state: "foreign" })
		expect(attribute({ state: "absent" }, plan, "9")).toEqual({ state: "unchecked" })
	})
})

test("the result is keyed as ComfyUI's history is", () => {
	const delivered = (node: string, key: "images" | "gifs", filename: string, isFilm = false) =>
		({ state: "delivered", node, key, filename, isFilm, isFirst: true }) as const
	const result = jobResult({ promptId: "j-a1", number: 3, nodeErrors: {}, user: "user001" }, [
		delivered("9", "images", "b_00002_.png"),
		delivered("9", "images", "b_00001_.png"),
		delivered("12", "gifs", "c_00001.mp4", true),
		delivered("13", "images", "d_00001_.mp4", true),
		{ state: "refused", node: "9", file: "x", because: "y" },
	])
	const file = (filename: string) => ({ filename, subfolder: "user001", type: "output" })
	expect(result).toEqual({
		prompt_id: "j-a1",
		number: 3,
		node_errors: {},
		outputs: {
			"9": { images: [file("b_00001_.png"), file("b_00002_.png")] },
			"12": { gifs: [file("c_00001.mp4")] },
			"13": { images: [file("d_00001_.mp4")], animated: [true] },
		},
		execution_status: "success",
	})
})
