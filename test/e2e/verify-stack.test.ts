// The stack's lines of the checklist against a small real stack: each thing that is broken by hand turns the line that is
// about it, says so in words, and no other line; what waits for that line waits. Put right, all of it is right again.
import {
	mkdirSync,
	mkdtempSync,
	readFileSync,
	renameSync,
	rmSync,
	statSync,
	utimesSync,
	writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { type Event, eventSchema } from "../../src/lib/plan/events.ts"
import { makeCertificate } from "../support/front-door.ts"
import { describeWith } from "../support/parts.ts"
import { poll } from "../support/poll.ts"
import { run } from "../support/run.ts"
import { openStackWorld, type StackWorld } from "../support/stack-world.ts"

const program = fileURLToPath(new URL("../../src/cli.ts", import.meta.url))
const lines = [
	...["files", "images", "containers", "redis", "door", "queue", "users"],
	...["certificate", "served", "extensions", "host-nginx"],
]
/** What waits when the containers are not right, and when the door is not. */
const behindContainers = ["users", "extensions"]
const behindDoor = ["queue", "users", "served"]

/** Puts back what was broken. */
type Undo = () => unknown

type Case = {
	what: string
	/** What fails, in the order of the checklist. */
	failed: readonly string[]
	blocked?: readonly string[]
	/** What the first of them says. */
	says: RegExp
	/** The others' words. */
	also?: RegExp
	breaking: () => Promise<Undo> | Undo
}

describeWith("docker", "the stack's lines of the checklist", () => {
	let world: StackWorld
	let programs: string

	beforeAll(async () => {
		world = await openStackWorld({ users: 3 })
		programs = mkdtempSync(join(tmpdir(), "comfyume-programs-"))
		// STAND-IN for systemctl: it knows nginx.service alone, by two files.
		writeFileSync(
			join(programs, "systemctl"),
			'#!/bin/sh\ncase $1 in is-active | is-enabled) [ -e "$(dirname "$0")/$1" ] ;; *) exit 1 ;; esac\n',
			{ mode: 0o755 },
		)
		const rendered = await world.comfyume("generate-users")
		expect(rendered.exitCode, rendered.stderr).toBe(0)
		await world.compose("up", "--detach", "--wait", "--wait-timeout", "280")
	})
	afterAll(async () => {
		await world?.[Symbol.asyncDispose]()
		if (programs !== undefined) rmSync(programs, { recursive: true })
	})

	const verify = async (configuration = "comfyume.yaml") => {
		const { environment } = world.engine
		const words = ["--env", "sandbox", "--config", world.path(configuration), "--only", lines.join(",")]
		const { exitCode, stdout, stderr } = await run(
			process.execPath,
			[program, "verify", "--json", ...words],
			{
				workingDirectory: world.directory,
				environment: { ...environment, HOME: world.directory, PATH: `${programs}:${environment.PATH}` },
				allowedExitCodes: "any",
				timeoutMs: 120_000,
			},
		)
		const secrets = ["credentials.env", ".env"].flatMap((file) =>
			world.entries(file).flatMap(({ name, value }) => {
				return /PASSWORD|SECRET|TOKEN_KEY|CREDENTIALS/.test(name) ? [value.replace(/^\w+:/, "")] : []
			}),
		)
		for (const secret of secrets.filter((value) => value.length > 8))
			expect(`${stdout}${stderr}`.includes(secret), "a secret is shown").toBe(false)
		const events = stdout
			.split("\n")
			.filter(Boolean)
			.map((line): Event => eventSchema.parse(JSON.parse(line)))
		const steps = events.flatMap((event) => (event.event === "step" ? [event] : []))
		const ended = (outcome: string) =>
			lines.filter((line) => steps.find(({ step }) => step === line)?.outcome === outcome)
		const why = `${JSON.stringify(steps.filter(({ outcome }) => outcome !== "satisfied"))}${stderr}`
		return { exitCode, why, steps, failed: ended("failed"), blocked: ended("blocked") }
	}

	const stack = (...parts: string[]) => world.path("stack", ...parts)

	/** Another text in the same file, as old as before: what only looks at its age sees nothing. */
	const changed = (file: string, change: (text: string) => string, { asOld = true } = {}): Undo => {
		const text = readFileSync(file, "utf8")
		const { atime, mtime } = statSync(file)
		const write = (other: string) => {
			writeFileSync(file, other)
			if (asOld) utimesSync(file, atime, mtime)
		}
		const other = change(text)
		expect(other, `nothing is changed in ${file}`).not.toBe(text)
		write(other)
		return () => write(text)
	}

	const status = async (path: string, as?: string) =>
		(await world.ask(path, as === undefined ? {} : { as }).catch(() => ({ status: 0 }))).status
	const until = (what: string, ask: () => Promise<boolean>) =>
		poll(ask, { what, deadlineMs: 30_000, intervalMs: 100 })
	const untilDoorAnswers = (path: string, wanted: number, as?: string) =>
		until(`${path} answers ${wanted}`, async () => (await status(path, as)) === wanted)

	/** Another text in nginx's site, read by the nginx that runs. */
	const doorChanged = async (change: (text: string) => string, seen: () => Promise<unknown>) => {
		const undo = changed(stack("nginx/comfyume.conf"), change)
		await reload()
		await seen()
		return async () => {
			undo()
			await reload()
		}
	}
	const reload = () =>
		world.inside("comfy-nginx", "nginx", "-c", "/etc/nginx/comfyume/nginx.conf", "-s", "reload")

	/** Other passwords, in the gate's sight: it knows a new file by its age. */
	const passwordsChanged = async (change: (text: string) => string, seen?: () => Promise<unknown>) => {
		const undo = changed(stack("auth/htpasswd"), change, { asOld: false })
		await seen?.()
		return async () => {
			undo()
			for (const name of ["admin", "user002"])
				await untilDoorAnswers(name === "admin" ? "/admin/" : `/${name}/`, 200, world.as(name))
		}
	}

	const redis = (...words: string[]) => {
		const password = world.entries(".env").find(({ name }) => name === "REDIS_PASSWORD")?.value ?? ""
		// In the tests alone: here the password is made up.
		return world.inside("comfy-redis", "redis-cli", "--no-auth-warning", "-a", password, ...words)
	}

	const untilHealthy = (container: string) =>
		until(`${container} is healthy`, async () => {
			const [state] = await world.engine.lines("inspect", "--format", "{{.State.Health.Status}}", container)
			return state === "healthy"
		})

	test("are all right on a stack that is", async () => {
		const { exitCode, why, steps } = await verify()
		expect(exitCode, why).toBe(0)
		expect(steps.map(({ step }) => step).sort()).toEqual([...lines].sort())
		// Each says what was asked, and what was answered.
		for (const { step, asked, because } of steps) {
			expect(asked, step).toMatch(/\w/)
			expect(because, step).toMatch(/\w/)
		}
		const because = Object.fromEntries(steps.map(({ step, because }) => [step, because]))
		expect(because).toMatchObject({
			redis: "PONG",
			users: "3 users and admin get in, each into the own page alone",
			containers: "all 8 are healthy and current",
			door: "/ 401, /health 200, /health/ping 200, /user001/ 401, /admin/ 401, /user001/ (wrong password) 401",
		})
		expect(because["certificate"]).toMatch(/^stand-in: it is self-signed/)
	})

	const cases: readonly Case[] = [
		{
			what: "a user is missing among the passwords",
			failed: ["files", "users"],
			says: /^user002 can't log in/,
			also: /user002 gets 401/,
			breaking: () =>
				passwordsChanged(
					(text) => text.replace(/^user002:.*\n/m, ""),
					() => untilDoorAnswers("/user002/", 401, world.as("user002")),
				),
		},
		{
			what: "somebody more can log in",
			failed: ["files"],
			says: /^user009 can log in, and is not in the roster/,
			breaking: () =>
				passwordsChanged(
					(text) => `${text}${/^user002:.*\n/m.exec(text)?.[0].replace("user002", "user009")}`,
				),
		},
		{
			what: "the passwords are gone",
			failed: ["files", "queue", "users"],
			says: /htpasswd is empty$/,
			also: /^the door doesn't let admin in \(401\)/,
			breaking: () =>
				passwordsChanged(
					() => "",
					() => untilDoorAnswers("/user002/", 401, world.as("user002")),
				),
		},
		{
			what: "a line of the passwords is none",
			failed: ["files"],
			says: /htpasswd: line 1 is no user's$/,
			breaking: () => passwordsChanged((text) => `nonsense\n${text}`),
		},
		{
			what: "a hash is of another kind",
			failed: ["files", "queue", "users"],
			says: /^admin's hash is not bcrypt of cost 10$/,
			also: /^the door doesn't let admin in \(401\)/,
			breaking: () =>
				passwordsChanged(
					(text) => text.replace(/^admin:\$2y\$10\$/m, "admin:$2y$05$"),
					() => untilDoorAnswers("/admin/", 401, world.as("admin")),
				),
		},
		{
			what: "a directory stands where Docker found no file",
			failed: ["files"],
			says: /redis\.conf is a directory, and a file belongs there$/,
			breaking: () => {
				const file = stack("redis/redis.conf")
				renameSync(file, `${file}.kept`)
				mkdirSync(file)
				utimesSync(file, new Date(0), new Date(0))
				return () => {
					rmSync(file, { recursive: true })
					renameSync(`${file}.kept`, file)
				}
			},
		},
		{
			what: "the page of health is gone",
			failed: ["files", "door"],
			blocked: behindDoor,
			says: /health\.html is not there$/,
			also: /^\/health 404, not 200$/,
			breaking: () => {
				const file = stack("nginx/html/health.html")
				renameSync(file, `${file}.kept`)
				return () => renameSync(`${file}.kept`, file)
			},
		},
		{
			what: "everybody is lost",
			failed: ["files", "containers", "queue"],
			blocked: behindContainers,
			says: /^nobody is in the roster$/,
			also: /^nobody is in the roster$/,
			breaking: () => changed(stack("credentials.env"), () => "# nobody\n"),
		},
		{
			what: "an image is gone",
			failed: ["images"],
			says: /^not there: nginx:1\.28-alpine$/,
			breaking: async () => {
				await world.docker("tag", "nginx:1.28-alpine", "test-kept:1")
				await world.docker("image", "rm", "--force", "nginx:1.28-alpine")
				return async () => {
					await world.docker("tag", "test-kept:1", "nginx:1.28-alpine")
					await world.docker("image", "rm", "test-kept:1")
				}
			},
		},
		{
			what: "an image is newer than its container",
			failed: ["containers"],
			blocked: behindContainers,
			says: /^1 of 8 is not right$/,
			breaking: async () => {
				await world.docker("tag", "comfyume-admin:local", "test-kept:1")
				await world.docker("tag", "nginx:1.28-alpine", "comfyume-admin:local")
				return async () => {
					await world.docker("tag", "test-kept:1", "comfyume-admin:local")
					await world.docker("image", "rm", "test-kept:1")
				}
			},
		},
		{
			what: "a container is stopped",
			failed: ["containers"],
			blocked: behindContainers,
			says: /^1 of 8 is not right$/,
			breaking: async () => {
				await world.docker("stop", "--time", "1", "comfy-user002")
				return async () => {
					await world.docker("start", "comfy-user002")
					await untilHealthy("comfy-user002")
				}
			},
		},
		{
			what: "a container is missing",
			failed: ["containers"],
			blocked: behindContainers,
			says: /^1 of 8 is not right, 1 of them missing$/,
			breaking: async () => {
				await world.docker("rename", "comfy-user003", "somebody")
				return () => world.docker("rename", "somebody", "comfy-user003")
			},
		},
		{
			what: "a removed user's container runs on",
			failed: ["containers"],
			blocked: behindContainers,
			says: /^1 of 9 is not right$/,
			breaking: async () => {
				const words = ["--name", "comfy-user009", "--label", "com.docker.compose.project=comfyume"]
				await world.docker("run", "--detach", ...words, "node:24-slim", "sleep", "600")
				return () => world.docker("rm", "--force", "comfy-user009")
			},
		},
		{
			what: "the compose file says something else than what runs",
			failed: ["containers"],
			blocked: behindContainers,
			says: /^\d of 8 (is|are) not right$/,
			breaking: () => changed(stack(".env"), (text) => `${text}SERVERLESS_API_KEY=made-up\n`),
		},
		{
			what: "Redis has another password",
			failed: ["redis"],
			blocked: ["queue"],
			says: /^WRONGPASS/,
			breaking: async () => {
				const password = world.entries(".env").find(({ name }) => name === "REDIS_PASSWORD")?.value ?? ""
				await redis("config", "set", "requirepass", "another-made-up")
				return () =>
					world.inside(
						...["comfy-redis", "redis-cli", "--no-auth-warning", "-a", "another-made-up"],
						...["config", "set", "requirepass", password],
					)
			},
		},
		{
			what: "Redis lets in everybody",
			failed: ["redis"],
			blocked: ["queue"],
			says: /^DENIED Redis is running in protected mode.*is set for the default user\.$/,
			breaking: async () => {
				const password = world.entries(".env").find(({ name }) => name === "REDIS_PASSWORD")?.value ?? ""
				await redis("config", "set", "requirepass", "")
				return () => world.inside("comfy-redis", "redis-cli", "config", "set", "requirepass", password)
			},
		},
		{
			what: "the door stands open",
			failed: ["door"],
			blocked: behindDoor,
			says: /^\/user001\/ 200, not 401; \/admin\/ 200, not 401; \/user001\/ \(wrong password\) 200, not 401$/,
			breaking: () =>
				doorChanged(
					(text) => text.replaceAll("auth_request /_comfyume/check;", ""),
					() => untilDoorAnswers("/user001/", 200),
				),
		},
		{
			what: "the door is shut to the world's health checks",
			failed: ["door"],
			blocked: behindDoor,
			says: /^\/health 404, not 200$/,
			breaking: () =>
				doorChanged(
					(text) => text.replace("location = /health {", "location = /health-elsewhere {"),
					() => untilDoorAnswers("/health", 404),
				),
		},
		{
			what: "everybody gets into everybody's page",
			failed: ["users"],
			says: /^user001 gets 200 at user002; user002 gets 200 at user003; user003 gets 200 at user001$/,
			breaking: () =>
				doorChanged(
					(text) => text.replace("X-Comfyume-Door $comfyume_door;", "X-Comfyume-Door any;"),
					() => untilDoorAnswers("/user002/", 200, world.as("user001")),
				),
		},
		{
			what: "a user's password is another than the one that was handed out",
			failed: ["users"],
			says: /^user002 gets 401; user002 gets 401 at user003$|^user002 gets 401$/,
			breaking: () =>
				changed(stack("credentials.env"), (text) =>
					text.replace(/^(USER_CREDENTIALS_USER002=).*$/m, "$1user002:made-up-and-wrong-1"),
				),
		},
		{
			what: "something else answers in the queue manager's place",
			failed: ["queue"],
			says: /^it answers \d+, and not as a queue manager$/,
			breaking: () =>
				doorChanged(
					(text) => text.replace(/set \$comfyume_manager .*;/, "set $comfyume_manager comfy-admin:8080;"),
					async () =>
						until("the admin's dashboard answers", async () => {
							const answer = await world.ask("/api/health", { as: world.as("admin") })
							return !answer.text.includes("redis_connected")
						}),
				),
		},
		{
			what: "the queue manager has lost its Redis",
			failed: ["queue"],
			says: /^it has no Redis$/,
			breaking: async () => {
				const network = "comfyume_data"
				await world.docker("network", "disconnect", network, "comfy-queue-manager")
				const isConnected = async () =>
					(await world.ask("/api/health", { as: world.as("admin") })).text.includes('"redis_connected":true')
				await until("the queue manager notices", async () => !(await isConnected()))
				return async () => {
					await world.docker("network", "connect", "--alias", "queue-manager", network, "comfy-queue-manager")
					await until("the queue manager finds Redis again", isConnected)
				}
			},
		},
		{
			what: "the key is not the certificate's",
			failed: ["certificate"],
			blocked: ["served"],
			says: /key\.pem is not the key of/,
			breaking: async () => {
				await makeCertificate(world.path("another"))
				return changed(world.path("certificates/key.pem"), () =>
					readFileSync(world.path("another/key.pem"), "utf8"),
				)
			},
		},
		{
			what: "a stand-in's certificate has ended",
			failed: ["certificate"],
			blocked: ["served"],
			says: /^it ended on \d{4}-/,
			breaking: async () => {
				const cert = world.path("certificates/cert.pem")
				const key = world.path("certificates/key.pem")
				const ended = world.path("ended.pem")
				await run("openssl", ["x509", "-in", cert, "-signkey", key, "-days", "-1", "-out", ended])
				return changed(cert, () => readFileSync(ended, "utf8"))
			},
		},
		{
			what: "the certificate is unreadable",
			failed: ["certificate"],
			blocked: ["served"],
			says: /^no certificate can be read from/,
			breaking: () => changed(world.path("certificates/cert.pem"), () => "-----BEGIN NONSENSE-----\n"),
		},
		{
			what: "nginx serves the certificate of yesterday",
			failed: ["served"],
			says: /^nginx serves another one, until \d{4}-/,
			breaking: async () => {
				await makeCertificate(world.path("another"))
				const undo = ["cert.pem", "key.pem"].map((file) =>
					changed(world.path("certificates", file), () => readFileSync(world.path("another", file), "utf8")),
				)
				return () => undo.forEach((one) => void one())
			},
		},
		{
			what: "a file of an extension is another",
			failed: ["extensions"],
			says: /^user002: comfyume_stand_in\/__init__\.py is another$/,
			breaking: () => changed(extension("user002"), (text) => `${text}# changed\n`),
		},
		{
			what: "an extension is missing",
			failed: ["extensions"],
			says: /^user003: comfyume_stand_in\/__init__\.py is missing$/,
			breaking: () => {
				renameSync(extension("user003"), `${extension("user003")}.kept`)
				return () => renameSync(`${extension("user003")}.kept`, extension("user003"))
			},
		},
	]
	const extension = (user: string) =>
		stack("user_data", user, "comfyui/custom_nodes/comfyume_stand_in/__init__.py")

	test("an nginx of the machine's own, which serves something else at other ports, is no fault", async () => {
		const states = ["is-active", "is-enabled"].map((name) => join(programs, name))
		for (const state of states) writeFileSync(state, "")
		const { failed, steps } = await verify()
		for (const state of states) rmSync(state)
		expect(failed).toEqual([])
		expect(steps.find(({ step }) => step === "host-nginx")?.because).toBe(
			"on, at other ports: the container serves",
		)
	})

	describe("one is told apart from all others when", () => {
		for (const { what, failed, blocked = [], says, also, breaking } of cases)
			test(what, async () => {
				const undo = await breaking()
				try {
					const said = await verify()
					expect({ failed: said.failed, blocked: said.blocked }, said.why).toEqual({ failed, blocked })
					expect(said.exitCode).toBe(3)
					const because = (line: string | undefined) => said.steps.find(({ step }) => step === line)
					expect(because(failed[0])?.because).toMatch(says)
					if (also !== undefined) expect(because(failed[1])?.because).toMatch(also)
					// And what to type next.
					for (const line of failed) expect(because(line)?.hint, line).toMatch(/\w/)
				} finally {
					await undo()
				}
			})
	})

	test("the terminal names what is wrong, and what to type", async () => {
		await world.docker("stop", "--time", "1", "comfy-user002")
		try {
			const { exitCode, stdout, stderr } = await world.comfyume("verify", "--only", "containers,files")
			expect(exitCode).toBe(3)
			expect(`${stdout}${stderr}`).toMatch(/comfy-user002.*exited/)
			expect(stderr).toContain("try: comfyume start --env sandbox")
		} finally {
			await world.docker("start", "comfy-user002")
			await untilHealthy("comfy-user002")
		}
	})

	test("and the configuration of another mode is told from the queue manager's", async () => {
		const text = readFileSync(world.path("comfyume.yaml"), "utf8")
		const other = text.replace("    stack:\n", "    stack:\n      inferenceMode: local\n")
		writeFileSync(world.path("other.yaml"), other)
		const said = await verify("other.yaml")
		expect({ failed: said.failed, blocked: said.blocked }, said.why).toEqual({
			failed: ["queue"],
			blocked: [],
		})
		expect(said.steps.find(({ step }) => step === "queue")?.because).toBe(
			"it works for redis, and comfyume.yaml says local",
		)
	})

	test("wrong passwords by the dozen, those of checklists among them, don't turn the door's line", async () => {
		await until("the gate has had enough", async () => (await status("/user001/", "user001:made-up")) === 429)
		const { exitCode, why, steps } = await verify()
		expect(exitCode, why).toBe(0)
		expect(steps.find(({ step }) => step === "door")?.because).toContain("/user001/ (wrong password) 429")
	})

	test("nothing that was put right is still told as wrong", async () => {
		const { exitCode, why } = await verify()
		expect(exitCode, why).toBe(0)
	})
})
