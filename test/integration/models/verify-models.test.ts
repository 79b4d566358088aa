// `comfyume verify-models` as a shell sees it, on models that are broken in every way they break.
import {
	appendFileSync,
	mkdirSync,
	mkdtempSync,
	readFileSync,
	rmSync,
	symlinkSync,
	truncateSync,
	writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { listFiles } from "../../../src/lib/models/directories.ts"
import { eventSchema } from "../../../src/lib/plan/events.ts"
import { makeModel, writeSparseModel } from "../../support/model-maker.ts"
import { type Ran, run } from "../../support/run.ts"

const launcher = fileURLToPath(new URL("../../../bin/comfyume.js", import.meta.url))
const modelBytes = 40_000
let directory = ""
const path = (...parts: string[]) => join(directory, ...parts)

const comfyume = (...words: string[]): Promise<Ran> =>
	run(process.execPath, [launcher, ...words], {
		workingDirectory: directory,
		environment: { PATH: process.env.PATH, HOME: directory },
		allowedExitCodes: "any",
	})

const names = ["whole", "truncated", "flipped", "pointer", "page", "sparse"].map(
	(name) => `loras/${name}.safetensors`,
)

beforeEach(() => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-models-"))
	mkdirSync(path("models/loras"), { recursive: true })
	for (const [index, name] of names.entries())
		writeFileSync(path("models", name), makeModel(modelBytes, index + 1))
	writeSparseModel(path("models", "loras/sparse.safetensors"), 3_000_000)
})
afterEach(() => rmSync(directory, { recursive: true }))

/** The manifest of what lies there, measured while all of it is right. */
async function createManifest(...more: string[]): Promise<string> {
	const { exitCode, stdout } = await comfyume("manifest", "create", "--models", "models", ...more)
	expect(exitCode).toBe(0)
	writeFileSync(path("models.yaml"), stdout)
	return stdout
}

function damage(): void {
	truncateSync(path("models/loras/truncated.safetensors"), modelBytes / 2)
	const flipped = makeModel(modelBytes, 3)
	flipped[flipped.length - 9] = Number(flipped.at(-9)) ^ 1
	writeFileSync(path("models/loras/flipped.safetensors"), flipped)
	writeFileSync(
		path("models/loras/pointer.safetensors"),
		"version https://git-lfs.github.com/spec/v1\nsize 40000\n",
	)
	writeFileSync(path("models/loras/page.safetensors"), "<!DOCTYPE html><html><title>401</title></html>")
	writeSparseModel(path("models/loras/sparse.safetensors"), 3_000_000, 0)
}

async function verdicts(...words: string[]): Promise<{ exitCode: number; statuses: Record<string, string> }> {
	const { exitCode, stdout, stderr } = await comfyume(
		"verify-models",
		"--models",
		"models",
		"--json",
		...words,
	)
	const lines = stdout.split("\n").filter((line) => line !== "")
	const parsed = lines.map((line) => JSON.parse(line)).filter(({ event }) => event === "model")
	for (const verdict of parsed) {
		expect(verdict).toMatchObject({
			version: 1,
			because: expect.stringMatching(/./),
			needed: expect.any(Boolean),
		})
		expect(["none", "exists", "size", "structure", "digest"]).toContain(verdict.tier)
	}
	expect(stderr).not.toContain("a bug")
	const statuses = parsed.map(({ path: file, status }) => [
		file.replace(/^loras\/(.*)\.safetensors$/, "$1"),
		status,
	])
	return { exitCode, statuses: Object.fromEntries(statuses) }
}

describe("the five kinds of damaged model are each named", () => {
	test("with a manifest, by their digests", async () => {
		await createManifest()
		const all = ["--manifest", "models.yaml", "--level", "digest"]
		expect(await verdicts(...all)).toMatchObject({
			exitCode: 0,
			statuses: { whole: "ok", flipped: "ok", sparse: "ok" },
		})
		damage()
		expect(await verdicts(...all)).toEqual({
			exitCode: 3,
			statuses: {
				whole: "ok",
				truncated: "truncated",
				flipped: "digest-mismatch",
				pointer: "lfs-pointer",
				page: "html",
				sparse: "zero-tail",
			},
		})
	})

	test("without one by their structure, all but the flipped byte", async () => {
		damage()
		expect(await verdicts()).toEqual({
			exitCode: 3,
			statuses: {
				whole: "ok",
				truncated: "truncated",
				flipped: "ok",
				pointer: "lfs-pointer",
				page: "html",
				sparse: "zero-tail",
			},
		})
	})

	test("in a table for people, with a count at its end", async () => {
		damage()
		const { exitCode, stdout, stderr } = await comfyume("verify-models", "--models", "models")
		expect(exitCode).toBe(3)
		for (const status of ["truncated", "lfs-pointer", "html", "zero-tail"]) expect(stdout).toContain(status)
		expect(stderr).toMatch(/2 ok.*; 4 not right\n$/)
	})
})

