// Recorded events go in, and what an operator reads comes out.
import { stripVTControlCharacters } from "node:util"
import { describe, expect, test } from "vitest"
import {
	type ContainerFacts,
	type Event,
	type EventBody,
	eventSchema,
	eventsVersion,
	type Reporter,
} from "../../../src/lib/plan/events.ts"
import { chooseReporter, unfailing } from "../../../src/lib/plan/reporters/choose.ts"
import { interactiveReporter } from "../../../src/lib/plan/reporters/interactive.ts"
import { plainReporter } from "../../../src/lib/plan/reporters/plain.ts"
import type { Terminal } from "../../../src/lib/ui/surroundings.ts"
import { poll } from "../../support/poll.ts"

const mebibyte = 1024 * 1024

function record(...bodies: readonly [atSeconds: number, body: EventBody][]): Event[] {
	return bodies.map(([atSeconds, body]) => ({
		version: eventsVersion,
		at: new Date(Date.UTC(2026, 0, 1) + atSeconds * 1000).toISOString(),
		...body,
	}))
}

const run = record(
	[
		0,
		{
			event: "plan",
			command: "restore",
			environment: "production",
			host: "app-1",
			place: "root@203.0.113.10",
			dryRun: false,
			steps: [
				{ id: "home", title: "Home of dev" },
				{ id: "tailscale", title: "Tailscale identity" },
				{ id: "project", title: "Project" },
				{ id: "start", title: "Start" },
			],
		},
	],
	[0, { event: "checking", step: "home" }],
	[0, { event: "checked", step: "home", finding: { state: "satisfied", because: "as in the snapshot" } }],
	[1, { event: "step", step: "home", outcome: "satisfied", because: "as in the snapshot", durationMs: 1000 }],
	[1, { event: "checking", step: "tailscale" }],
	[1, { event: "checked", step: "tailscale", finding: { state: "needed", because: "no identity" } }],
	[1, { event: "applying", step: "tailscale" }],
	[2, { event: "note", step: "tailscale", level: "warning", text: "share: another digest than its sidecar" }],
	[3, { event: "progress", step: "tailscale", doneBytes: 0, totalBytes: 100 * mebibyte, from: "r2" }],
	[
		5,
		{
			event: "progress",
			step: "tailscale",
			doneBytes: 20 * mebibyte,
			totalBytes: 100 * mebibyte,
			from: "r2",
		},
	],
	[
		13,
		{
			event: "progress",
			step: "tailscale",
			doneBytes: 50 * mebibyte,
			totalBytes: 100 * mebibyte,
			from: "r2",
		},
	],
	[
		14,
		{
			event: "progress",
			step: "tailscale",
			doneBytes: 60 * mebibyte,
			totalBytes: 100 * mebibyte,
			from: "r2",
		},
	],
	[
		20,
		{
			event: "step",
			step: "tailscale",
			outcome: "applied",
			because: "tailscale ip -4 is 100.89.38.43",
			durationMs: 19_000,
		},
	],
	[
		21,
		{
			event: "step",
			step: "project",
			outcome: "failed",
			because: "GitHub refuses\nGH_TOKEN",
			hint: "gh auth token",
			durationMs: 900,
		},
	],
	[
		21,
		{
			event: "step",
			step: "start",
			outcome: "blocked",
			because: "waits for project, which failed",
			durationMs: 0,
		},
	],
	[
		21,
		{
			event: "end",
			exitCode: 6,
			satisfied: 1,
			applied: 1,
			planned: 0,
			failed: 2,
			durationMs: 21_000,
			summary: [
				{
					artifact: "home",
					source: "local",
					snapshot: "20260101T000000Z-0123456789ab",
					ageSeconds: 11_520,
					digest: "0123456789ab",
					verified: "sha256",
					ok: true,
				},
				{ artifact: "project", source: "none", snapshot: "-", verified: "not there", ok: false },
			],
			next: "comfyume restore --only project",
		},
	],
)

function terminal(more: Partial<Terminal> = {}): Terminal & { said: () => { out: string; talk: string } } {
	const said = { out: "", talk: "" }
	return {
		out: (text) => {
			said.out += text
		},
		talk: (text) => {
			said.talk += text
		},
		interactive: false,
		columns: 80,
		color: false,
		said: () => said,
		...more,
	}
}

async function play(reporter: Reporter, events: readonly Event[]): Promise<void> {
	for (const event of events) {
		reporter.event(event)
		await new Promise((resolve) => setImmediate(resolve))
	}
	await reporter.close()
}

