// Ways in which a run could say that all is well although it isn't. Each was found by somebody who tried to break it.
import { execFileSync } from "node:child_process"
import {
	existsSync,
	lstatSync,
	mkdirSync,
	readdirSync,
	readFileSync,
	rmSync,
	symlinkSync,
	truncateSync,
	writeFileSync,
} from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { createSandbox, flipBit, type Sandbox } from "../../support/sandbox.ts"

let sandbox: Sandbox
beforeEach(async () => {
	sandbox = await createSandbox()
})
afterEach(() => sandbox[Symbol.dispose]())

const files = (directory: string, artifact: string, ending: string) =>
	readdirSync(join(directory, "sandbox", artifact))
		.filter((name) => name.endsWith(ending))
		.map((name) => join(directory, "sandbox", artifact, name))
		.sort()
/** What a run said, for the message of a failing test. */
const said = ({ events }: { events: readonly object[] }) => JSON.stringify(events)

test("a file whose name is not UTF-8 is at least said to be left out", async () => {
	const server = await sandbox.fillServer()
	execFileSync("sh", [
		"-c",
		`printf important > "$(printf '${server}/home/dev/Gr\\374n.txt')"; mkdir "$(printf '${server}/home/dev/d\\374r')"; echo x > "$(printf '${server}/home/dev/d\\374r/inside.txt')"`,
	])
	const ran = await sandbox.backup(server, { only: ["home"] })
	expect(ran.notes.join("\n"), said(ran)).toMatch(/UTF-8/)
	expect(ran.exitCode).not.toBe(0)
})

test("one source whose list fails is passed over; the next one answers", async () => {
	const server = await sandbox.fillServer()
	await sandbox.backup(server)
	rmSync(join(sandbox.share, "sandbox/fail2ban"), { recursive: true })
	symlinkSync("fail2ban", join(sandbox.share, "sandbox/fail2ban")) // ELOOP, as ESTALE or EACCES would be
	const fresh = await sandbox.freshServer("fresh")
	const ran = await sandbox.restore(fresh, { only: ["fail2ban"] })
	expect(ran.outcome("fail2ban"), said(ran)).toBe("applied")
})

test("the newest snapshot is bad everywhere: restoring an older one is not exit code 0", async () => {
	const server = await sandbox.fillServer()
	await sandbox.backup(server, { only: ["home"] })
	sandbox.later(60)
	writeFileSync(join(server, "home/dev/new.txt"), "newer")
	await sandbox.backup(server, { only: ["home"] })
	for (const place of [sandbox.share, sandbox.second]) flipBit(files(place, "home", ".tar.zst").at(-1) ?? "")
	const fresh = await sandbox.freshServer("fresh")
	const ran = await sandbox.restore(fresh, { only: ["home"] })
	expect(ran.exitCode, said(ran)).not.toBe(0)
})

test("after such a restore, work done since is not thrown back by a second restore", async () => {
	const server = await sandbox.fillServer()
	await sandbox.backup(server, { only: ["home"] })
	sandbox.later(60)
	writeFileSync(join(server, "home/dev/new.txt"), "newer")
	await sandbox.backup(server, { only: ["home"] })
	for (const place of [sandbox.share, sandbox.second]) flipBit(files(place, "home", ".tar.zst").at(-1) ?? "")
	const fresh = await sandbox.freshServer("fresh")
	await sandbox.restore(fresh, { only: ["home"] })
	writeFileSync(join(fresh, "home/dev/.zshrc"), "work done since the restore\n".repeat(10))
	const again = await sandbox.restore(fresh, { only: ["home"] })
	expect(readFileSync(join(fresh, "home/dev/.zshrc"), "utf8"), said(again)).toMatch(/work done since/)
})

test("a machine that was another environment's is restored, whatever it notes", async () => {
	const server = await sandbox.fillServer()
	await sandbox.backup(server, { only: ["ssh-host-keys"] })
	sandbox.later(60)
	// the machine to be used now was a host of `testing` and was backed up there later
	using other = await createSandbox({ environmentName: "testing" })
	other.later(60)
	const machine = await other.fillServer()
	await other.backup(machine, { only: ["ssh-host-keys"] })
	const ran = await sandbox.restore(machine, { only: ["ssh-host-keys"] })
	const key = "etc/ssh/ssh_host_ed25519_key.pub"
	expect(readFileSync(join(machine, key), "utf8"), `exit ${ran.exitCode} ${said(ran)}`).toBe(
		readFileSync(join(server, key), "utf8"),
	)
})

test("backups of the app server that stopped are not hidden by a worker's", async () => {
	const server = await sandbox.fillServer()
	await sandbox.backup(server)
	sandbox.later(60 * 24 * 30)
	const [host] = sandbox.environment.hosts
	const hosts = sandbox.environment.hosts as unknown as { name: string }[]
	if (host) hosts[0] = { ...host, name: "gpu-1" }
	writeFileSync(join(server, "home/dev/x"), "x")
	await sandbox.backup(server, { only: ["home"] })
	if (host) hosts[0] = host
	const fresh = await sandbox.freshServer("fresh")
	const ran = await sandbox.restore(fresh, { only: ["fail2ban"] })
	expect(ran.outcome("backups-are-fresh"), said(ran)).toBe("failed")
})

