// Checkouts in backups and restores: what a restore must never lose, and what it must never guess.
import { execFileSync } from "node:child_process"
import {
	chmodSync,
	existsSync,
	mkdirSync,
	readdirSync,
	readFileSync,
	renameSync,
	rmSync,
	truncateSync,
	writeFileSync,
} from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { placeCheckout } from "../../../src/lib/artifacts/git.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { createSandbox, type Sandbox } from "../../support/sandbox.ts"
import { pushCommit } from "../../support/server-files.ts"

const only = ["project"]

let sandbox: Sandbox
let server: string
let project: string
beforeEach(async () => {
	sandbox = await createSandbox()
	server = await sandbox.fillServer()
	project = join(server, "home/dev/project")
})
afterEach(() => sandbox[Symbol.dispose]())

const git = (directory: string, ...args: string[]) =>
	execFileSync("git", ["-C", directory, "-c", "user.name=A", "-c", "user.email=a@example.test", ...args], {
		encoding: "utf8",
		stdio: ["ignore", "pipe", "pipe"],
	}).trim()
const head = (directory = project) => git(directory, "rev-parse", "HEAD")
const commitWork = (text: string) => {
	writeFileSync(join(project, "work.txt"), text)
	git(project, "add", "-A")
	git(project, "commit", "-q", "-m", text)
	return head()
}
const notes = (place: string) =>
	readdirSync(join(place, "sandbox/project")).map((name) => join(place, "sandbox/project", name))
const said = ({ events }: { events: unknown[] }) => JSON.stringify(events, null, 1)

test("commits that were never pushed are not thrown away by a restore", async () => {
	await sandbox.backup(server, { only })
	const mine = commitWork("a day's work")
	const ran = await sandbox.restore(server, { only })
	expect(ran.exitCode, said(ran)).toBe(8)
	expect(said(ran)).toContain(mine.slice(0, 12))
	expect(head()).toBe(mine)
})

test("commits on the branch that were never pushed are kept when something else is checked out", async () => {
	await sandbox.backup(server, { only })
	const mine = commitWork("a day's work")
	git(project, "checkout", "-q", "--detach", "HEAD~1")
	sandbox.environment.git.project.commit = pushCommit(sandbox.remote, "newer")
	expect((await sandbox.restore(server, { only })).exitCode).toBe(8)
	expect(git(project, "rev-parse", "main")).toBe(mine)
})

test("a git status that fails is not taken for a clean checkout", async () => {
	writeFileSync(join(project, "docker-compose.yml"), "changed: {}\n")
	writeFileSync(join(project, ".git/index"), "garbage")
	const ran = await sandbox.backup(server, { only })
	expect(ran.exitCode, said(ran)).toBe(3)
	expect(existsSync(join(sandbox.share, "sandbox/project"))).toBe(false)
})

describe("the tip of the branch", () => {
	test("is not taken when the noted commits can't be read", async () => {
		await sandbox.backup(server, { only })
		for (const place of [sandbox.share, sandbox.second])
			for (const note of notes(place)) truncateSync(note, 10)
		const fresh = await sandbox.freshServer("fresh")
		const ran = await sandbox.restore(fresh, { only })
		expect(ran.exitCode, said(ran)).toBe(3)
		expect(existsSync(join(fresh, "home/dev/project"))).toBe(false)
	})

	test("is not taken when a source gives no answer and the others know nothing", async () => {
		renameSync(sandbox.second, `${sandbox.second}.gone`)
		const fresh = await sandbox.freshServer("fresh")
		const ran = await sandbox.restore(fresh, { only })
		expect(ran.exitCode, said(ran)).not.toBe(0)
		expect(said(ran)).toMatch(/r2: .*pin `commit:`/s)
		expect(existsSync(join(fresh, "home/dev/project"))).toBe(false)
	})

	test("is taken in a first deployment, and said", async () => {
		const fresh = await sandbox.freshServer("fresh")
		const ran = await sandbox.restore(fresh, { only, at: new Date("2026-11-21T06:00:00Z") })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(ran.notes.join()).toMatch(/tip of main/)
	})
})