describe("without a terminal", () => {
	test("each step is a line, progress comes every 10 s, and the closing says what to do", async () => {
		const screen = terminal()
		await play(plainReporter(screen), run)
		expect(screen.said().talk).toBe(`restore: production, app-1 (root@203.0.113.10)
ok: Home of dev: as in the snapshot (1.0 s)
warning: Tailscale identity: share: another digest than its sidecar
Tailscale identity: 50.0 MiB of 100.0 MiB, 5.0 MiB/s, 10 s left, from r2
applied: Tailscale identity: tailscale ip -4 is 100.89.38.43 (19 s)
FAILED: Project: GitHub refuses GH_TOKEN (0.9 s)
BLOCKED: Start: waits for project, which failed


failed: Project: GitHub refuses GH_TOKEN
  try: gh auth token
blocked: Start: waits for project, which failed

1 applied, 1 already right, 2 failed in 21 s
next: comfyume restore --only project
`)
		expect(screen.said().out).toBe(`artifact  source  snapshot          age         digest        verified
home      local   20260101T000000Z  3 h 12 min  0123456789ab  sha256
project   none    -                                           NOT OK: not there
`)
	})

	test("no escape code is written, even where the terminal shows colors and the text brings some", async () => {
		const screen = terminal({ color: true, interactive: true })
		const [plan, ...rest] = run
		const note: EventBody = { event: "note", level: "info", text: "\u001B[31mred\u001B[2J" }
		await play(plainReporter(screen), plan === undefined ? [] : [plan, ...record([0, note]), ...rest])
		expect(screen.said().talk).toContain("note: red\n")
		expect(screen.said().talk + screen.said().out).not.toContain("\u001B")
	})

	test("--verbose also says when a step is checked and applied, and what was found", async () => {
		const screen = terminal()
		await play(plainReporter(screen, { verbose: true }), run)
		expect(screen.said().talk).toContain(
			"checking: Tailscale identity\nneeded: Tailscale identity: no identity\napplying: Tailscale identity\n",
		)
	})

	test("--quiet says only what went wrong", async () => {
		const screen = terminal()
		await play(plainReporter(screen, { quiet: true }), run)
		expect(screen.said().out).toBe("")
		expect(screen.said().talk.split("\n").slice(0, 3)).toEqual([
			"warning: Tailscale identity: share: another digest than its sidecar",
			"FAILED: Project: GitHub refuses GH_TOKEN (0.9 s)",
			"BLOCKED: Start: waits for project, which failed",
		])
	})

	test("--quiet says nothing of a run that went well", async () => {
		const screen = terminal()
		const well = record([
			1,
			{
				event: "end",
				exitCode: 0,
				satisfied: 1,
				applied: 0,
				planned: 0,
				failed: 0,
				durationMs: 5,
				summary: [],
				next: "x",
			},
		])
		await play(plainReporter(screen, { quiet: true }), [...run.slice(0, 4), ...well])
		expect(screen.said()).toEqual({ out: "", talk: "" })
	})

	test("an error that ended the run is shown with its hint", async () => {
		const screen = terminal()
		await play(
			plainReporter(screen),
			record([
				0,
				{ event: "error", message: "app-1 refused the key", hint: "ssh-add ~/.ssh/comfyume", exitCode: 6 },
			]),
		)
		expect(screen.said().talk).toBe("\nerror: app-1 refused the key\n  try: ssh-add ~/.ssh/comfyume\n")
	})

	test("a dry run says so, and what it would do", async () => {
		const screen = terminal()
		const dry = record(
			[
				0,
				{
					event: "plan",
					command: "backup",
					environment: "sandbox",
					host: "box",
					place: "stand-in: the directory /srv/box",
					dryRun: true,
					steps: [{ id: "a", title: "Home" }],
				},
			],
			[0, { event: "step", step: "a", outcome: "planned", because: "no snapshot yet", durationMs: 10 }],
			[
				0,
				{
					event: "end",
					exitCode: 0,
					satisfied: 0,
					applied: 0,
					planned: 1,
					failed: 0,
					durationMs: 60,
					summary: [],
				},
			],
		)
		await play(plainReporter(screen), dry)
		expect(screen.said().talk).toBe(
			"backup (dry run: nothing is changed): sandbox, box (stand-in: the directory /srv/box)\nwould apply: Home: no snapshot yet\n\n1 to apply in 0.1 s\n",
		)
	})
})

