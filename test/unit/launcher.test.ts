// bin/comfyume.js in made-up installations. An old Node is played by this one with another version number.
import { spawn, spawnSync } from "node:child_process"
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { transform } from "esbuild"
import { afterEach, beforeEach, describe, expect, it } from "vitest"

const launcher = fileURLToPath(new URL("../../bin/comfyume.js", import.meta.url))
let directory: string

beforeEach(async () => {
	directory = await mkdtemp(join(tmpdir(), "comfyume-launcher-"))
	await mkdir(join(directory, "bin"))
	await copyFile(launcher, join(directory, "bin/comfyume.js"))
	await put("package.json", '{"type":"module"}')
	await put(
		"old.cjs",
		'Object.defineProperty(process, "versions", { value: { ...process.versions, node: process.env.PLAYED } })',
	)
})
afterEach(() => rm(directory, { recursive: true, force: true }))

async function put(path: string, content: string, mode = 0o644): Promise<void> {
	await mkdir(join(directory, path, ".."), { recursive: true })
	await writeFile(join(directory, path), content, { mode })
}

const argv = (...words: string[]) => [
	"--require",
	join(directory, "old.cjs"),
	join(directory, "bin/comfyume.js"),
	...words,
]
// `24.1.0`, or `22.15.0 no`: a Node that doesn't read TypeScript.
const run = (played: string, ...words: string[]) => {
	const [version, typescript] = played.split(" ")
	const flags = typescript === "no" ? ["--no-experimental-strip-types"] : []
	return spawnSync(process.execPath, [...flags, ...argv(...words)], {
		encoding: "utf8",
		env: { ...process.env, PLAYED: version },
	})
}
const pinnedNode = (script: string) =>
	put(`node_modules/node-linux-${process.arch}/bin/node`, `#!/bin/sh\n${script}\n`, 0o755)

describe("the launcher", () => {
	it("is JavaScript that Node 12 can read", async () => {
		const source = await readFile(launcher, "utf8")
		const plain = await transform(source, { target: "esnext" })
		expect(
			(
				await transform(source, {
					target: "es2019",
					supported: { "dynamic-import": true, "import-meta": true },
				})
			).code,
		).toBe(plain.code)
		// The prefix came with 12.20 and 14.13; a missing module would end an older Node without a word of ours.
		expect(source).not.toMatch(/from "node:/)
	})

	it("takes the sources of a clone, however stale a build lies beside them", async () => {
		await put(
			"src/cli.ts",
			'const said: string = "source"; console.log(said, process.argv.slice(2).join("|"))',
		)
		await put("dist/cli/cli.js", 'console.log("build")')
		expect(run("24.1.0", "a b", "--c").stdout).toBe("source a b|--c\n")
	})

	it("takes the build where there are no sources", async () => {
		await put("dist/cli/cli.js", 'console.log("build", process.argv[2]); process.exitCode = 3')
		expect(run("22.15.0 no", "x")).toMatchObject({ stdout: "build x\n", status: 3 })
	})

	it("hands over to the pinned Node, with arguments and exit code, when this one is too old", async () => {
		await put("dist/cli/cli.js", "")
		await pinnedNode('echo "pinned $@"; exit 6')
		for (const old of ["12.22.12 no", "20.20.2 no", "22.14.0 no"]) {
			const { stdout, status } = run(old, "restore", "--env", "two words")
			expect([stdout, status]).toEqual([`pinned ${directory}/dist/cli/cli.js restore --env two words\n`, 6])
		}
	})

	it("hands over when this Node can't read the TypeScript of a clone", async () => {
		await put("src/cli.ts", 'console.log("read here")')
		await pinnedNode('echo "pinned $1"')
		expect(run("22.15.0 no").stdout).toBe(`pinned ${directory}/src/cli.ts\n`)
		expect(run("22.18.0").stdout).toBe("read here\n")
	})

	it("says what to install when there is no Node to hand over to", async () => {
		await put("dist/cli/cli.js", "")
		const { status, stderr } = run("18.20.0 no")
		expect([status, stderr]).toEqual([
			2,
			expect.stringMatching(/Node 18\.20\.0 is too old[\s\S]*next: npm ci/),
		])
	})

	it("says that it must be built when there is nothing to run", () => {
		expect(run("24.1.0")).toMatchObject({ status: 2, stderr: expect.stringContaining("npm run build") })
	})

	it.each([
		[
			"passes a signal on and ends with the exit code of the other",
			// Ends by itself after 10 s: a program that nobody stops would keep the whole suite from ending.
			"trap 'exit 143' TERM; echo up; n=0; while [ $n -lt 200 ]; do sleep 0.05; n=$((n+1)); done",
			143,
			null,
		],
		["ends by the signal that ended the other", "kill -KILL $$", null, "SIGKILL"],
	])("%s", async (_, script, exitCode, signal) => {
		await put("dist/cli/cli.js", "")
		await pinnedNode(script)
		const child = spawn(process.execPath, argv(), {
			env: { ...process.env, PLAYED: "20.0.0" },
			stdio: ["ignore", "pipe", "inherit"],
		})
		const ended = new Promise((resolve) => child.once("exit", (...how) => resolve(how)))
		child.stdout.once("data", () => child.kill("SIGTERM"))
		expect(await ended).toEqual([exitCode, signal])
	})
})
