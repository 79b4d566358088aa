// `comfyume config` as a shell sees it: exit codes, and what goes to stdout and to stderr.
import { execFile } from "node:child_process"
import { cp, mkdir, mkdtemp, readFile, realpath, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { parse } from "yaml"

const root = fileURLToPath(new URL("../../..", import.meta.url))
let directory = ""

beforeEach(async () => {
	directory = await realpath(await mkdtemp(join(tmpdir(), "comfyume-config-")))
	await cp(join(root, "templates/comfyume.yaml"), join(directory, "comfyume.yaml"))
})

afterEach(() => rm(directory, { recursive: true, force: true }))

type Ended = { exitCode: number; stdout: string; stderr: string }

function comfyume(
	parameters: readonly string[],
	variables: Readonly<Record<string, string>> = {},
): Promise<Ended> {
	const options = { cwd: directory, env: { PATH: process.env.PATH, HOME: directory, ...variables } }
	return new Promise((resolve) => {
		execFile(
			process.execPath,
			[join(root, "src/cli.ts"), ...parameters],
			options,
			(error, stdout, stderr) => {
				resolve({ exitCode: error === null ? 0 : Number(error.code), stdout, stderr })
			},
		)
	})
}

const secrets = {
	R2_ACCESS_KEY_ID: "access-key-value",
	R2_SECRET_ACCESS_KEY: "secret-key-value",
	GH_TOKEN: "token-value",
	HEALTHCHECKS_PING_KEY: "ping-key-value",
	NTFY_TOPIC: "topic-value",
}

describe("config check", () => {
	test("says that the example is right, and counts", async () => {
		expect(await comfyume(["config", "check"], secrets)).toEqual({
			exitCode: 0,
			stdout: "configuration is right: 4 environments, 4 hosts\n",
			stderr: "",
		})
	})

	test("notes missing secrets of the environment without failing", async () => {
		const { GH_TOKEN: _, ...others } = secrets
		expect(await comfyume(["config", "check", "--env", "staging"], others)).toMatchObject({
			exitCode: 0,
			stdout: "configuration is right: 1 environment, 1 host\n",
			stderr: expect.stringMatching(
				/^note: staging needs GH_TOKEN for https:\S+ and https:\S+; it is not set here\n$/,
			),
		})
	})

	test("reports every problem with place, path and fix, and ends with 2", async () => {
		const example = await readFile(join(directory, "comfyume.yaml"), "utf8")
		const broken = example
			.replace("role: app #", "role: apq #")
			.replace(".eu.r2.cloudflarestorage.com\n", ".r2.cloudflarestorage.com.eu\n")
		await writeFile(join(directory, "comfyume.yaml"), broken)
		const { exitCode, stdout, stderr } = await comfyume(["config", "check"], secrets)
		expect(exitCode).toBe(2)
		expect(stdout).toContain(
			`${directory}/comfyume.yaml:13:9 environments.production.hosts[0].role\n  must be app or worker, not "apq"\n  fix: did you mean app?\n`,
		)
		expect(stdout).toMatch(
			/buckets\.cache\.endpoint\n {2}has \.eu at the end.*\n {2}fix: write https:.*\.eu\.r2\.cloudflarestorage\.com\n/,
		)
		// staging and testing take the same bucket by its anchor.
		expect(stderr).toBe("4 problems\n")
	})

	test("ends with 2 for an environment that is none, and says which was meant", async () => {
		expect(await comfyume(["config", "check", "--env", "prodution"], secrets)).toEqual({
			exitCode: 2,
			stdout: "",
			stderr:
				"comfyume: --env names the environment prodution; there are production, staging, testing, sandbox\n  next: did you mean --env production?\n",
		})
	})

	test("ends with 2 where there is no configuration", async () => {
		expect(await comfyume(["config", "check", "--config", "nowhere.yaml"])).toMatchObject({
			exitCode: 2,
			stderr: expect.stringContaining(`there is no configuration at ${directory}/nowhere.yaml`),
		})
	})

	test("ends with 2 for secrets that others can read", async () => {
		await writeFile(join(directory, "secrets.env"), "GH_TOKEN=token-value\n", { mode: 0o644 })
		const { exitCode, stderr } = await comfyume(["config", "check"])
		expect(exitCode).toBe(2)
		expect(stderr).toContain(`next: chmod 600 ${directory}/secrets.env`)
		expect(stderr).not.toContain("token-value")
	})
})

describe("config show", () => {
	test("gives the effective configuration, says where each secret is, and shows none", async () => {
		await writeFile(join(directory, "secrets.env"), "GH_TOKEN=token-value\n", { mode: 0o600 })
		const { GH_TOKEN: _, ...others } = secrets
		const { exitCode, stdout, stderr } = await comfyume(["config", "show", "--env", "staging"], others)
		expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" })
		expect(parse(stdout)).toMatchObject({
			configuration: `${directory}/comfyume.yaml`,
			environments: { staging: { user: "dev", hosts: [{ name: "staging-1", port: 22, user: "root" }] } },
			secrets: {
				GH_TOKEN: { found: `${directory}/secrets.env:1` },
				R2_ACCESS_KEY_ID: { found: "the environment variable R2_ACCESS_KEY_ID" },
				TAILSCALE_API_KEY: { found: "missing" },
			},
		})
		for (const value of Object.values(secrets)) expect(stdout).not.toContain(value)
	})

	test("gives the same as JSON", async () => {
		const yaml = await comfyume(["config", "show"], secrets)
		const json = await comfyume(["config", "show", "--json"], secrets)
		expect(JSON.parse(json.stdout)).toEqual(parse(yaml.stdout))
	})
})

test("config schema prints the schema that lies beside the example", async () => {
	const { stdout } = await comfyume(["config", "schema"])
	expect(stdout).toBe(await readFile(join(root, "templates/comfyume.schema.json"), "utf8"))
})

test.each([[["config"]], [["config", "check"]], [["config", "show"]]])(
	"the help of %s ends with its exit codes",
	async (command) => {
		const { exitCode, stdout } = await comfyume([...command, "--help"])
		expect(exitCode).toBe(0)
		expect(stdout.trimEnd().split("\n").slice(-3)).toEqual([
			"Exit status:",
			"    0  done",
			"    2  usage or configuration",
		])
	},
)

test("secrets that lie in the kernel's keyring are found there, and not shown", async () => {
	// keyctl is played: a keyring of its own for each test needs more rights than a test has everywhere.
	const bin = join(directory, "bin")
	await mkdir(bin)
	const played = `#!/bin/sh
case "$*" in --version) ;; "search @u user comfyume:GH_TOKEN") echo 42 ;; "pipe 42") printf made-up-token ;; *) echo "Required key not available" >&2; exit 1 ;; esac
`
	await writeFile(join(bin, "keyctl"), played, { mode: 0o755 })
	const variables = { PATH: `${bin}:${process.env.PATH}` }
	const { stdout } = await comfyume(["config", "show", "--env", "staging", "--json"], variables)
	expect(JSON.parse(stdout).secrets.GH_TOKEN.found).toBe("the kernel keyring")
	expect(stdout).not.toContain("made-up-token")
	const { stderr } = await comfyume(["config", "check", "--env", "staging"], variables)
	expect(stderr).toContain("needs R2_ACCESS_KEY_ID")
	expect(stderr).not.toContain("GH_TOKEN")
})