describe("the stack's containers", () => {
	const facts = (container: string, more: Partial<ContainerFacts> = {}): EventBody => ({
		event: "container",
		...{ container, expected: true, state: "running", health: "healthy", restarts: 0, right: true },
		...{ since: "2025-12-31T23:00:00.000Z", imageCurrent: true, configurationCurrent: true },
		because: "healthy",
		...more,
	})
	const { since: _, ...missing } = { since: "", state: "missing", health: "none", right: false }
	const status = record(
		[0, facts("comfy-redis")],
		[
			0,
			facts("comfy-queue-manager", {
				...{ restarts: 4, health: "unhealthy", right: false, configurationCurrent: false },
				because: "its health check fails: no answer",
			}),
		],
		[
			0,
			{
				...facts("comfy-user001"),
				...missing,
				since: undefined,
				because: "there is no such container",
			} as EventBody,
		],
		[
			0,
			{
				event: "end",
				exitCode: 3,
				satisfied: 1,
				applied: 0,
				planned: 0,
				failed: 1,
				durationMs: 1,
				summary: [],
			},
		],
	)

	test("stand in a table, what is missing first, and what is well says no more than it must", async () => {
		const screen = terminal()
		await play(plainReporter(screen), status)
		expect(screen.said().out).toBe(`container            state      since  restarts  outdated       because
comfy-user001        missing                                    there is no such container
comfy-queue-manager  unhealthy  1 h    4         configuration  its health check fails: no answer
comfy-redis          healthy    1 h
`)
	})

	test.each([80, 40])("fit into %d columns", async (columns) => {
		const screen = terminal({ interactive: true, columns })
		await play(plainReporter(screen), status)
		for (const line of screen.said().out.split("\n")) expect(line.length).toBeLessThanOrEqual(columns)
		expect(screen.said().out).toContain("comfy-user001")
	})
})

describe("on a terminal", () => {
	const screenText = (screen: ReturnType<typeof terminal>) => stripVTControlCharacters(screen.said().talk)
	/** What stands there when all is drawn: what listr2 prints last. */
	const final = (screen: ReturnType<typeof terminal>) => {
		const text = screenText(screen)
		return text.slice(text.lastIndexOf("✔ Home of dev"))
	}

	test("the list ends with every step's outcome and reason, and the closing follows", async () => {
		const screen = terminal({ interactive: true })
		await play(interactiveReporter(screen), run)
		expect(final(screen)).toBe(`✔ Home of dev: as in the snapshot
✔ Tailscale identity: tailscale ip -4 is 100.89.38.43
  › warning: share: another digest than its sidecar
✖ Project: GitHub refuses GH_TOKEN
↓ Start: waits for project, which failed


failed: Project: GitHub refuses GH_TOKEN
  try: gh auth token
blocked: Start: waits for project, which failed

1 applied, 1 already right, 2 failed in 21 s
next: comfyume restore --only project
`)
		expect(screen.said().out).toContain("artifact  source  snapshot")
	})

	test("of steps that run side by side those that wait look as they do, whatever their place in the list", async () => {
		const screen = terminal({ interactive: true })
		const reporter = interactiveReporter(screen)
		const [planned, ...rest] = record(
			[
				0,
				{
					event: "plan",
					...{ command: "start", environment: "sandbox", host: "box", place: "a test", dryRun: false },
					steps: [
						{ id: "user001", title: "user001", lane: "batch 1" },
						{ id: "user002", title: "user002", lane: "batch 1" },
						{ id: "user006", title: "user006", lane: "batch 2" },
					],
				},
			],
			[0, { event: "checking", step: "user001" }],
			[0, { event: "checking", step: "user006" }],
			[1, { event: "step", step: "user006", outcome: "applied", because: "healthy", durationMs: 1 }],
		)
		if (planned !== undefined) reporter.event(planned)
		for (const event of rest) reporter.event(event)
		await poll(() => /✔ user006: healthy/.test(screenText(screen)), { what: "the line", deadlineMs: 20_000 })
		expect(screenText(screen)).toMatch(/⠋ user001: checking\n◼ user002\n/)
		const drawn = screenText(screen)
		expect(drawn.slice(drawn.indexOf("user001: checking"))).not.toMatch(/[^◼\s] user002/)
		await reporter.close()
	})

	test("rate, time left and source are shown while bytes move", async () => {
		const screen = terminal({ interactive: true })
		await play(interactiveReporter(screen), run)
		expect(screenText(screen)).toContain(
			"Tailscale identity: 20.0 MiB of 100.0 MiB, 10.0 MiB/s, 8 s left, from r2",
		)
	})

	test("nothing is wider than 40 columns but a command to copy, and the table becomes blocks", async () => {
		const screen = terminal({ interactive: true, columns: 40 })
		await play(interactiveReporter(screen), run)
		const lines = `${screenText(screen)}${screen.said().out}`
			.split("\n")
			.filter((line) => !/^(next| {2}try):/.test(line))
		expect(lines.filter((line) => line.length > 40)).toEqual([])
		expect(screen.said().out).toContain("home\n  source    local\n  snapshot  20260101T000000Z\n")
	})

	test.each([0, Number.NaN, 3])("a terminal that says it has %d columns is taken for 80", async (columns) => {
		const screen = terminal({ interactive: true, columns })
		await play(interactiveReporter(screen), run)
		expect(final(screen)).toContain("✔ Tailscale identity: tailscale ip -4 is 100.89.38.43\n")
	})

	test("colors are there where they are wanted, and nowhere else", async () => {
		const colored = terminal({ interactive: true, color: true })
		await play(interactiveReporter(colored), run)
		const bare = terminal({ interactive: true })
		await play(interactiveReporter(bare), run)
		expect(colored.said().talk).toContain("\u001B[32m✔")
		// Moving the cursor and clearing lines is how the list is drawn; `m` is what ends a color.
		expect(
			bare
				.said()
				.talk.split("\u001B[")
				.filter((part) => /^[\d;]*m/.test(part)),
		).toEqual([])
	})

	test("the cursor that was hidden is there again", async () => {
		const screen = terminal({ interactive: true })
		await play(interactiveReporter(screen), run)
		const { talk } = screen.said()
		expect(talk.lastIndexOf("\u001B[?25h")).toBeGreaterThan(talk.lastIndexOf("\u001B[?25l"))
	})

	test("events that all come at once end in the same list", async () => {
		const screen = terminal({ interactive: true })
		const reporter = interactiveReporter(screen)
		for (const event of run) reporter.event(event)
		await reporter.close()
		expect(final(screen)).toMatch(
			/^✔ Home of dev: as in the snapshot\n✔ Tailscale identity: .*\n {2}› warning: .*\n✖ Project/,
		)
	})

	test("a run that breaks off leaves no list waiting", async () => {
		const screen = terminal({ interactive: true })
		const error: EventBody = { event: "error", message: "app-1: the connection was reset", exitCode: 4 }
		await play(interactiveReporter(screen), [...run.slice(0, 7), ...record([2, error])])
		expect(final(screen)).toContain("↓ Tailscale identity: applying\n↓ Project\n↓ Start\n")
		expect(final(screen)).toContain("error: app-1: the connection was reset")
	})

	test("signals are not taken away from the one who owns them", async () => {
		const before = process.listeners("SIGINT")
		const screen = terminal({ interactive: true })
		const reporter = interactiveReporter(screen)
		for (const event of run.slice(0, 3)) reporter.event(event)
		await new Promise((resolve) => setImmediate(resolve))
		const own = process.listeners("SIGINT").filter((listener) => !before.includes(listener))
		await reporter.close()
		expect(own.map((listener) => listener.name)).not.toContain("bound signalHandler")
	})
})