test("links are followed, broken ones and what is missing, empty, extra or of another size are named", async () => {
	await createManifest()
	const models = (name: string) => path("models/loras", `${name}.safetensors`)
	rmSync(models("whole"))
	symlinkSync("flipped.safetensors", models("link"))
	rmSync(models("truncated"))
	symlinkSync("nowhere", models("truncated"))
	writeFileSync(models("pointer"), "")
	appendFileSync(models("page"), "more")
	writeFileSync(path("models/loras/model.safetensors.index.json"), "{}")
	writeFileSync(path("models/loras/x.metadata"), "")
	for (const level of ["size", "structure"])
		expect(await verdicts("--manifest", "models.yaml", "--level", level)).toEqual({
			exitCode: 3,
			statuses: {
				whole: "missing",
				truncated: "broken-link",
				pointer: "empty",
				page: "size-mismatch",
				flipped: "ok",
				sparse: "ok",
				link: "extra",
			},
		})
})

test("extra files and missing models that are optional make nothing fail", async () => {
	writeFileSync(path("models.yaml"), "version: 1\nmodels:\n  - {path: vae/old.safetensors, optional: true}\n")
	const { exitCode, statuses } = await verdicts("--manifest", "models.yaml")
	expect({ exitCode, old: statuses["vae/old.safetensors"], whole: statuses["whole"] }).toEqual({
		exitCode: 0,
		old: "missing",
		whole: "extra",
	})
})

test("28 models of 200 GB are verified, a link that leads in a circle among their directories", async () => {
	rmSync(path("models"), { recursive: true })
	for (let index = 0; index < 28; index++)
		writeSparseModel(path(`models/vae/${index}.safetensors`), 7_150_000_000)
	symlinkSync("..", path("models/vae/up"))
	const { exitCode, statuses } = await verdicts("--level", "structure")
	expect(exitCode).toBe(0)
	expect(Object.values(statuses)).toEqual(Array(28).fill("ok"))
})

test("28 models of 200 GB are verified with less than 4 MiB read by the program", async () => {
	// Counted by the kernel, of every process that the command line starts.
	const counter = path("count.mjs")
	writeFileSync(
		counter,
		`import { appendFileSync, readFileSync } from "node:fs"
		process.on("exit", () => {
			const [, bytes] = /^rchar: (\\d+)/.exec(readFileSync("/proc/self/io", "latin1"))
			appendFileSync(process.env.COUNTED, bytes + "\\n")
		})`,
	)
	const readBytes = async (models: string) => {
		const counted = path(`${models}.count`)
		const { exitCode } = await run(process.execPath, [launcher, "verify-models", "--models", models], {
			workingDirectory: directory,
			environment: {
				PATH: process.env.PATH,
				HOME: directory,
				NODE_OPTIONS: `--import=${counter}`,
				COUNTED: counted,
			},
		})
		expect(exitCode).toBe(0)
		return readFileSync(counted, "utf8")
			.trim()
			.split("\n")
			.reduce((sum, line) => sum + Number(line), 0)
	}
	for (let index = 0; index < 28; index++)
		writeSparseModel(path(`many/vae/${index}.safetensors`), 7_150_000_000)
	writeSparseModel(path("one/vae/0.safetensors"), 7_150_000_000)
	const ofTwentySeven = (await readBytes("many")) - (await readBytes("one"))
	// Each has at least its first and its last kilobytes read.
	expect(ofTwentySeven).toBeGreaterThan(27 * 4096)
	expect((ofTwentySeven / 27) * 28).toBeLessThan(4 * 1024 * 1024)
})

test("directories that are all linked with each other are listed without walking them in every order", async () => {
	const kinds = ["checkpoints", "clip", "configs", "controlnet", "loras", "unet", "vae", "vae_approx"]
	for (const kind of kinds) {
		mkdirSync(path("linked", kind), { recursive: true })
		writeFileSync(path("linked", kind, "a.safetensors"), makeModel(100))
		for (const other of kinds) if (other !== kind) symlinkSync(`../${other}`, path("linked", kind, other))
	}
	const listed = await listFiles(path("linked"))
	expect(listed).toEqual(expect.arrayContaining(kinds.map((kind) => `${kind}/a.safetensors`)))
	// Each by every link that leads to it, and not the 109 600 ways there are.
	expect(listed).toContain("vae/loras/a.safetensors")
	expect(listed.length).toBeLessThan(200)
})

