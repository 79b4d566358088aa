// Docker's API, asked as its own client asks it, for what is only read: the client takes 40 ms of a processor to start,
// and a stack is asked dozens of things. Whatever changes something goes through the client.
import { readFile, stat } from "node:fs/promises"
import { request } from "node:http"
import { delimiter, join } from "node:path"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import type { Host } from "../host/host.ts"
import { isLocal, type LocalHost } from "../host/local.ts"
import { isExecutable } from "../host/presence.ts"

/** @returns the answer's text, undefined where there is no such thing (404) */
export type DockerApi = (path: string) => Promise<string | undefined>

const usualSocket = "/var/run/docker.sock"
const timeoutMs = 20_000
const longestAnswerBytes = 64 * 1024 * 1024

const known = new WeakMap<Host, Promise<DockerApi | undefined>>()

/**
 * The API at the socket that the client of this machine would use; undefined where it would go another way: Docker is
 * elsewhere, behind TLS or SSH, by a context, or there is no such socket. Throws nothing.
 */
export function dockerApi(host: Host): Promise<DockerApi | undefined> {
	const found = known.get(host) ?? (isLocal(host) ? open(host) : Promise.resolve(undefined))
	known.set(host, found)
	return found
}

async function open(host: LocalHost): Promise<DockerApi | undefined> {
	const socketPath = await socketOf(host)
	return socketPath === undefined ? undefined : (path) => ask(host, socketPath, path)
}

async function socketOf({ standIn, environment }: LocalHost): Promise<string | undefined> {
	// Without its client there is no Docker to work with, and that is what is to be said.
	const clients = (environment.PATH ?? "")
		.split(delimiter)
		.map((directory) => isExecutable(join(directory, "docker")))
	if (!(await Promise.all(clients)).includes(true)) return undefined
	const { DOCKER_HOST: named, DOCKER_CONFIG: directory, HOME: home = "/root" } = environment
	if (named !== undefined) return /^unix:\/\/(\/.+)$/.exec(named)?.[1]
	// Of a directory that stands in for a machine, Docker is what its own `docker` says.
	if (standIn) return undefined
	const settings = await readFile(join(directory ?? join(home, ".docker"), "config.json"), "utf8").catch(
		() => "",
	)
	if (settings.includes('"currentContext"')) return undefined
	const facts = await stat(usualSocket).catch(() => undefined)
	return facts?.isSocket() === true ? usualSocket : undefined
}

/** @throws {OperatorError} in the words of Docker's client where nobody answers, or this user may not ask */
function ask({ name }: LocalHost, socketPath: string, path: string): Promise<string | undefined> {
	return new Promise((resolve, reject) => {
		const failed = (error: unknown) => {
			const why = messageOf(error)
			reject(
				new OperatorError(
					why.includes("EACCES")
						? `permission denied while trying to connect to the Docker daemon: ${why}`
						: `Cannot connect to the Docker daemon on ${name}: ${why}`,
					{ exitCode: exitCodes.unreachable },
				),
			)
		}
		const asked = request({ socketPath, path, timeout: timeoutMs }, (answer) => {
			const chunks: Buffer[] = []
			let bytes = 0
			answer.on("data", (chunk: Buffer) => {
				bytes += chunk.length
				if (bytes > longestAnswerBytes) answer.destroy(new Error("its answer is larger than 64 MiB"))
				else chunks.push(chunk)
			})
			answer.on("error", failed)
			answer.on("end", () => {
				const text = Buffer.concat(chunks).toString("utf8")
				if (answer.statusCode === 200) return resolve(text)
				if (answer.statusCode === 404) return resolve(undefined)
				reject(
					new OperatorError(
						`Docker on ${name} answers ${answer.statusCode} to ${path}: ${text.slice(0, 300)}`,
					),
				)
			})
		})
		asked.on("timeout", () => asked.destroy(new Error(`no answer in ${timeoutMs / 1000} s`)))
		asked.on("error", failed)
		asked.end()
	})
}
