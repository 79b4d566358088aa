// The git hosting of the test world, asked by real git.
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { type GitServer, type GitServerMode, startGitServer } from "../../support/git-server.ts"
import { describeWith } from "../../support/parts.ts"
import { run } from "../../support/run.ts"

describeWith("git", "a private git hosting", () => {
	const token = "made-up-token-0123456789"
	let scratch: string
	let server: GitServer

	beforeEach(async () => {
		scratch = await mkdtemp(join(tmpdir(), "comfyume-git-"))
		const identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.test"]
		await run("git", ["init", "--quiet", "--bare", "--initial-branch=main", join(scratch, "stack.git")])
		await run("git", ["clone", "--quiet", join(scratch, "stack.git"), join(scratch, "work")])
		await writeFile(join(scratch, "work/compose.yaml"), "services: {}\n")
		await run("git", ["-C", join(scratch, "work"), "add", "."])
		await run("git", ["-C", join(scratch, "work"), ...identity, "commit", "--quiet", "--message=First"])
		await run("git", ["-C", join(scratch, "work"), "push", "--quiet", "origin", "HEAD:main"])
		server = await startGitServer({ repositories: scratch, token })
	})

	afterEach(async () => {
		await server[Symbol.asyncDispose]()
		await rm(scratch, { recursive: true })
	})

	// The token reaches git through a credential helper, which reads it from the environment.
	const git = (shown: string | undefined, ...args: string[]) =>
		run(
			"git",
			["-c", 'credential.helper=!f() { echo username=x-access-token; echo "password=$TOKEN"; }; f', ...args],
			{
				environment: {
					PATH: process.env.PATH,
					HOME: scratch,
					LC_ALL: "C.UTF-8",
					GIT_TERMINAL_PROMPT: "0",
					...(shown === undefined ? {} : { TOKEN: shown }),
				},
				allowedExitCodes: "any",
			},
		)

	test("lets the token clone and push, and never sees it in a URL", async () => {
		const clone = await git(token, "clone", "--quiet", `${server.url}/stack.git`, join(scratch, "clone"))
		expect(clone).toMatchObject({ exitCode: 0 })
		expect(await readFile(join(scratch, "clone/compose.yaml"), "utf8")).toBe("services: {}\n")
		const push = await git(
			token,
			"-C",
			join(scratch, "clone"),
			"push",
			"--quiet",
			"origin",
			"HEAD:refs/heads/next",
		)
		expect(push).toMatchObject({ exitCode: 0 })
		const branches = await run("git", ["-C", join(scratch, "stack.git"), "branch", "--list", "next"])
		expect(branches.stdout.trim()).toBe("next")
		expect(server.requests.length).toBeGreaterThan(3)
		for (const { url } of server.requests) expect(decodeURIComponent(url)).not.toContain(token)
		expect(server.requests.some(({ authorization }) => authorization?.startsWith("Basic "))).toBe(true)
	})

	test("refuses a wrong token", async () => {
		const { exitCode, stderr } = await git("another", "ls-remote", `${server.url}/stack.git`)
		expect({ exitCode, stderr }).toMatchObject({
			exitCode: 128,
			stderr: expect.stringContaining("Authentication failed"),
		})
	})

	const answers: readonly [GitServerMode, RegExp][] = [
		["expired", /Invalid username or token[\s\S]*Authentication failed/],
		["no-access", /Repository not found\.[\s\S]*not found/],
		["no-scope", /SAML SSO[\s\S]*403/],
		["unavailable", /503/],
	]
	test.each(answers)("answers a good token as GitHub would when it is %s", async (mode, said) => {
		server.mode = mode
		const { exitCode, stderr } = await git(token, "ls-remote", `${server.url}/stack.git`)
		expect(exitCode).toBe(128)
		expect(stderr).toMatch(said)
	})

	test("refuses connections while it is down, and is back at the same place", async () => {
		await server.stop()
		const down = await git(token, "ls-remote", `${server.url}/stack.git`)
		expect(down.stderr).toMatch(/Failed to connect|Couldn't connect|Connection refused/)
		await server.start()
		expect(await git(token, "ls-remote", `${server.url}/stack.git`)).toMatchObject({ exitCode: 0 })
	})
})