test("what healing has kept aside stands at the bottom of the table, its size in one note", async () => {
	for (const [name, sizeBytes] of [
		["a", 1000],
		["b", 24],
	] as const)
		writeFileSync(path(`models/loras/${name}.safetensors.bad-20261121T060000Z`), Buffer.alloc(sizeBytes, 1))
	await createManifest()
	const { exitCode, stdout, stderr } = await comfyume(
		...["verify-models", "--models", "models", "--manifest", "models.yaml"],
	)
	expect([exitCode, stderr]).toEqual([
		0,
		expect.stringContaining("note: 2 files that were replaced are kept as .bad-…: 1.0 KiB\n"),
	])
	const rows = stdout
		.trimEnd()
		.split("\n")
		.filter((line) => line.includes(".safetensors"))
	expect(rows.map((line) => line.includes(".bad-"))).toEqual([...Array(6).fill(false), true, true])
})

test("a share that isn't mounted is no success", async () => {
	mkdirSync(path("empty"))
	expect(await comfyume("verify-models", "--models", "empty")).toMatchObject({
		exitCode: 3,
		stderr: expect.stringContaining(`there is no model below ${path("empty")}\n  next: findmnt`),
	})
	expect(await comfyume("verify-models", "--models", "nowhere")).toMatchObject({
		exitCode: 2,
		stderr: expect.stringContaining("there is no directory of models"),
	})
})

describe("manifest", () => {
	test("create prints the same each time, and what check accepts", async () => {
		const text = await createManifest()
		expect(await createManifest()).toBe(text)
		expect(text.match(/blocks:/g)).toHaveLength(6)
		expect(await createManifest("--no-blocks")).not.toContain("blocks:")
		expect(await comfyume("manifest", "check", "--manifest", "models.yaml")).toMatchObject({
			exitCode: 0,
			stdout: "manifest is right: 6 models\n",
		})
	})

	test("create takes nothing that is damaged, and says so", async () => {
		damage()
		const { exitCode, stdout, stderr } = await comfyume("manifest", "create", "--models", "models")
		expect(exitCode).toBe(3)
		expect(stdout).not.toContain("pointer")
		expect(stderr).toContain("failed: left out loras/pointer.safetensors: lfs-pointer")
	})

	test("create and check take a custom node's directory, and warn of it", async () => {
		mkdirSync(path("models/ipadapter"))
		writeFileSync(path("models/ipadapter/x.safetensors"), makeModel(modelBytes, 9))
		const created = await comfyume("manifest", "create", "--models", "models")
		const warned = "warning: ipadapter/x.safetensors: ComfyUI itself doesn't know the directory ipadapter"
		expect(created).toMatchObject({ exitCode: 0, stderr: expect.stringContaining(warned) })
		expect(created.stdout).toContain("path: ipadapter/x.safetensors")
		writeFileSync(path("models.yaml"), created.stdout)
		expect(await comfyume("manifest", "check", "--manifest", "models.yaml")).toMatchObject({
			exitCode: 0,
			stderr: expect.stringContaining(warned),
		})
	})

	test("export is what the real sha256sum -c takes, and finds a flipped byte by", async () => {
		await createManifest()
		const { stdout } = await comfyume(
			"manifest",
			"export",
			"--format",
			"sha256sums",
			"--manifest",
			"models.yaml",
		)
		const check = () =>
			run("sha256sum", ["-c", "--strict", "-"], {
				stdin: stdout,
				workingDirectory: path("models"),
				allowedExitCodes: [1],
			})
		expect(await check()).toMatchObject({
			exitCode: 0,
			stdout: names
				.toSorted()
				.map((name) => `${name}: OK\n`)
				.join(""),
		})
		damage()
		const damaged = await check()
		expect(damaged.exitCode).toBe(1)
		expect(damaged.stdout).toContain("loras/flipped.safetensors: FAILED")
	})

	test("check says every problem, and everything else refuses a broken manifest", async () => {
		writeFileSync(
			path("models.yaml"),
			"version: 1\nmodels:\n  - path: ../x\n  - path: vae/x\n    sha256: no\n",
		)
		expect(await comfyume("manifest", "check", "--manifest", "models.yaml")).toMatchObject({
			exitCode: 2,
			stdout: expect.stringMatching(
				/models\.yaml:3 models\.0\.path\n.*climbs[\s\S]*models\.yaml:5 models\.1\.sha256/,
			),
		})
		for (const words of [
			["verify-models", "--models", "models"],
			["manifest", "export", "--format", "sha256sums"],
		])
			expect(await comfyume(...words, "--manifest", "models.yaml")).toMatchObject({
				exitCode: 2,
				stdout: "",
				stderr: expect.stringContaining("next: comfyume manifest check --manifest models.yaml"),
			})
		expect(await comfyume("manifest", "check", "--manifest", "nowhere.yaml")).toMatchObject({ exitCode: 2 })
	})

	test("a manifest or model paths that aren't there, or are no file, are refused with the command that looks", async () => {
		await run("mkfifo", [path("pipe")])
		const manifest = (file: string) => comfyume("manifest", "check", "--manifest", file)
		const modelPaths = (file: string) => comfyume("verify-models", "--model-paths", file)
		for (const check of [manifest, modelPaths]) {
			expect(await check("nowhere.yaml")).toMatchObject({
				exitCode: 2,
				stderr: expect.stringMatching(
					new RegExp(`${path("nowhere.yaml")} is not there\\n.*next: ls ${directory}\\n`),
				),
			})
			for (const no of ["pipe", "models"])
				expect(await check(no)).toMatchObject({
					exitCode: 2,
					stderr: expect.stringMatching(new RegExp(`is no regular file\\n.*next: ls -l ${path(no)}\\n`)),
				})
		}
	})

	test("check of the shipped manifest passes, and notes what is not known", async () => {
		expect(await comfyume("manifest", "check")).toMatchObject({
			exitCode: 0,
			stderr: expect.stringContaining("note: vae/flux2-vae.safetensors: not known: whether it is gated"),
		})
	})
})

