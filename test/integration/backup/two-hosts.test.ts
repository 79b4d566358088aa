// Two hosts of one environment, one share, one second place: what each finishes is whole, and none takes the other's.
import { createHash } from "node:crypto"
import {
	cpSync,
	existsSync,
	mkdirSync,
	readdirSync,
	readFileSync,
	renameSync,
	rmSync,
	symlinkSync,
	writeFileSync,
} from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { localHost } from "../../../src/lib/host/local.ts"
import { shareLock } from "../../../src/lib/storage/share-lock.ts"
import { runs } from "../../support/runs.ts"
import { createSandbox, type Ran, type Sandbox } from "../../support/sandbox.ts"

let sandbox: Sandbox
let app: string
let gpu: string
beforeEach(() => open())
afterEach(() => sandbox[Symbol.dispose]())

/** A world with two hosts, made from the same image: to the second, the same files. */
async function open(options: Parameters<typeof createSandbox>[0] = {}) {
	sandbox?.[Symbol.dispose]()
	sandbox = await createSandbox(options)
	app = await sandbox.fillServer("server")
	gpu = await sandbox.fillServer("gpu", "gpu-1")
	rmSync(gpu, { recursive: true })
	cpSync(app, gpu, { recursive: true, preserveTimestamps: true, verbatimSymlinks: true })
}

const said = ({ events }: Ran) => JSON.stringify(events)
const lockOf = (environment = "sandbox") => join(sandbox.share, environment, ".comfyume.lock")
const lines = (file: string) => readFileSync(file, "utf8")

type Sidecar = { host: string; artifact: string; digest?: string; commit?: string; takenAt: string }
/** What counts in a place, judged by `sha256` alone: every sidecar, and whether its archive has its digest. */
function finishedIn(place: string): { id: string; whole: boolean; sidecar: Sidecar }[] {
	const root = join(place, "sandbox")
	return readdirSync(root, { recursive: true, encoding: "utf8" })
		.filter((name) => /^[\w-]+\/\d{8}T\d{6}Z-.*\.json$/.test(name))
		.sort()
		.map((name) => {
			const sidecar: Sidecar = JSON.parse(lines(join(root, name)))
			const archive = join(root, name.replace(/\.json$/, ""))
			const digest = () => createHash("sha256").update(readFileSync(archive)).digest("hex")
			const whole = sidecar.commit !== undefined || (existsSync(archive) && digest() === sidecar.digest)
			return { id: name.replace(/\.(tar\.zst|commit)\.json$/, ""), whole, sidecar }
		})
}
const ownersIn = (place: string) =>
	finishedIn(place)
		.map(({ sidecar: { artifact, host }, whole }) => `${artifact} ${host} ${whole ? "whole" : "bad"}`)
		.sort()
const writeAnew = (file: string) => {
	// Made before the old one goes, or it may get the same inode.
	writeFileSync(`${file}.new`, readFileSync(file))
	renameSync(`${file}.new`, file)
}
const setAside = () =>
	readdirSync(sandbox.directory, { recursive: true, encoding: "utf8" }).filter((name) =>
		name.includes(".bad-"),
	)

describe("the same bytes on two hosts in the same second", () => {
	const only = ["fail2ban", "project"]
	const both = ["fail2ban app-1 whole", "fail2ban gpu-1 whole", "project app-1 whole", "project gpu-1 whole"]

	test.each([
		["one after the other", "share and R2", ["share", "r2"]],
		["at once", "share and R2", ["share", "r2"]],
		["one after the other", "R2 alone, which nobody locks", ["r2"]],
		["at once", "R2 alone, which nobody locks", ["r2"]],
	] as const)("%s on %s: both have a snapshot of their own, and nothing is set aside", async (how, _, to) => {
		const options = { only, to: [...to] }
		const ran =
			how === "at once"
				? await Promise.all([sandbox.backup(app, options), sandbox.backup(gpu, options)])
				: [await sandbox.backup(app, options), await sandbox.backup(gpu, options)]
		for (const one of ran) expect(one.exitCode, said(one)).toBe(0)
		for (const name of to) {
			const place = name === "share" ? sandbox.share : sandbox.second
			expect(ownersIn(place)).toEqual(both)
			const seconds = finishedIn(place).map(({ id }) => id.slice(-30, -14))
			expect(new Set(seconds).size, "the later one is dated on").toBe(2)
		}
		expect(setAside()).toEqual([])
		for (const server of [app, gpu]) {
			const again = await sandbox.backup(server, options)
			expect([again.exitCode, again.outcome("fail2ban"), again.outcome("project")], said(again)).toEqual([
				...[0, "satisfied", "satisfied"],
			])
		}
	})

	test("each host gets its own back", async () => {
		writeFileSync(join(gpu, "home/dev/.zshrc"), "export HERE=gpu-1\n".repeat(10))
		for (const server of [app, gpu]) await sandbox.backup(server, { only: ["fail2ban", "home"] })
		for (const server of [app, gpu]) {
			const before = sandbox.inventory(server, ["home/dev/.zshrc", "etc/fail2ban"])
			rmSync(join(server, "home/dev/.zshrc"))
			const ran = await sandbox.restore(server, { only: ["fail2ban", "home"] })
			expect(ran.exitCode, said(ran)).toBe(0)
			expect(sandbox.inventory(server, ["home/dev/.zshrc", "etc/fail2ban"])).toBe(before)
		}
	})
})