test("a truncated archive on one destination is replaced by the next backup", async () => {
	const server = await sandbox.fillServer()
	await sandbox.backup(server, { only: ["fail2ban"] })
	truncateSync(files(sandbox.share, "fail2ban", ".tar.zst")[0] ?? "", 45)
	sandbox.later(60)
	const ran = await sandbox.backup(server, { only: ["fail2ban"] })
	const again = await sandbox.backup(server, { only: ["fail2ban"] })
	expect([ran.exitCode, again.exitCode], said(again)).toEqual([expect.any(Number), 0])
})

test("odd names come back", async () => {
	const server = await sandbox.fillServer()
	const home = join(server, "home/dev")
	for (const name of [
		"new\nline",
		"back\\nslash",
		"-dash",
		"*star",
		"qu'o\"te",
		"tab\t",
		"\u00fcml\u00e4ut",
		"C:\\x",
		"a\\",
		"[x]",
		"--checkpoint=1",
		"x".repeat(255),
		"\u{1F3AC}",
	])
		writeFileSync(join(home, name), name)
	mkdirSync(join(home, "-C"), {})
	writeFileSync(join(home, "-C", "x"), "x")
	const before = sandbox.inventory(server, ["home/dev/-C"])
	const ran = await sandbox.backup(server, { only: ["home"] })
	expect(ran.exitCode, said(ran)).toBe(0)
	const fresh = await sandbox.freshServer("fresh")
	const back = await sandbox.restore(fresh, { only: ["home"] })
	expect(back.exitCode, said(back)).toBe(0)
	expect(readdirSync(join(fresh, "home/dev")).sort()).toEqual(
		readdirSync(home)
			.filter((n) => ![".cache", "project", "scripts"].includes(n))
			.sort(),
	)
	expect(sandbox.inventory(fresh, ["home/dev/-C"])).toBe(before)
})

test("a home that is a symbolic link: backup refuses", async () => {
	const server = await sandbox.fillServer()
	execFileSync("mv", [join(server, "home/dev"), join(server, "data-dev")])
	symlinkSync("../data-dev", join(server, "home/dev"))
	const ran = await sandbox.backup(server)
	expect(ran.outcome("home"), said(ran)).toBe("failed")
})

test("an .env that is a directory is replaced and kept", async () => {
	const server = await sandbox.fillServer()
	await sandbox.backup(server)
	const file = join(server, "home/dev/project/.env")
	rmSync(file)
	mkdirSync(join(file, "sub"), { recursive: true })
	const ran = await sandbox.restore(server, { only: ["env-file"] })
	expect(lstatSync(file).isFile(), said(ran)).toBe(true)
})

test("restored host keys that are none of the configured ones are refused also when nothing needs applying", async () => {
	const server = await sandbox.fillServer()
	await sandbox.backup(server, { only: ["ssh-host-keys"] })
	const [host] = sandbox.environment.hosts
	if (host !== undefined) host.hostKeys = [`SHA256:${"A".repeat(43)}`]
	const ran = await sandbox.restore(server, { only: ["ssh-host-keys"] })
	expect(ran.exitCode, said(ran)).not.toBe(0)
})

test("a destination that can't be listed doesn't keep the other from its backup", async () => {
	const server = await sandbox.fillServer()
	mkdirSync(join(sandbox.share, "sandbox"))
	symlinkSync("fail2ban", join(sandbox.share, "sandbox/fail2ban"))
	const ran = await sandbox.backup(server, { only: ["fail2ban"] })
	expect(existsSync(join(sandbox.second, "sandbox/fail2ban")), `exit ${ran.exitCode} ${said(ran)}`).toBe(true)
})

test("the closing table doesn't say ok of a step that failed its second check", async () => {
	await sandbox.backup(await sandbox.fillServer(), { only: ["home"] })
	const fresh = await sandbox.freshServer("fresh")
	// Somebody changes a file between the swap and the second look.
	const ran = await sandbox.restore(fresh, { only: ["home"] }, (plan) => ({
		...plan,
		steps: plan.steps.map((step) => ({
			...step,
			apply: async (report) => {
				await step.apply(report)
				if (step.id === "home") writeFileSync(join(fresh, "home/dev/.zshrc"), "something else")
			},
		})),
	}))
	const end = ran.events.find((event) => event.event === "end")
	expect(ran.outcome("home")).toBe("failed")
	expect(end?.event === "end" && end.summary[0]?.ok, said(ran)).toBe(false)
})

test("a dry run that finds no snapshot at all is not exit code 0", async () => {
	const fresh = await sandbox.freshServer("fresh")
	const ran = await sandbox.restore(fresh, { only: ["fail2ban", "home"], dryRun: true })
	expect(ran.exitCode, said(ran)).not.toBe(0)
})

test("a forged newer snapshot on the share alone, unknown to R2, isn't taken without a word", async () => {
	const server = await sandbox.fillServer()
	await sandbox.backup(server, { only: ["fail2ban"] })
	const evil = await sandbox.fillServer("evil")
	writeFileSync(join(evil, "etc/fail2ban/jail.local"), "action = run anything as root\n")
	sandbox.later(1)
	await sandbox.backup(evil, { only: ["fail2ban"], to: ["share"] }) // what anybody who can write on the share can make
	const fresh = await sandbox.freshServer("fresh")
	const ran = await sandbox.restore(fresh, { only: ["fail2ban"] })
	expect(ran.notes.join("\n"), `exit ${ran.exitCode} ${said(ran)}`).toMatch(/only on share/)
})
