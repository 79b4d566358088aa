// A workshop in containers, small: the real compose files, Redis and nginx, and one stand-in for the images that are built
// here. Its services answer their health checks unless a test says otherwise.
import { type ChildProcess, spawn } from "node:child_process"
import { cpSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { type Event, eventSchema } from "../../src/lib/plan/events.ts"
import { install } from "./cli.ts"
import type { startDocker } from "./docker.ts"
import { baseImages, ensureBaseImages } from "./docker-base.ts"
import { run } from "./run.ts"
import { freePort } from "./sshd.ts"

export type Engine = Awaited<ReturnType<typeof startDocker>>

export type Ended = {
	exitCode: number | null
	stdout: string
	stderr: string
	events: Event[]
	/** How each step ended. */
	outcomes: Readonly<Record<string, string>>
}

export type Workshop = Awaited<ReturnType<typeof openWorkshop>>

const builtHere = [
	"comfyume-queue-manager:local",
	"comfyume-admin:local",
	"comfyume-auth-gate:local",
	"comfyume-frontend:v0.11.0",
]

// `crash` and `sick` in a user's directory make his frontend so; PORT stands in the compose files of those that have one.
const service = `
const { existsSync } = require("node:fs")
const { USER_ID: user, PORT: port = user ? 8188 : 8080, QUEUE_MANAGER_TOKEN: token } = process.env
console.log("stand-in of", user ?? port, "starts")
const marked = (mark) => existsSync("/comfyui/user/" + mark)
if (marked("crash")) { console.error("it breaks with", token); process.exit(7) }
require("node:http").createServer((request, response) => {
	response.statusCode = marked("sick") ? 500 : 200
	response.end(JSON.stringify({ status: "healthy", redis_connected: true, inference_mode: "redis", workers_active: 1, queue_depth: 4 }))
}).listen(port, "0.0.0.0")
process.on("SIGTERM", () => { console.log("ends"); process.exit(0) })
`

/**
 * A new world with rendered files; nothing is started.
 * @param options.stack lines of the configuration's `stack`, besides directory, users, ports and paths
 */
export async function openWorkshop(engine: Engine, { users, stack = "" }: { users: number; stack?: string }) {
	const directory = realpathSync(mkdtempSync(join(tmpdir(), "comfyume-workshop-")))
	const path = (...parts: string[]) => join(directory, ...parts)
	for (const name of [
		"outputs",
		"inputs",
		"models/shared",
		"share-outputs",
		"workflows",
		"certificates",
		"acme",
		"server",
	])
		mkdirSync(path(name), { recursive: true })
	const [http, https, firstUser] = [await freePort(), await freePort(), 8188]
	await certificate(path("certificates"))
	const configure = (more = stack) =>
		writeFileSync(path("comfyume.yaml"), configuration(directory, users, { http, https }, more))
	configure()
	const launcher = await install(path("program"))
	cpSync(fileURLToPath(new URL("../../templates", import.meta.url)), path("program/templates"), {
		recursive: true,
	})
	const environment = {
		PATH: engine.environment.PATH,
		HOME: directory,
		DOCKER_HOST: engine.environment.DOCKER_HOST,
		DOCKER_CONFIG: engine.environment.DOCKER_CONFIG,
	}
	const secrets = () =>
		["credentials.env", ".env"].flatMap((file) => {
			const text = readFileSync(path("stack", file), "utf8")
			return [
				...text.matchAll(/(?:PASSWORD|SECRET|TOKEN\w*|KEY|CREDENTIALS_\w+)='?(?:\w+:)?([^'\n]{10,})/g),
			].map(([, value]) => value ?? "")
		})
	const start = (words: readonly string[], variables: Readonly<Record<string, string>> = {}) => {
		const spoken = ["--env", "sandbox", "--config", path("comfyume.yaml")]
		const child = spawn(process.execPath, [launcher, ...words, ...spoken], {
			cwd: directory,
			env: { ...environment, ...variables },
			stdio: ["ignore", "pipe", "pipe"],
		})
		return { child, ended: collect(child, words, secrets) }
	}
	return {
		directory,
		path,
		launcher,
		environment,
		https,
		firstUser,
		configure,
		start,
		run: (words: readonly string[], variables?: Readonly<Record<string, string>>) =>
			start(words, variables).ended,
		/** What Docker itself says of a container. */
		inspect: async (container: string) => {
			const { stdout } = await engine.docker("inspect", container)
			return JSON.parse(stdout)[0] as {
				Id: string
				RestartCount: number
				State: {
					Status: string
					StartedAt: string
					FinishedAt: string
					ExitCode: number
					Health?: { Status: string }
				}
			}
		},
		/** Container -> id, of all that run. */
		running: async () =>
			new Map(
				(await engine.lines("ps", "--no-trunc", "--format", "{{.Names}} {{.ID}}")).map((line) => {
					const [name = "", id = ""] = line.split(" ")
					return [name, id] as const
				}),
			),
		mark: (user: string, mark: string) => writeFileSync(path("stack/user_data", user, mark), ""),
		unmark: (user: string, mark: string) => rmSync(path("stack/user_data", user, mark)),
		async [Symbol.asyncDispose]() {
			await engine.removeEverything()
			rmSync(directory, { recursive: true, force: true })
		},
	}
}

