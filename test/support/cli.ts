// The command line as its users meet it: a process, in a small world like the demo's. The server and the share are
// directories; the S3 server, git and all programs are real. No run of it may show a secret, and each is looked at.
import { type ChildProcess, spawn } from "node:child_process"
import { createHash } from "node:crypto"
import {
	cpSync,
	existsSync,
	lstatSync,
	mkdirSync,
	mkdtempSync,
	readdirSync,
	readFileSync,
	readlinkSync,
	rmSync,
	writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { buildCli } from "../../scripts/build.ts"
import { type Event, eventSchema } from "../../src/lib/plan/events.ts"
import { type S3Server, startS3Server } from "./s3-server/index.ts"
import { fillServer, freshServer, makeRemote, tailscaleAddressOf } from "./server-files.ts"

const repository = fileURLToPath(new URL("../..", import.meta.url))
export const bucket = "cache-backups"

/** None of these may ever be seen on a screen, in a log or in a process list. */
export const secrets = {
	R2_ACCESS_KEY_ID: "made-up-key-id-0001",
	R2_SECRET_ACCESS_KEY: "made-up-secret-access-key-0002",
	GH_TOKEN: "made-up-github-token-0003",
} as const

export type Ended = {
	/** Null when a signal ended it. */
	exitCode: number | null
	signal: NodeJS.Signals | null
	stdout: string
	stderr: string
	/** The lines of stdout that are events; empty without `--json`. */
	events: Event[]
	/** How each step ended. */
	outcomes: Readonly<Record<string, string>>
}

export type RunOptions = {
	/** On top of a small environment: PATH and HOME. */
	variables?: Readonly<Record<string, string>>
	workingDirectory?: string
	/** Modules that are loaded first. */
	preload?: string
	/** Called with each event as it comes, with `--json`. */
	onEvent?: (event: Event, child: ChildProcess) => void
	/** Without configuration and environment, for commands that take neither. */
	bare?: boolean
	onStart?: (child: ChildProcess) => void
}

export type Running = { child: ChildProcess; ended: Promise<Ended> }

export type World = Awaited<ReturnType<typeof createWorld>>

/** A server that holds what a workshop's server holds, an empty share, an empty bucket. */
export async function createWorld() {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-cli-"))
	const path = (...parts: string[]) => join(directory, ...parts)
	const server = path("server")
	const share = path("share")
	const home = path("operator")
	for (const made of [share, home]) mkdirSync(made)
	makeRemote(path("project.git"))
	await fillServer(server, path("project.git"))
	const address = tailscaleAddressOf(server)
	const s3 = await startS3Server({
		buckets: [bucket],
		credentials: [{ accessKeyId: secrets.R2_ACCESS_KEY_ID, secretAccessKey: secrets.R2_SECRET_ACCESS_KEY }],
	})
	const configuration = path("comfyume.yaml")
	const configure = (change: (text: string) => string = (text) => text) =>
		writeFileSync(configuration, change(configurationText(path("project.git"), s3.endpoint, address)))
	configure()
	writeFileSync(path("secrets.env"), envFile(secrets), { mode: 0o600 })

	const launcher = await install(path("package"))

	const start = (words: readonly string[], options: RunOptions = {}): Running => {
		const spoken = options.bare === true ? [] : ["--env", "sandbox", "--config", configuration]
		const preload = options.preload === undefined ? [] : ["--import", options.preload]
		const child = spawn(process.execPath, [...preload, launcher, ...words, ...spoken], {
			cwd: options.workingDirectory ?? home,
			env: { PATH: process.env.PATH, HOME: home, ...options.variables },
			stdio: ["ignore", "pipe", "pipe"],
		})
		options.onStart?.(child)
		return { child, ended: collect(child, words, options.onEvent) }
	}

	return {
		directory,
		path,
		server,
		share,
		s3,
		address,
		configuration,
		/** Writes the configuration anew, with a change. */
		configure,
		start,
		run: (words: readonly string[], options?: RunOptions) => start(words, options).ended,
		/** Takes the server away; a fresh machine stands in its place. */
		loseServer: async () => {
			rmSync(server, { recursive: true })
			await freshServer(server)
		},
		/** Notes server, share and bucket, to begin from them again and again. */
		save: () => save({ server, share, s3 }, mkdtempSync(path("saved-"))),
		[Symbol.asyncDispose]: async () => {
			await s3.close()
			rmSync(directory, { recursive: true, force: true })
		},
	}
}

/** The program as the npm package holds it, in a place of its own: it starts twice as fast as from its source. */
export async function install(directory: string): Promise<string> {
	for (const part of ["bin", "manifests", "package.json"])
		cpSync(join(repository, part), join(directory, part), { recursive: true })
	await buildCli(join(directory, "dist/cli"))
	return join(directory, "bin/comfyume.js")
}

export const envFile = (entries: Readonly<Record<string, string>>) =>
	Object.entries(entries)
		.map(([name, value]) => `${name}=${value}\n`)
		.join("")

function configurationText(remote: string, endpoint: string, address: string): string {
	return `version: 1
environments:
  sandbox:
    domain: sandbox.example.test
    allowStandIns: true
    allowPlainHttp: true
    hosts:
      - name: app-1
        role: app
        connection: directory
        directory: ./server
        tailscaleAddress: ${address}
    share: { filesystem: directory, directory: ./share }
    objectStore:
      provider: s3
      buckets:
        cache: { bucket: ${bucket}, endpoint: "${endpoint}" }
    git:
      project: { remote: ${remote}, branch: main, path: /home/dev/project }
      scripts: { remote: ${remote}, branch: main, path: /home/dev/scripts }
`
}

function collect(
	child: ChildProcess,
	words: readonly string[],
	onEvent: RunOptions["onEvent"],
): Promise<Ended> {
	let stdout = ""
	let stderr = ""
	const events: Event[] = []
	const isJson = words.includes("--json")
	let unread = ""
	child.stdout?.setEncoding("utf8").on("data", (text: string) => {
		stdout += text
		if (!isJson) return
		const lines = `${unread}${text}`.split("\n")
		unread = lines.pop() ?? ""
		for (const line of lines) {
			const event = eventSchema.parse(JSON.parse(line))
			events.push(event)
			onEvent?.(event, child)
		}
	})
	child.stderr?.setEncoding("utf8").on("data", (text: string) => {
		stderr += text
	})
	return new Promise((resolve, reject) => {
		child.once("error", reject)
		child.once("close", (exitCode, signal) => {
			for (const [name, value] of Object.entries(secrets))
				if (`${stdout}${stderr}`.includes(value))
					return reject(new Error(`comfyume ${words.join(" ")} shows ${name}:\n${stdout}${stderr}`))
			const outcomes = Object.fromEntries(
				events.flatMap((event) => (event.event === "step" ? [[event.step, event.outcome]] : [])),
			)
			resolve({ exitCode, signal, stdout, stderr, events, outcomes })
		})
	})
}

type Stateful = { server: string; share: string; s3: S3Server }

/** A state of the world to come back to. */
export type Saved = { load(): Promise<void> }

async function save({ server, share, s3 }: Stateful, to: string): Promise<Saved> {
	const copy = (from: string, onto: string) => {
		rmSync(onto, { recursive: true, force: true })
		cpSync(from, onto, { recursive: true, preserveTimestamps: true, verbatimSymlinks: true })
	}
	copy(server, join(to, "server"))
	copy(share, join(to, "share"))
	const objects = await Promise.all(
		s3.objects.keys(bucket).map(async (key) => ({
			head: s3.objects.find(bucket, key),
			content: await s3.objects.read(bucket, key),
		})),
	)
	return {
		async load(): Promise<void> {
			copy(join(to, "server"), server)
			copy(join(to, "share"), share)
			for (const key of s3.objects.keys(bucket)) await s3.objects.lose(bucket, key)
			for (const { head, content } of objects)
				if (head !== undefined) await s3.objects.write(bucket, head, content)
		},
	}
}

/**
 * Path -> type, mode and content of everything below a directory, read without any of comfyume's code.
 * @param leftOut names that are passed over, with what lies below them
 */
export function inventory(directory: string, leftOut: readonly string[] = []): Map<string, string> {
	const found = new Map<string, string>()
	if (!existsSync(directory)) return found
	for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
		const file = join(entry.parentPath, entry.name)
		const path = file.slice(directory.length)
		if (path.split("/").some((part) => leftOut.some((name) => part === name))) continue
		const mode = (lstatSync(file).mode & 0o7777).toString(8)
		if (entry.isSymbolicLink()) found.set(path, `link to ${readlinkSync(file)}`)
		else if (entry.isFile()) found.set(path, `file ${mode} ${sha256(readFileSync(file))}`)
		else found.set(path, `directory ${mode}`)
	}
	return found
}

export const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex")
