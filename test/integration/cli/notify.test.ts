// Who is told how a run ended, and that telling never changes how it ended.
import { execFileSync, spawn } from "node:child_process"
import { appendFileSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { afterEach, beforeEach, expect, test } from "vitest"
import { createWorld, type Ended, type World } from "../../support/cli.ts"
import { type NotificationServer, startNotificationServer } from "../../support/notification-server.ts"
import { describeWith } from "../../support/parts.ts"

const key = "made-up-ping-key-0004"
const topic = "made-up-topic-0005"
const textfiles = "/var/lib/node-exporter"
const work = ["backup", "--scheduled", "--notify", "--quiet"]
let world: World
let server: NotificationServer

beforeEach(async () => {
	server = await startNotificationServer()
	world = await createWorld()
	appendFileSync(world.path("secrets.env"), `HEALTHCHECKS_PING_KEY=${key}\nNTFY_TOPIC=${topic}\n`)
	configure({})
	mkdirSync(world.path("server", textfiles), { recursive: true })
})
afterEach(async () => {
	await world[Symbol.asyncDispose]()
	await server[Symbol.asyncDispose]()
})

function configure(change: { healthchecks?: string; ntfy?: string; more?: string }): void {
	const { healthchecks = server.url, ntfy = server.url, more = "" } = change
	const notifications = `    notifications:
      healthchecks: { url: "${healthchecks}" }
      ntfy: { url: "${ntfy}" }
      textfiles: { directory: ${textfiles} }
${more}`
	world.configure((text) => text.replace("    git:\n", `${notifications}    git:\n`))
}
const told = async (words: readonly string[] = work): Promise<Ended> => {
	const ended = await world.run(words)
	for (const secret of [key, topic]) expect(ended.stdout + ended.stderr).not.toContain(secret)
	return ended
}
const pings = () =>
	server.requests.filter(({ path }) => path !== "/").map(({ path }) => path.replace(`/${key}/`, ""))
const messages = () =>
	server.requests
		.filter(({ path }) => path === "/")
		.map(({ body }) => JSON.parse(body) as Record<string, unknown>)
const figures = (task = "backup") =>
	readFileSync(world.path("server", textfiles, `comfyume_sandbox_app-1_${task}.prom`), "utf8")
const figure = (name: string, task?: string) =>
	Number(new RegExp(`^comfyume_${name}\\{.*\\} (\\S+)$`, "m").exec(figures(task))?.[1] ?? Number.NaN)
const breakIt = () => execFileSync("mv", [world.path("server/home/dev/project"), world.path("aside")])
const repair = () => execFileSync("mv", [world.path("aside"), world.path("server/home/dev/project")])

test("a run that goes well is begun and ended by one id, and its figures are there", async () => {
	const ended = await told()
	expect([ended.exitCode, ended.stdout + ended.stderr]).toEqual([0, ""])
	expect(pings()).toEqual(["sandbox-app-1-backup/start", "sandbox-app-1-backup/0"])
	const [begin, end] = server.requests
	expect(begin?.query.get("rid")).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
	expect(end?.query.get("rid")).toBe(begin?.query.get("rid"))
	expect(end?.body).toMatch(/applied: home: .*\n[\s\S]*8 applied/)
	expect(messages()).toEqual([])
	expect(figure("exit_code")).toBe(0)
	expect(figure("verified_ratio")).toBe(1)
	expect(figure("last_success_timestamp_seconds")).toBe(figure("last_run_timestamp_seconds"))
	const archives = execFileSync("find", [world.share, "-name", "*.tar.zst", "-printf", "%s\n"], {
		encoding: "utf8",
	})
	const onShare = archives.split("\n").reduce((sum, line) => sum + Number(line), 0)
	expect(figure("stored_bytes")).toBe(2 * onShare)
	expect(readdirSync(world.path("server", textfiles))).toHaveLength(1)
})

test("a failure is told with its number and its reason, and once that it is well again", async () => {
	expect((await told()).exitCode).toBe(0)
	const success = figure("last_success_timestamp_seconds")
	breakIt()
	// By hand, without being told to anybody: what is due now is the whole of it.
	rmSync(`${world.share}/cache`, { recursive: true })
	expect((await told()).exitCode).toBe(3)
	expect(pings().at(-1)).toBe("sandbox-app-1-backup/3")
	expect(server.requests.find(({ path }) => path.endsWith("/3"))?.body).toContain("failed: project")
	const [message] = messages()
	expect(message).toMatchObject({ topic, priority: 4, tags: ["warning"] })
	expect(message?.["title"]).toBe(
		"backup of sandbox, app-1, ended with 3: verification found differences, or part of the work failed",
	)
	expect(message?.["message"]).toContain("project")
	expect(figure("exit_code")).toBe(3)
	expect(figure("last_success_timestamp_seconds")).toBe(success)
	expect(figure("verified_ratio")).toBeLessThan(1)

	repair()
	expect((await told()).exitCode).toBe(0)
	expect(messages()).toHaveLength(2)
	expect(messages()[1]).toMatchObject({ title: "backup of sandbox, app-1, is well again", priority: 3 })
	expect((await told()).exitCode).toBe(0)
	expect(messages()).toHaveLength(2)
	// Nothing was due: how much was right when something was stays.
	expect(figure("verified_ratio")).toBe(1)
})

test("the check of backups tells of itself, with every snapshot's age; other tasks have names of their own", async () => {
	expect((await told()).exitCode).toBe(0)
	expect((await told(["backup", "status", "--notify", "--quiet"])).exitCode).toBe(0)
	expect((await told(["backup", "retention", "--notify", "--quiet"])).exitCode).toBe(0)
	expect(pings().slice(2)).toEqual([
		...["sandbox-app-1-status/start", "sandbox-app-1-status/0"],
		...["sandbox-app-1-retention/start", "sandbox-app-1-retention/0"],
	])
	for (const destination of ["share", "r2"])
		expect(figures("status")).toMatch(
			new RegExp(
				`^comfyume_newest_snapshot_age_seconds\\{environment="sandbox",host="app-1",task="status",artifact="home",destination="${destination}"\\} \\d+$`,
				"m",
			),
		)
	expect(figures()).not.toContain("newest_snapshot")
})

test("nobody is told without --notify, of a dry run, or of a part", async () => {
	expect((await told(["backup", "--only", "home"])).exitCode).toBe(0)
	expect((await told(["backup", "--dry-run", "--notify"])).exitCode).toBe(0)
	const part = await told(["backup", "--only", "home", "--notify"])
	expect([part.exitCode, part.stderr]).toEqual([2, expect.stringContaining("--notify tells of the whole")])
	expect(server.requests).toEqual([])
	expect(readdirSync(world.path("server", textfiles))).toEqual([])
})

test("what can't be told costs a line each, hurts nothing else, and not the run's result", async () => {
	rmSync(world.path("server", textfiles), { recursive: true })
	server.answer(({ path }, response) =>
		path === "/" ? response.writeHead(500).end() : response.end("OK (rate limited)"),
	)
	const ended = await told()
	expect(ended.exitCode).toBe(0)
	expect(ended.stderr).toMatch(
		/^warning: healthchecks could not be told: it answers: OK \(rate limited\)\nwarning: the textfile could not be told: writing \/var\/lib\/node-exporter\/\S+ ENOENT.*\nwarning: healthchecks could.*\n$/,
	)
	breakIt()
	rmSync(`${world.share}/cache`, { recursive: true })
	const failed = await told()
	expect(failed.exitCode).toBe(3)
	expect(failed.stderr).toContain("warning: ntfy could not be told: it answers with HTTP status 500")
	expect(pings().at(-1)).toBe("sandbox-app-1-backup/3")
})

test("a service that is gone or hangs keeps neither the run nor the others", async () => {
	const closed = await startNotificationServer()
	await closed[Symbol.asyncDispose]()
	configure({ healthchecks: closed.url })
	const gone = await told()
	expect([gone.exitCode, gone.stderr]).toEqual([
		0,
		"warning: healthchecks could not be told: ECONNREFUSED\n".repeat(2),
	])
	expect(figure("exit_code")).toBe(0)
	configure({})
	breakIt()
	rmSync(`${world.share}/cache`, { recursive: true })
	// No answer to any ping; what it is told by ntfy it takes.
	server.answer(({ path }, response) => void (path === "/" && response.end("{}")))
	const hung = await told()
	expect(hung.exitCode).toBe(3)
	expect(hung.stderr).toContain("warning: healthchecks could not be told: no answer within 10 s")
	expect(messages()).toHaveLength(1)
	expect(figure("exit_code")).toBe(3)
})

test("nothing is sent to where a redirect leads", async () => {
	await using elsewhere = await startNotificationServer()
	server.answer(({ path }, response) =>
		response.writeHead(307, { location: `${elsewhere.url}${path}` }).end(),
	)
	const ended = await told()
	expect(ended.exitCode).toBe(0)
	expect(ended.stderr).toContain("it redirects (HTTP status 307), and nothing is sent to where it leads")
	expect(elsewhere.requests).toEqual([])
})

test("a run that a signal ends says so", async () => {
	const { child, ended } = world.start(work)
	server.answer(({ path }, response) => {
		response.end("OK")
		if (path.endsWith("/start")) child.kill("SIGTERM")
	})
	expect((await ended).exitCode).toBe(143)
	expect(pings().at(-1)).toBe("sandbox-app-1-backup/143")
	expect(figure("exit_code")).toBe(143)
	expect(messages()[0]).toMatchObject({ title: "backup of sandbox, app-1, ended with 143: terminated" })
})

test("a configuration that is wrong elsewhere is told of; one whose own part is wrong is not used", async () => {
	configure({ more: "    nonsense: true\n" })
	const ended = await told([...work, "--here"])
	expect(ended.exitCode).toBe(2)
	expect(pings()).toEqual(["sandbox-app-1-backup/2"])
	expect(server.requests[0]?.body).toContain("nonsense")
	expect(messages()).toHaveLength(1)
	configure({ ntfy: "ftp://nonsense", more: "    nonsense: true\n" })
	expect((await told([...work, "--here"])).exitCode).toBe(2)
	expect(server.requests).toHaveLength(2)
})

test("another timer's run is no failure of this one; a person's is told", async () => {
	const lock = world.path("server/run/comfyume/comfyume.lock")
	mkdirSync(world.path("server/run/comfyume"), { recursive: true })
	for (const [holder, expected] of [
		["backup by its timer", "log"],
		["restore", "5"],
	] as const) {
		server.requests.length = 0
		const script = `exec 9<>"$1"; flock 9; printf '%s, process 1 of root' "$2" >/proc/self/fd/9; echo held; exec cat`
		const held = spawn("sh", ["-c", script, "sh", lock, holder], { stdio: ["pipe", "pipe", "ignore"] })
		await new Promise((resolve) => held.stdout.once("data", resolve))
		const ended = await told()
		held.stdin.end()
		await new Promise((resolve) => held.once("close", resolve))
		expect(ended.exitCode).toBe(5)
		expect(pings()).toEqual([`sandbox-app-1-backup/${expected}`])
		expect(messages()).toHaveLength(expected === "5" ? 1 : 0)
	}
})

describeWith("instances", "a full disk", () => {
	test("takes away the figures and nothing else; those of before stay whole", async () => {
		expect((await told()).exitCode).toBe(0)
		const directory = world.path("server", textfiles)
		const before = figures()
		rmSync(directory, { recursive: true })
		mkdirSync(directory)
		execFileSync("mount", ["-t", "tmpfs", "-o", "size=8k", "tmpfs", directory])
		try {
			execFileSync("sh", [
				"-c",
				'printf %s "$1" >"$2/comfyume_sandbox_app-1_backup.prom"',
				"sh",
				before,
				directory,
			])
			execFileSync("sh", ["-c", 'cat /dev/zero >"$1/filling" 2>/dev/null || true', "sh", directory])
			const ended = await told()
			expect(ended.exitCode).toBe(0)
			expect(ended.stderr).toMatch(/^warning: the textfile could not be told: .*no space left/)
			expect(pings().at(-1)).toBe("sandbox-app-1-backup/0")
			expect(figures()).toBe(before)
			expect(readdirSync(directory).sort()).toEqual(["comfyume_sandbox_app-1_backup.prom", "filling"])
		} finally {
			execFileSync("umount", [directory])
		}
	})
})

describeWith("prometheus", "Prometheus' own tool", () => {
	test("takes the figures", async () => {
		expect((await told()).exitCode).toBe(0)
		expect((await told(["backup", "status", "--notify"])).exitCode).toBe(0)
		for (const text of [figures(), figures("status")])
			execFileSync("promtool", ["check", "metrics"], { input: text })
	})
})
