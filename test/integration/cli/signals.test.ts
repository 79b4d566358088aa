// A run that is stopped, and a run that meets another one.
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { createWorld, type Running, type Saved, secrets, type World } from "../../support/cli.ts"
import { poll } from "../../support/poll.ts"

const hangs = { deadlineMs: 10_000 }
let world: World
let made: Saved
beforeAll(async () => {
	world = await createWorld()
	made = await world.save()
	expect((await world.run(["backup", "--only", "fail2ban"])).exitCode).toBe(0)
	await world.loseServer()
	lost = await world.save()
})
afterAll(() => world?.[Symbol.asyncDispose]())

let lost: Saved

/** A tar that starts a child, says so, and never ends: it stands first in the PATH of the server's programs. */
function hangingTar(ignoring = ""): () => boolean {
	const marker = world.path("server/run/tar-hangs")
	writeFileSync(
		world.path("server/usr/local/bin/tar"),
		`#!/bin/sh\n${ignoring}\nsleep 300 &\n: >"${marker}"\nwhile :; do wait; sleep 300; done\n`,
		{ mode: 0o755 },
	)
	return () => existsSync(marker)
}

/** Programs that a run has started on the server: they all carry its directory in their environment. */
function programsOnServer(): string[] {
	return readdirSync("/proc").flatMap((id) => {
		if (!/^\d+$/.test(id)) return []
		try {
			if (!readFileSync(`/proc/${id}/environ`, "utf8").includes(`COMFYUME_ROOT=${world.server}\0`)) return []
			return [readFileSync(`/proc/${id}/cmdline`, "utf8").replaceAll("\0", " ")]
		} catch {
			// It has ended meanwhile.
			return []
		}
	})
}

const moments = {
	"backup while tar packs": async () => {
		await made.load()
		const isThere = hangingTar()
		const mend = () => rmSync(world.path("server/usr/local/bin/tar"))
		return { words: ["backup", "--only", "fail2ban"], isThere, mend }
	},
	"backup while R2 takes an archive": async () => {
		await made.load()
		const fault = world.s3.fault({ match: { operation: "PutObject" }, do: "black-hole" })
		return { words: ["backup", "--only", "fail2ban"], isThere: () => fault.hits > 0, mend: fault.remove }
	},
	"restore while tar unpacks": async () => {
		await lost.load()
		const isThere = hangingTar()
		const mend = () => rmSync(world.path("server/usr/local/bin/tar"))
		return { words: ["restore", "--only", "fail2ban"], isThere, mend }
	},
	"restore while R2 gives an archive": async () => {
		await lost.load()
		const fault = world.s3.fault({ match: { operation: "GetObject", key: /zst$/ }, do: "black-hole" })
		const words = ["restore", "--only", "fail2ban", "--from", "r2"]
		return { words, isThere: () => fault.hits > 0, mend: fault.remove }
	},
} as const

describe.each(Object.keys(moments) as (keyof typeof moments)[])("%s", (moment) => {
	test.each([
		["SIGINT", 130],
		["SIGTERM", 143],
		["SIGHUP", 129],
	] as const)(
		"%s ends it with %i, its programs and its lock with it, and says how to go on",
		async (signal, exitCode) => {
			const { words, isThere, mend } = await moments[moment]()
			const { child, ended } = world.start(words)
			await poll(isThere, { ...hangs, what: moment })
			child.kill(signal)
			const { stderr, ...end } = await ended
			mend()
			expect(end.exitCode, stderr).toBe(exitCode)
			expect(stderr).toContain(`\nnext: comfyume ${words[0]} --env sandbox`)
			expect(stderr).toContain(words.slice(1).join(" "))
			expect(stderr).not.toMatch(/\n\s+at /)
			await poll(() => programsOnServer().length === 0, { ...hangs, what: "no program left" })

			const again = await world.run(words)
			expect(again.exitCode, again.stderr).toBe(0)
		},
	)
})

test("a second SIGINT doesn't wait for a program that won't end", async () => {
	await made.load()
	const isThere = hangingTar("trap '' TERM")
	const { child, ended } = world.start(["backup", "--only", "fail2ban"])
	await poll(isThere, { ...hangs, what: "tar runs" })
	child.kill("SIGINT")
	// The first one has been taken when the program's children were asked to end; the program itself stays.
	await poll(() => programsOnServer().length > 0 && child.exitCode === null, { ...hangs, what: "it waits" })
	const second = setInterval(() => child.kill("SIGINT"), 50)
	const before = performance.now()
	expect((await ended).exitCode).toBe(130)
	clearInterval(second)
	expect(performance.now() - before).toBeLessThan(5_000)
	await poll(() => programsOnServer().length === 0, { ...hangs, what: "no program left" })
})

describe("two runs at once", () => {
	let runs: Running[] = []
	beforeEach(async () => {
		await made.load()
		runs = []
	})

	test("exactly one goes on, and the other ends with 5 and names it", async () => {
		const fault = world.s3.fault({ match: { operation: "PutObject" }, do: "black-hole" })
		runs = [1, 2].map(() => world.start(["backup", "--only", "fail2ban"]))
		const loser = await Promise.race(runs.map(({ ended }) => ended))
		expect(loser.exitCode, loser.stderr).toBe(5)
		const winner = runs.find(({ child }) => child.exitCode === null)
		expect(loser.stderr).toMatch(
			new RegExp(
				`^comfyume: another run holds the lock comfyume on app-1: backup, process ${winner?.child.pid} of \\w+, since 20\\S+Z\\n {2}next: `,
			),
		)
		await poll(() => fault.hits > 0, { ...hangs, what: "the winner works" })
		fault.remove()
		winner?.child.kill("SIGTERM")
		expect((await winner?.ended)?.exitCode).toBe(143)
	})

	test("with --json the holder stands in an event, and a dry run needs no lock", async () => {
		const fault = world.s3.fault({ match: { operation: "PutObject" }, do: "black-hole" })
		const holder = world.start(["backup", "--only", "fail2ban"])
		await poll(() => fault.hits > 0, { ...hangs, what: "the first works" })
		const second = await world.run(["restore", "--only", "fail2ban", "--json"])
		expect(second.exitCode).toBe(5)
		expect(second.events).toMatchObject([
			{ event: "error", exitCode: 5, message: expect.stringMatching(/process \d+/) },
		])
		expect((await world.run(["backup", "--only", "fail2ban", "--dry-run"])).exitCode).toBe(0)
		fault.remove()
		holder.child.kill("SIGTERM")
		await holder.ended
	})
})

test("no secret stands on any command line while a backup and a restore run", async () => {
	await made.load()
	const seen = new Set<string>()
	const look = () => {
		for (const id of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
			try {
				seen.add(readFileSync(`/proc/${id}/cmdline`, "utf8"))
			} catch {
				// It has ended meanwhile.
			}
		}
	}
	const looking = setInterval(look, 2)
	expect((await world.run(["backup"])).exitCode).toBe(0)
	await world.loseServer()
	expect((await world.run(["restore", "--identity-is-free"])).exitCode).toBe(0)
	clearInterval(looking)
	const lines = [...seen].join("\n")
	for (const program of ["tar", "git", "comfyume.js"]) expect(lines).toContain(program)
	for (const value of Object.values(secrets)) expect(lines).not.toContain(value)
})
