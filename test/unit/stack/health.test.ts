// What `docker inspect` says, and what is made of it.
import { describe, expect, test } from "vitest"
import { type Container, hopeless, isUp, judge, readContainers } from "../../../src/lib/stack/health.ts"

const inspected = {
	Id: "c0ffee",
	Name: "/comfy-user001",
	Image: "sha256:one",
	RestartCount: 0,
	State: {
		Status: "running",
		ExitCode: 0,
		OOMKilled: false,
		Error: "",
		StartedAt: "2026-11-20T06:30:00.123456789Z",
		FinishedAt: "0001-01-01T00:00:00Z",
		Health: {
			Status: "healthy",
			FailingStreak: 0,
			Log: [
				{ ExitCode: 0, Output: "first\n" },
				{ ExitCode: 0, Output: "ok\n" },
			],
		},
	},
	Config: {
		Labels: {
			"com.docker.compose.project": "comfyume",
			"com.docker.compose.service": "user001",
			"com.docker.compose.config-hash": "abc",
		},
	},
}
const container = (more: Partial<Container> = {}): Container => {
	const [read] = readContainers(JSON.stringify([inspected]))
	if (read === undefined) throw new Error("nothing was read")
	return { ...read, ...more }
}

describe("what docker inspect prints", () => {
	test("is read: names without their slash, never as no time, the last health check", () => {
		expect(container()).toEqual({
			id: "c0ffee",
			name: "comfy-user001",
			project: "comfyume",
			service: "user001",
			configHash: "abc",
			state: "running",
			health: "healthy",
			probe: "ok",
			restarts: 0,
			exitCode: 0,
			outOfMemory: false,
			error: "",
			startedAt: new Date("2026-11-20T06:30:00.123Z"),
			finishedAt: undefined,
			imageId: "sha256:one",
		})
	})

	test("may lack labels and a health check", () => {
		const { Health: _, ...State } = inspected.State
		const [read] = readContainers(JSON.stringify([{ ...inspected, State, Config: { Labels: null } }]))
		expect(read).toMatchObject({ project: undefined, configHash: undefined, health: "none", probe: "" })
		expect(readContainers("")).toEqual([])
	})
})

describe("a container is right", () => {
	const wanted = { hashes: ["other", "abc"], imageId: "sha256:one" }
	test.each([
		["when it is healthy, of this image and this configuration", container(), wanted, true, "healthy"],
		["not when there is none", undefined, wanted, false, "there is no such container"],
		[
			"not with an older image",
			container({ imageId: "sha256:two" }),
			wanted,
			false,
			"healthy, with an older image",
		],
		[
			"not with an older configuration",
			container({ configHash: "older" }),
			wanted,
			false,
			"healthy, with an older configuration",
		],
		[
			"not while it starts",
			container({ health: "starting" }),
			wanted,
			false,
			"its health check has not passed yet",
		],
		[
			"not when its check fails, whose words are told",
			container({ health: "unhealthy", probe: "a\ncurl: (7) refused" }),
			wanted,
			false,
			"its health check fails: curl: (7) refused",
		],
		["not when nothing checks it", container({ health: "none" }), wanted, false, "nothing checks its health"],
		[
			"not when it loops",
			container({ state: "restarting", restarts: 5, exitCode: 7 }),
			wanted,
			false,
			"it starts again and again: 5 times, its last run ended with exit code 7",
		],
		[
			"not when it has ended, with why",
			container({ state: "exited", exitCode: 137, outOfMemory: true }),
			wanted,
			false,
			"exited: its last run ended with exit code 137 (its memory was used up)",
		],
		["as far as can be said", container(), {}, true, "healthy"],
	])("%s", (_, subject, expected, right, because) => {
		expect(judge(subject, expected)).toMatchObject({ right, because })
	})

	test("and says of image and configuration only what is known", () => {
		expect(judge(container(), { imageId: "sha256:two" })).toEqual({
			...{ right: false, because: "healthy, with an older image", imageCurrent: false },
		})
	})
})

describe("waiting", () => {
	test.each([
		["goes on while it starts", container({ health: "starting" }), undefined],
		["goes on after one restart", container({ health: "starting", restarts: 4 }), undefined],
		["goes on while it is being made", container({ state: "created" }), undefined],
		["ends when it loops", container({ health: "starting", restarts: 5 }), /again and again/],
		["ends when it has ended", container({ state: "exited", exitCode: 1 }), /exit code 1/],
		["ends when Docker calls it unhealthy", container({ health: "unhealthy" }), /its health check fails/],
		["ends when nothing will ever say that it is healthy", container({ health: "none" }), /nothing checks/],
		["ends when it is gone", undefined, /gone/],
	])("%s", (_, subject, why) => {
		const said = hopeless(subject, 3)
		if (why === undefined) expect(said).toBeUndefined()
		else expect(said).toMatch(why)
	})

	test("is for what runs, loops or is paused: those can be stopped", () => {
		expect(
			["running", "restarting", "paused", "exited", "created", "dead"].filter((state) =>
				isUp(container({ state })),
			),
		).toEqual([...["running", "restarting", "paused"]])
	})
})