describe("a run that was killed while it moved a checkout", () => {
	/** Stands at `from`; wanted is `target`, which adds a file. */
	const stop = () => {
		const from = head()
		const target = pushCommit(sandbox.remote, "newer\n".repeat(100))
		git(project, "fetch", "-q")
		sandbox.environment.git.project.commit = target
		writeFileSync(join(project, ".git/index.lock"), "")
		git(project, "update-ref", "refs/comfyume/from", from)
		git(project, "update-ref", "refs/comfyume/target", target)
		return { from, target }
	}

	test("before it wrote anything is finished by the next one", async () => {
		const { target } = stop()
		const ran = await sandbox.restore(server, { only })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(head()).toBe(target)
		expect(git(project, "for-each-ref", "refs/comfyume")).toBe("")
	})

	test("in the middle of a file is finished by the next one, and untracked files stay", async () => {
		const { target } = stop()
		writeFileSync(join(project, "notes.txt"), "newer\nnew")
		const environment = readFileSync(join(project, ".env"), "utf8")
		const ran = await sandbox.restore(server, { only })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(head()).toBe(target)
		expect(git(project, "status", "--short")).toBe("")
		expect(readFileSync(join(project, ".env"), "utf8")).toBe(environment)
	})

	test("isn't finished over a file that somebody wrote since", async () => {
		const { from } = stop()
		writeFileSync(join(project, "notes.txt"), "somebody's own")
		const ran = await sandbox.restore(server, { only })
		expect(ran.exitCode, said(ran)).toBe(8)
		expect(said(ran)).toContain("notes.txt")
		expect(head()).toBe(from)
		expect(readFileSync(join(project, "notes.txt"), "utf8")).toBe("somebody's own")
	})
})

test("a clone that fails leaves what stood there where it was", async () => {
	await sandbox.backup(server, { only })
	git(project, "remote", "set-url", "origin", `${sandbox.remote}/../other.git`)
	renameSync(sandbox.remote, `${sandbox.remote}.gone`)
	const ran = await sandbox.restore(server, { only })
	expect(ran.exitCode, said(ran)).toBe(3)
	expect(existsSync(join(project, "docker-compose.yml"))).toBe(true)
})

test("a checkout at its commit whose files are gone is named", async () => {
	await sandbox.backup(server)
	rmSync(join(project, "docker-compose.yml"))
	const ran = await sandbox.restore(server, { only })
	expect(ran.exitCode, said(ran)).toBe(3)
	expect(ran.notes.join()).toContain("docker-compose.yml")
})

test("a hook in the user's checkout is not run and gets no token", async () => {
	const hook = join(project, ".git/hooks/post-checkout")
	const stolen = join(sandbox.directory, "stolen")
	writeFileSync(hook, `#!/bin/sh\nprintf %s "token:$COMFYUME_GIT_TOKEN" >${stolen}\n`)
	chmodSync(hook, 0o755)
	const commit = pushCommit(sandbox.remote, "newer")
	const { host } = await sandbox.context(server, ["share"])
	const checkout = { path: "/home/dev/project", remote: sandbox.remote, branch: "main", user: "root" }
	await placeCheckout(host, checkout, commit, { token: new Secret("made-up"), scratch: "0a1b2c3d" })
	expect(head()).toBe(commit)
	expect(existsSync(stolen)).toBe(false)
})

test("what somebody calls project.mine.partial stays, and a dead run's clone goes", async () => {
	await sandbox.backup(server, { only })
	rmSync(project, { recursive: true })
	for (const name of ["mine", "0a1b2c3d"]) mkdirSync(`${project}.${name}.partial`)
	await sandbox.restore(server, { only })
	expect(readdirSync(join(server, "home/dev")).filter((name) => name.endsWith(".partial"))).toEqual([
		"project.mine.partial",
	])
})

test("the note of a commit names the branch that it stood on, and the backup warns", async () => {
	git(project, "checkout", "-q", "-b", "hotfix")
	commitWork("a hotfix")
	git(project, "push", "-q", "origin", "hotfix")
	const ran = await sandbox.backup(server, { only })
	expect(ran.exitCode, said(ran)).toBe(3)
	expect(ran.notes.join()).toMatch(/branch hotfix, not on main/)
	const [note = ""] = notes(sandbox.share)
	expect(JSON.parse(readFileSync(note, "utf8")).branch).toBe("hotfix")
})