describe("with --json every line is an event, and the last one says how it ended", () => {
	const events = async (...words: string[]) => {
		const { exitCode, stdout } = await comfyume("verify-models", "--json", ...words)
		const all = stdout
			.trimEnd()
			.split("\n")
			.map((line) => eventSchema.parse(JSON.parse(line)))
		const last = all.at(-1)
		expect(last).toMatchObject({ exitCode })
		return { exitCode, names: all.map(({ event }) => event), last }
	}

	test("of models, workflows and model paths of this machine", async () => {
		mkdirSync(path("workflows"))
		writeFileSync(path("workflows/a.json"), '{"nodes":[],"links":[]}')
		writeFileSync(path("paths.yaml"), "comfyui:\n  base_path: /srv\n  loras: loras\n")
		expect(await events("--models", "models", "--workflows", "workflows")).toMatchObject({
			exitCode: 0,
			names: [...Array(6).fill("model"), "workflow", "end"],
			last: { satisfied: 2, failed: 0 },
		})
		expect((await events("--model-paths", "paths.yaml")).names.at(-1)).toBe("end")
	})

	test("where it is impossible, and where there is nothing", async () => {
		mkdirSync(path("empty"))
		expect(await events("--models", "empty")).toMatchObject({
			exitCode: 3,
			names: ["note", "end"],
			last: { failed: 1, next: `findmnt --target ${path("empty")}` },
		})
		for (const words of [
			["--model-paths", "nowhere.yaml"],
			["--models", "nowhere"],
			["--workflows", "nowhere"],
			["--models", "models", "--manifest", "nowhere.yaml"],
		])
			expect(await events(...words)).toMatchObject({
				exitCode: 2,
				names: expect.arrayContaining(["error"]),
				last: { event: "error", hint: expect.any(String) },
			})
	})
})

test("help says a part of a day as a crontab takes it, and what belongs to --heal", async () => {
	const { stdout } = await comfyume("verify-models", "--help")
	const text = stdout.replace(/\s+/g, " ")
	expect(text).toContain("in a crontab: $(date +\\%u)/7")
	for (const flag of ["--dry-run", "--yes", "--limit <rate>"]) expect(text).toContain(`${flag} with --heal: `)
})

test.each([
	[["verify-models"]],
	[["manifest"]],
	[["manifest", "check"]],
	[["manifest", "create"]],
	[["manifest", "export"]],
])("the help of %s ends with its exit codes", async (words) => {
	const { exitCode, stdout } = await comfyume(...words, "--help")
	expect(exitCode).toBe(0)
	expect(stdout).toMatch(/\nExit status:\n( +\d+ {2}.*\n)+$/)
})