test("a clock that was set back a little dates on from the newest, one that was set back far is refused", async () => {
	const only = ["fail2ban"]
	await sandbox.backup(app, { only })
	for (const [change, minutes, exitCode] of [
		["a little", -2, 0],
		["far", -60, 3],
	] as const) {
		const before = finishedIn(sandbox.share)
		writeFileSync(join(app, "etc/fail2ban/jail.local"), `[sshd]\nenabled = ${change}\n`)
		sandbox.later(minutes)
		const ran = await sandbox.backup(app, { only })
		expect(ran.exitCode, said(ran)).toBe(exitCode)
		const after = finishedIn(sandbox.share)
		expect(after.slice(0, before.length)).toEqual(before)
		expect(after.length - before.length).toBe(exitCode === 0 ? 1 : 0)
		expect(after.every(({ whole }) => whole)).toBe(true)
	}
})

test("two environments on one share keep apart, and don't wait for each other", async () => {
	using other = await createSandbox({ environmentName: "testing", share: sandbox.share })
	const machine = await other.fillServer()
	await holder().hold({ ...asked, purpose: "a long one" }, async () => {
		const ran = await other.backup(machine, { only: ["fail2ban"] })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(ran.notes.join()).not.toMatch(/waits/)
	})
	expect(readdirSync(sandbox.share).sort()).toEqual(["sandbox", "testing"])
	expect(ownersIn(sandbox.share)).toEqual([])
})

const asked = { purpose: "backup of home", note: () => {}, again: "comfyume backup" }
/** Another host's lock, taken as that one would. */
const holder = (id = "a1b2") =>
	shareLock({
		host: localHost({ name: "gpu-1", root: gpu, environment: process.env }),
		file: lockOf(),
		owner: "sandbox gpu-1",
		mountCheck: async () => {},
		now: () => new Date("2026-11-21T05:59:00Z"),
		randomId: () => id,
		signal: new AbortController().signal,
	})