/** The stand-in under the names of the images that are built here; what had these names has them again afterwards. */
export async function standInImages(engine: Engine) {
	await ensureBaseImages(engine)
	const before = new Map<string, string>()
	for (const name of builtHere) {
		const [id] = await engine.lines("images", "--quiet", "--no-trunc", name)
		if (id !== undefined) before.set(name, id)
	}
	const tag = async (mark: string) => {
		const directory = mkdtempSync(join(tmpdir(), "comfyume-image-"))
		writeFileSync(join(directory, "service.cjs"), service)
		const lines = [
			`FROM ${baseImages.node}`,
			`LABEL mark=${mark}`,
			"COPY service.cjs /service.cjs",
			'CMD ["node", "/service.cjs"]',
		]
		writeFileSync(join(directory, "Dockerfile"), `${lines.join("\n")}\n`)
		await engine.docker("build", "--quiet", "--tag", "comfyume-test-stand-in:1", directory)
		rmSync(directory, { recursive: true })
	}
	await tag("one")
	for (const name of builtHere) await engine.docker("tag", "comfyume-test-stand-in:1", name)
	return {
		/** The images of a registry under their names, whatever a test has put there. */
		restoreBase: () => ensureBaseImages(engine),
		/** A new image under one of the names, as a build gives it. */
		rebuild: async (name: string) => {
			await tag("two")
			await engine.docker("tag", "comfyume-test-stand-in:1", name)
		},
		async [Symbol.asyncDispose]() {
			for (const name of builtHere) {
				const id = before.get(name)
				if (id === undefined)
					await engine.docker("image", "rm", "--no-prune", name, { allowedExitCodes: "any" })
				else await engine.docker("tag", id, name)
			}
			await engine.docker("image", "rm", "comfyume-test-stand-in:1", { allowedExitCodes: "any" })
		},
	}
}

async function certificate(directory: string): Promise<void> {
	await run("openssl", [
		...["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "90", "-subj", "/CN=workshop.example.test"],
		...["-addext", "subjectAltName=DNS:workshop.example.test"],
		...["-keyout", join(directory, "key.pem"), "-out", join(directory, "cert.pem")],
	])
}

const configuration = (
	directory: string,
	users: number,
	{ http, https }: { http: number; https: number },
	more: string,
) => `version: 1
environments:
  sandbox:
    domain: workshop.example.test
    allowStandIns: true
    hosts: [{ name: app-1, role: app, connection: directory, directory: ${directory}/server }]
    git:
      project: { remote: ${directory}/project.git, branch: main, path: /project }
      scripts: { remote: ${directory}/scripts.git, branch: main, path: /scripts }
    stack:
      directory: ${directory}/stack
      users: ${users}
      ports: { http: ${http}, https: ${https} }
      paths:
        outputs: ${directory}/outputs
        inputs: ${directory}/inputs
        models: ${directory}/models
        shareOutputs: ${directory}/share-outputs
        workflows: ${directory}/workflows
        certificates: ${directory}/certificates
        acme: ${directory}/acme
${more}`

function collect(child: ChildProcess, words: readonly string[], secrets: () => string[]): Promise<Ended> {
	let stdout = ""
	let stderr = ""
	child.stdout?.setEncoding("utf8").on("data", (text: string) => {
		stdout += text
	})
	child.stderr?.setEncoding("utf8").on("data", (text: string) => {
		stderr += text
	})
	return new Promise((resolve, reject) => {
		child.once("error", reject)
		child.once("close", (exitCode) => {
			// Whatever it says, it says no secret.
			for (const secret of words[0] === "generate-users" ? [] : secrets())
				if (`${stdout}${stderr}`.includes(secret))
					return reject(new Error(`${words.join(" ")} shows a secret`))
			const events = words.includes("--json")
				? stdout
						.split("\n")
						.filter(Boolean)
						.map((line) => eventSchema.parse(JSON.parse(line)))
				: []
			const outcomes = Object.fromEntries(
				events.flatMap((event) => (event.event === "step" ? [[event.step, event.outcome]] : [])),
			)
			resolve({ exitCode, stdout, stderr, events, outcomes })
		})
	})
}