describe("--json", () => {
	test("gives each event on a line of stdout, as the schema has it, and nothing else", async () => {
		const screen = terminal({ interactive: true })
		await play(await chooseReporter(screen, { json: true }), run)
		const lines = screen.said().out.trimEnd().split("\n")
		expect(lines.map((line) => eventSchema.parse(JSON.parse(line)))).toEqual(run)
		expect(screen.said().talk).toBe("")
	})
})

describe("the choice", () => {
	test("is the list only on a person's terminal, and lines with --quiet or --verbose", async () => {
		const drawn = async (more: Partial<Terminal>, options = {}) => {
			const screen = terminal(more)
			await play(await chooseReporter(screen, options), run)
			return screen.said().talk.includes("✔")
		}
		expect(await drawn({ interactive: true })).toBe(true)
		expect(await drawn({ interactive: false })).toBe(false)
		expect(await drawn({ interactive: true }, { quiet: true })).toBe(false)
		expect(await drawn({ interactive: true }, { verbose: true })).toBe(false)
	})
})

describe("a screen that is gone", () => {
	const broken = (more: Partial<Terminal> = {}) => {
		const fail = () => {
			throw Object.assign(new Error("write EPIPE"), { code: "EPIPE" })
		}
		return terminal({ out: fail, talk: fail, ...more })
	}

	test.each([
		["json", {}, { json: true }],
		["lines", {}, {}],
		["the list", { interactive: true }, {}],
	])("doesn't hurt the run: %s", async (_, more, options) => {
		const reporter = await chooseReporter(broken(more), options)
		await expect(play(reporter, run)).resolves.toBeUndefined()
	})

	test("nor does a reporter that itself is wrong", async () => {
		const reporter = unfailing({
			event: () => {
				throw new Error("a bug")
			},
			close: () => Promise.reject(new Error("a bug")),
		})
		await expect(play(reporter, run)).resolves.toBeUndefined()
	})
})