describe("the lock of the share", () => {
	const only = ["fail2ban"]

	test("is waited for, saying whose it is, and the work goes on when it is given back", async () => {
		const waits = Promise.withResolvers<void>()
		const held = holder().hold({ ...asked, purpose: "backup of home" }, () => waits.promise)
		await expect.poll(() => existsSync(lockOf()) && lines(lockOf())).toMatch(/^1 backup of home/)
		const ran = await sandbox.backup(app, { only }, (event) => {
			if (event.event === "note" && event.text.startsWith("waits for")) waits.resolve()
		})
		await held
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(ran.notes.join()).toMatch(
			/waits for the share's lock, which is held: 1 backup of home, sandbox gpu-1, process \d+ of \w+, boot [0-9a-f]{8}, since 2026-11-21T05:59:00.000Z, run a1b2/,
		)
		expect(ran.notes.join()).not.toMatch(/taken over/)
		expect(lines(lockOf())).toMatch(/^2 free, since /)
	})

	test("is not waited for without end: exit 5 says who holds it since when, and R2 has its backup", async () => {
		await open({ lockWaitMs: 200 })
		await holder().hold(asked, async () => {
			const ran = await sandbox.backup(app, { only })
			expect(ran.exitCode, said(ran)).toBe(5)
			const failed = ran.events.find((event) => event.event === "step")
			expect(failed).toMatchObject({
				because: expect.stringMatching(
					/another run holds the lock of the snapshots on the share, .*, and was waited for 0 s: 1 backup of home, sandbox gpu-1, process \d+ .*since 2026-11-21T05:59/,
				),
				hint: expect.stringMatching(/^comfyume backup --env sandbox --only fail2ban {3}# /),
			})
			const swept = await sandbox.retention(app, { only })
			expect(swept.exitCode, "nothing to remove, nothing to lock").toBe(0)
		})
		expect(ownersIn(sandbox.second)).toEqual(["fail2ban app-1 whole"])
		expect(readdirSync(join(sandbox.share, "sandbox"))).toEqual([".comfyume.lock"])
		const ran = await sandbox.backup(app, { only })
		expect(ran.exitCode, said(ran)).toBe(0)
	})

	test("is not taken by a dry run, nor where nothing has changed", async () => {
		await open({ lockWaitMs: 0 })
		await sandbox.backup(app, { only })
		await holder().hold(asked, async () => {
			expect((await sandbox.backup(app, { only })).exitCode).toBe(0)
			writeFileSync(join(app, "etc/fail2ban/jail.local"), "[sshd]\nenabled = false\n")
			expect((await sandbox.backup(app, { only, dryRun: true })).outcome("fail2ban")).toBe("planned")
		})
	})

	test("of a holder that died is taken over, and whose it was is said", async () => {
		mkdirSync(join(sandbox.share, "sandbox"))
		writeFileSync(lockOf(), "7 backup of home, sandbox gpu-1, process 4711 of root, since yesterday")
		const ran = await sandbox.backup(app, { only, to: ["share"] })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(ran.notes.join()).toMatch(
			/taken over, since its holder is gone .*: 7 backup of home, sandbox gpu-1/,
		)
		expect(lines(lockOf())).toMatch(/^8 free, since /)
	})

	test.each([
		["another's text", (file: string) => writeFileSync(file, "9 backup of home, sandbox gpu-1, process 1")],
		["nothing", (file: string) => writeFileSync(file, "")],
		["no file", (file: string) => rmSync(file)],
		["another file", (file: string) => writeAnew(file)],
	])("that was lost in the middle ends a backup before anything counts: %s stands there", async (_, lose) => {
		let lost = false
		const ran = await sandbox.backup(app, { only, to: ["share"] }, (event) => {
			if (event.event !== "progress" || event.from !== "to share" || lost) return
			lost = true
			lose(lockOf())
		})
		expect(lost).toBe(true)
		expect(ran.exitCode, said(ran)).toBe(5)
		expect(said(ran)).toMatch(/was lost while this run was cut off or stood still/)
		expect(ownersIn(sandbox.share)).toEqual([])
		// Whoever has it now goes on, and isn't disturbed by the loser's giving back.
		const again = await sandbox.backup(app, { only, to: ["share"] })
		expect(again.exitCode, said(again)).toBe(0)
		expect(ownersIn(sandbox.share)).toEqual(["fail2ban app-1 whole"])
	})

	test("that was lost in the middle ends a retention before the next removal", async () => {
		for (let hour = 0; hour < 9; hour++) {
			writeFileSync(join(app, "etc/fail2ban/jail.local"), `[sshd]\nenabled = ${hour}\n`)
			sandbox.later(60)
			await sandbox.backup(app, { only })
		}
		const before = finishedIn(sandbox.share).length
		const ran = await sandbox.retention(app, { only }, (given) => ({
			...given,
			...(given.shareRemover !== undefined && {
				shareRemover: {
					...given.shareRemover,
					remove: async (...removed) => {
						await given.shareRemover?.remove(...removed)
						writeFileSync(lockOf(), "9 retention of fail2ban, sandbox app-1, process 1")
					},
				},
			}),
		}))
		expect(ran.exitCode, said(ran)).toBe(5)
		expect(finishedIn(sandbox.share)).toHaveLength(before - 1)
		expect(lines(lockOf())).toMatch(/^9 retention/)
		const again = await sandbox.retention(app, { only })
		expect(again.exitCode, said(again)).toBe(0)
		expect(finishedIn(sandbox.share)).toHaveLength(1)
	})

	test.each([
		["a link", (file: string) => symlinkSync(join(sandbox.directory, "victim"), file)],
		["a directory", (file: string) => mkdirSync(file)],
	])("is refused where %s stands, and nothing is written", async (_, make) => {
		writeFileSync(join(sandbox.directory, "victim"), "somebody's text")
		mkdirSync(join(sandbox.share, "sandbox"))
		make(lockOf())
		const ran = await sandbox.backup(app, { only, to: ["share"] })
		expect(ran.exitCode, said(ran)).toBe(8)
		expect(lines(join(sandbox.directory, "victim"))).toBe("somebody's text")
		expect(ownersIn(sandbox.share)).toEqual([])
	})

	test("is said to be impossible where the file system doesn't lock", async () => {
		const program = join(app, "usr/local/bin/flock")
		writeFileSync(program, "#!/bin/sh\necho 'flock: 9: No locks available' >&2\nexit 71\n", { mode: 0o755 })
		const ran = await sandbox.backup(app, { only, to: ["share"] })
		expect(ran.exitCode, said(ran)).toBe(3)
		expect(said(ran)).toMatch(/doesn't lock files: flock: 9: No locks available.*NFS 4/)
		expect(ownersIn(sandbox.share)).toEqual([])
	})
})

test("retention on one host disturbs neither another host's backup nor a restore", async () => {
	const only = ["fail2ban"]
	for (let day = 0; day < 12; day++) {
		for (const server of [app, gpu]) {
			writeFileSync(join(server, "etc/fail2ban/jail.local"), `[sshd]\nmaxretry = ${day}\n`)
			await sandbox.backup(server, { only })
		}
		sandbox.later(60 * 8)
	}
	const restored = await sandbox.freshServer("restored")
	writeFileSync(join(gpu, "etc/fail2ban/jail.local"), "[sshd]\nmaxretry = 99\n")
	const [swept, backed, ...restores] = await Promise.all([
		sandbox.retention(app, { only }),
		sandbox.backup(gpu, { only }),
		sandbox.restore(restored, { only }),
	])
	for (const one of [swept, backed, ...restores]) expect(one.exitCode, said(one)).toBe(0)
	expect(finishedIn(sandbox.share).filter(({ sidecar }) => sidecar.host === "app-1").length).toBeLessThan(12)
	const others = finishedIn(sandbox.share).filter(({ sidecar }) => sidecar.host === "gpu-1")
	expect(others).toHaveLength(13)
	expect(others.every(({ whole }) => whole)).toBe(true)
	expect(sandbox.inventory(restored, ["etc/fail2ban"])).toBe(sandbox.inventory(app, ["etc/fail2ban"]))
})

test("two machines that both take themselves for the same host clean up at once: what one has removed, the other doesn't miss", async () => {
	const only = ["fail2ban"]
	const twin = await sandbox.fillServer("twin", "app-1")
	for (let hour = 0; hour < 12; hour++) {
		writeFileSync(join(app, "etc/fail2ban/jail.local"), `[sshd]\nmaxretry = ${hour}\n`)
		await sandbox.backup(app, { only })
		sandbox.later(60)
	}
	for (const one of await Promise.all([app, twin].map((server) => sandbox.retention(server, { only }))))
		expect(one.exitCode, said(one)).toBe(0)
	expect(ownersIn(sandbox.share)).toEqual(["fail2ban app-1 whole"])
})

test("two hosts back up and clean up at random: all that is finished is whole, and no newest one vanishes", async () => {
	const only = ["fail2ban", "project"]
	const newest = new Map<string, string>()
	let random = 20261127
	// Park and Miller's: the same every time.
	const below = (limit: number) => {
		random = (random * 48271) % 2147483647
		return random % limit
	}
	for (let round = 0; round < runs(25); round++) {
		sandbox.later([0, 1, 45, 60 * 26, 60 * 24 * 9][below(5)] ?? 0)
		for (const server of [app, gpu])
			if (below(3) > 0) writeFileSync(join(server, "etc/fail2ban/jail.local"), `maxretry = ${below(4)}\n`)
		const works = [app, gpu].flatMap((server) =>
			[() => sandbox.backup(server, { only }), () => sandbox.retention(server, { only })].filter(
				() => below(4) > 0,
			),
		)
		const ended = await Promise.all(works.map((work) => work()))
		for (const one of ended) expect(one.exitCode, `round ${round}: ${said(one)}`).toBe(0)
		for (const place of [sandbox.share, sandbox.second])
			for (const { id, whole, sidecar } of finishedIn(place)) {
				expect(whole, `round ${round}: ${id}`).toBe(true)
				const of = `${place} ${sidecar.artifact} ${sidecar.host}`
				if ((newest.get(of) ?? "") < id) newest.set(of, id)
			}
		for (const [of, id] of newest)
			expect(
				existsSync(
					join(of.split(" ")[0] ?? "", "sandbox", `${id}.${/project/.test(id) ? "commit" : "tar.zst"}.json`),
				),
				`round ${round}: ${of} ${id}`,
			).toBe(true)
	}
	expect(newest.size).toBe(8)
	expect(setAside()).toEqual([])
}, 240_000)
