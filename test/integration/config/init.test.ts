// `comfyume init` as it is met: on a real terminal of 80 and of 40 columns, and with options alone.
import { type ChildProcessWithoutNullStreams, execFile, spawn } from "node:child_process"
import { mkdtemp, readdir, readFile, realpath, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { stripVTControlCharacters } from "node:util"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { parse } from "yaml"

const cli = fileURLToPath(new URL("../../../src/cli.ts", import.meta.url))
let directory = ""
let opened: Terminal[] = []

beforeEach(async () => {
	directory = await realpath(await mkdtemp(join(tmpdir(), "comfyume-init-")))
	opened = []
})
afterEach(async () => {
	for (const { child } of opened) child.kill("SIGKILL")
	await rm(directory, { recursive: true, force: true })
})

const variables = () => ({ PATH: process.env.PATH ?? "", HOME: directory, TERM: "xterm" })

function comfyume(...words: string[]): Promise<{ exitCode: number; stdout: string; stderr: string }> {
	return new Promise((resolve) => {
		execFile(
			process.execPath,
			[cli, ...words],
			{ cwd: directory, env: variables() },
			(error, stdout, stderr) =>
				resolve({ exitCode: error === null ? 0 : Number(error.code), stdout, stderr }),
		)
	})
}

type Terminal = {
	child: ChildProcessWithoutNullStreams
	seen(): string
	/** Waits until it is asked, and types. */
	type(keys: string): Promise<void>
	ended: Promise<number | null>
}

/** `script` makes the terminal; what is written to it is typed. */
function terminal(columns: number, ...words: string[]): Terminal {
	const line = `stty cols ${columns} rows 50; exec '${process.execPath}' '${cli}' init ${words.join(" ")}`
	const child = spawn("/usr/bin/script", ["-qec", line, "/dev/null"], { cwd: directory, env: variables() })
	let seen = ""
	let read = 0
	child.stdout.setEncoding("utf8").on("data", (text: string) => {
		seen += text
	})
	const ended = new Promise<number | null>((resolve) => child.once("close", resolve))
	const asked = () =>
		new Promise<void>((resolve, reject) => {
			const look = () => {
				if (!seen.slice(read).endsWith("> ")) return
				read = seen.length
				child.stdout.off("data", look)
				resolve()
			}
			child.stdout.on("data", look)
			void ended.then(() => reject(new Error(`it ended before it asked:\n${seen}`)))
			look()
		})
	const made: Terminal = {
		child,
		seen: () => stripVTControlCharacters(seen).replaceAll("\r", ""),
		type: async (keys) => {
			await asked()
			child.stdin.write(keys)
		},
		ended,
	}
	opened.push(made)
	return made
}

const project = "https://github.com/example/project.git"
const scripts = "https://github.com/example/scripts.git"
const mount = "sudo mount -t nfs -o nconnect=16 nfs.example.test:/share /mnt/sfs"
const necessary = [
	...["--env", "production", "--domain", "workshop.example.test", "--address", "203.0.113.10"],
	...["--project-remote", project, "--scripts-remote", scripts],
]

// One line per question; what is refused is asked for again.
const typed = [
	...["production", "https://workshop.example.test/", "workshop.example.test"],
	...["", "", "203.0.113.10", "", "", ""],
	...["mount /dev/vdb /mnt/sfs", mount, "/dev/vdb", "", "0123456789abcdef0123456789abcdef"],
	...["", "", "none", "", ""],
	...["", project, "", "", scripts, "", ""],
	...["twenty", "12", "", "serverless", ""],
]

describe.each([80, 40])("on a terminal of %d columns", (columns) => {
	test("every question is asked until its answer is right, and the file is what was answered", async () => {
		const { type, ended, seen } = terminal(columns)
		for (const line of typed) await type(`${line}\n`)
		expect(await ended, seen()).toBe(0)
		const shown = seen()
		for (const said of [
			'domain: "https://workshop.example.test/" is not a domain name fix: write it without https://',
			"mounts /dev/vdb, which is not host:/path fix: write host:/path",
			'must be a number, not "twenty"',
			"R2_ACCESS_KEY_ID",
			"comfyume config check",
			"comfyume doctor --env production",
		])
			expect(shown.replaceAll(/\s+/g, " ")).toContain(said)
		const written = parse(await readFile(join(directory, "comfyume.yaml"), "utf8")).environments.production
		expect(written).toMatchObject({
			domain: "workshop.example.test",
			hosts: [{ name: "app-1", role: "app", address: "203.0.113.10" }],
			share: { mount },
			scratch: { device: "/dev/vdb", path: "/mnt/scratch" },
			git: { project: { remote: project }, scripts: { remote: scripts } },
			stack: { users: 12, inferenceMode: "serverless" },
		})
		expect(Object.keys(written.objectStore.buckets)).toEqual(["cache", "models", "userFiles"])
		expect((await comfyume("config", "check")).stdout).toBe("configuration is right: 1 environment, 1 host\n")
		// Commands stay whole, to be copied; everything else is broken at the terminal's width.
		const talk = shown.split("\n").filter((line) => !/^ {2}(comfyume|install) |> /.test(line))
		for (const line of talk) expect(line.length, line).toBeLessThanOrEqual(columns)
	})
})

test("what options answer isn't asked, and a wrong one is asked for", async () => {
	const { type, ended, seen } = terminal(
		80,
		...necessary.slice(4),
		"--env",
		"Production",
		"--domain",
		"a.example.test",
	)
	await type("production\n")
	// From here on what is usual.
	for (let asked = 0; asked < 17; asked++) await type("\n")
	expect(await ended, seen()).toBe(0)
	expect(seen()).toMatch(/--env: is not an environment's name/)
	expect(seen()).not.toMatch(/^(domain|address of the host):/m)
})

test("Ctrl-C leaves nothing, and says how to go on without answering twice", async () => {
	const { type, ended, seen } = terminal(80)
	await type("production\n")
	await type("workshop.example.test\n")
	await type("\u0003")
	expect(await ended).toBe(130)
	expect(seen()).toContain("stopped: nothing was written")
	expect(seen()).toContain("next: comfyume init --env production --domain workshop.example.test\n")
	expect(await readdir(directory)).toEqual([])
})

test("a file that somebody else has put there meanwhile is left as it is (8)", async () => {
	const { type, ended, seen } = terminal(80, ...necessary, "--mount none --r2-account none --recipients none")
	await type("\n")
	await writeFile(join(directory, "comfyume.yaml"), "mine\n")
	for (let asked = 0; asked < 13; asked++) await type("\n")
	expect(await ended, seen()).toBe(8)
	expect(await readFile(join(directory, "comfyume.yaml"), "utf8")).toBe("mine\n")
	expect(await readdir(directory)).toEqual(["comfyume.yaml"])
})

test("the end of input leaves nothing", async () => {
	const { type, ended, seen } = terminal(80)
	await type("production\n")
	await type("\u0004")
	expect(await ended).toBe(2)
	expect(seen()).toContain("nothing was written")
	expect(await readdir(directory)).toEqual([])
})

describe("without a terminal", () => {
	test("options alone write a file that is right, and stdout has nothing", async () => {
		const ended = await comfyume("init", ...necessary, "--mount", mount)
		expect(ended).toMatchObject({ exitCode: 0, stdout: "" })
		expect(ended.stderr).toContain(`wrote ${directory}/comfyume.yaml`)
		expect(ended.stderr).toContain(`GH_TOKEN: ${project}`)
		expect(ended.stderr).toContain(`install -m 600 /dev/null ${directory}/secrets.env`)
		expect((await comfyume("config", "check")).exitCode).toBe(0)
		expect(await readdir(directory)).toEqual(["comfyume.yaml"])
	})

	test("what is missing is named at once, and nothing is written", async () => {
		const { exitCode, stderr } = await comfyume("init", "--domain", "workshop.example.test")
		expect(exitCode).toBe(2)
		expect(stderr).toContain("--env, --address, --project-remote, --scripts-remote must be said")
		expect(await readdir(directory)).toEqual([])
	})

	test("a file that is there is left as it is (8)", async () => {
		await writeFile(join(directory, "comfyume.yaml"), "mine\n")
		const { exitCode, stderr } = await comfyume("init", ...necessary)
		expect(exitCode).toBe(8)
		expect(stderr).toMatch(/is there already.*\n {2}next: .*comfyume init --print/)
		expect(await readFile(join(directory, "comfyume.yaml"), "utf8")).toBe("mine\n")
	})

	test.each(["--print", "--dry-run"])("%s writes nothing but to stdout", async (flag) => {
		const { exitCode, stdout } = await comfyume("init", ...necessary, flag)
		expect(exitCode).toBe(0)
		expect(Object.keys(parse(stdout).environments)).toEqual(["production"])
		expect(await readdir(directory)).toEqual([])
	})

	test("a further environment is printed to be added, and the file is right with it", async () => {
		expect((await comfyume("init", ...necessary)).exitCode).toBe(0)
		const file = join(directory, "comfyume.yaml")
		const before = await readFile(file, "utf8")
		const staging = ["--env", "staging", "--domain", "staging.example.test"]
		const { exitCode, stdout } = await comfyume("init", "--print", ...necessary.slice(4), ...staging)
		expect([exitCode, await readFile(file, "utf8")]).toEqual([0, before])
		await writeFile(file, `${before}\n${stdout}`)
		expect((await comfyume("config", "check")).stdout).toBe(
			"configuration is right: 2 environments, 2 hosts\n",
		)
		const twice = await comfyume("init", "--print", ...necessary)
		expect(twice.exitCode).toBe(2)
		expect(twice.stderr).toContain("production stands in")
	})

	test("secrets that are there are not to be made anew, and another file is named in what to type", async () => {
		await writeFile(join(directory, "secrets.env"), "", { mode: 0o600 })
		const { stderr } = await comfyume("init", ...necessary, "--output", "other.yaml")
		expect(stderr).not.toContain("install -m 600")
		expect(stderr).toContain(`comfyume doctor --env production --config ${directory}/other.yaml`)
	})

	test("a directory that isn't there is told before anything is asked", async () => {
		const { exitCode, stderr } = await comfyume("init", "--output", "nowhere/comfyume.yaml")
		expect([exitCode, stderr]).toEqual([2, expect.stringContaining(`mkdir -p ${directory}/nowhere`)])
	})
})

test("where there is no configuration, the next thing to type is init", async () => {
	const { exitCode, stderr } = await comfyume("restore", "--env", "production")
	expect([exitCode, stderr]).toEqual([2, expect.stringContaining("next: comfyume init")])
})
