// A workshop's front door on loopback: the real nginx with the rendered site, the real auth gate, and behind them small
// servers that tell what reached them.
import { type ChildProcess, spawn } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { createServer, type IncomingHttpHeaders, type Server } from "node:http"
import { request as secureRequest } from "node:https"
import { type AddressInfo, connect } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import type { Environment } from "../../src/lib/config/environment.ts"
import { hashPassword, renderHtpasswd } from "../../src/lib/formats/htpasswd.ts"
import { Secret } from "../../src/lib/secret.ts"
import { describeStack, type Stack } from "../../src/lib/stack/description.ts"
import { renderHealthPage, renderNginxSite, renderProxySecret } from "../../src/lib/stack/nginx.ts"
import { userId } from "../../src/lib/stack/roster.ts"
import { poll } from "./poll.ts"
import { run } from "./run.ts"
import { freePort } from "./sshd.ts"

const repository = fileURLToPath(new URL("../..", import.meta.url))
export const domain = "workshop.example.test"
export const proxySecret = "made-up-proxy-secret-of-the-tests-0001"

/** What a server behind nginx was asked. */
export type Seen = {
	server: string
	method: string
	path: string
	headers: IncomingHttpHeaders
	bytes: number
}

export type Answer = { status: number; headers: IncomingHttpHeaders; text: string; seen: Seen | undefined }

export type Asking = {
	method?: string
	headers?: Readonly<Record<string, string>>
	/** `name:password`, as Basic. */
	as?: string
	body?: string | Buffer
	port?: number
	host?: string
}

export const testEnvironment = (stack: NonNullable<Environment["stack"]> | undefined): Environment => ({
	name: "sandbox",
	domain,
	hosts: [],
	git: {
		project: { remote: "/project", branch: "main", path: "/project" },
		scripts: { remote: "/scripts", branch: "main", path: "/scripts" },
	},
	user: "dev",
	operators: [],
	packages: { extra: [], tailscale: { repository: "https://packages.example.test" } },
	keyring: false,
	stack,
	directories: { local: "/root/backups" },
	allowStandIns: true,
	allowPlainHttp: false,
	backups: { without: [], recipients: [] },
	restore: { refuseOlderThanHours: 72 },
})

/** A certificate for the tests' name, good for a day. */
export async function makeCertificate(directory: string): Promise<void> {
	mkdirSync(directory, { recursive: true })
	const key = ["-newkey", "rsa:2048", "-noenc", "-keyout", join(directory, "key.pem")]
	const subject = ["-subj", `/CN=${domain}`, "-days", "1", "-out", join(directory, "cert.pem")]
	await run("openssl", ["req", "-x509", ...key, ...subject])
}

export type FrontDoor = Awaited<ReturnType<typeof openFrontDoor>>

/**
 * @param configuration the stack's, with nginx on the host
 * @param realPorts of services and users that are there already, by name: `queue-manager`, `user001`
 */
export async function openFrontDoor(
	configuration: NonNullable<Environment["stack"]>,
	users: number,
	realPorts: Readonly<Record<string, number>> = {},
) {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-workshop-"))
	// nginx's workers have no rights of their own.
	chmodSync(directory, 0o755)
	const path = (...parts: string[]) => join(directory, ...parts)
	const outputs = path("results")
	for (const name of ["nginx/html", "results", "acme/.well-known/acme-challenge", "temporary"])
		mkdirSync(path(name), { recursive: true })
	await makeCertificate(path("certificates"))

	const servers: Server[] = []
	const standIn = async (name: string) => {
		const real = realPorts[name]
		if (real !== undefined) return real
		const server = await listen(name)
		servers.push(server)
		return (server.address() as AddressInfo).port
	}
	const numbers = Array.from({ length: users }, (_, index) => index + 1)
	const written = describeStack(testEnvironment({ ...configuration, nginx: "host" }), numbers)
	const gatePort = await freePort()
	const stack: Stack = {
		...written,
		users: await Promise.all(
			written.users.map(async (user) => ({ ...user, hostPort: await standIn(user.id) })),
		),
		services: {
			...written.services,
			queueManager: { ...written.services.queueManager, hostPort: await standIn("queue-manager") },
			admin: { ...written.services.admin, hostPort: await standIn("admin") },
			authGate: { ...written.services.authGate, hostPort: gatePort },
		},
	}
	const ports = { http: await freePort(), https: await freePort() }
	const places = {
		configuration: path("nginx"),
		certificates: path("certificates"),
		acme: path("acme"),
		outputs,
		resolver: undefined,
		ports,
	}
	writeFileSync(path("nginx/comfyume.conf"), renderNginxSite(stack, places))
	writeFileSync(path("nginx/proxy-secret.conf"), renderProxySecret(proxySecret))
	writeFileSync(path("nginx/html/health.html"), renderHealthPage(stack))
	writeFileSync(path("nginx.conf"), mainConfiguration(directory))

	const passwords = new Map([
		...numbers.map((number) => [userId(number), `password-of-${userId(number)}`] as const),
		[configuration.adminName, "password-of-the-admin"] as const,
	])
	const htpasswd = path("htpasswd")
	const writePasswords = async (those: ReadonlyMap<string, string>) => {
		const hashes = await Promise.all(
			[...those].map(async ([name, text]) => [name, await hashPassword(new Secret(text))] as const),
		)
		writeFileSync(htpasswd, renderHtpasswd(new Map(hashes)))
	}
	await writePasswords(passwords)

	let gate = startGate()
	function startGate(): ChildProcess {
		return spawn(process.execPath, [join(repository, "src/auth-gate/main.ts")], {
			env: {
				HOST: "127.0.0.1",
				PORT: String(gatePort),
				HTPASSWD_FILE: htpasswd,
				ADMIN_USERNAME: configuration.adminName,
				AUTH_COOKIE_SECRET: "made-up-cookie-secret-of-the-tests-0001",
			},
			stdio: "ignore",
		})
	}
	const nginx = spawn("/usr/sbin/nginx", ["-c", path("nginx.conf"), "-g", "daemon off;"], { stdio: "ignore" })
	for (const [what, port] of Object.entries({ gate: gatePort, ...ports }))
		await poll(() => answers(port), { what: `${what} answers`, deadlineMs: 20_000 })

	return {
		stack,
		passwords,
		outputs,
		ports,
		path,
		writePasswords,
		/** `name:password` of one of the workshop's. */
		as: (name: string) => `${name}:${passwords.get(name)}`,
		ask: (at: string, asking: Asking = {}) => ask(asking.port ?? ports.https, at, asking),
		/** Sends a text through a WebSocket and gives what comes back. */
		echo: (at: string, headers: Readonly<Record<string, string>>) => echo(ports.https, at, headers),
		stopGate: async () => stop(gate),
		startGate: async () => {
			gate = startGate()
			await poll(() => answers(gatePort), { what: "gate answers", deadlineMs: 20_000 })
		},
		[Symbol.asyncDispose]: async () => {
			await Promise.all([stop(nginx), stop(gate)])
			for (const server of servers) {
				server.closeAllConnections()
				server.close()
			}
			rmSync(directory, { recursive: true, force: true })
		},
	}
}

/** An `nginx.conf` that keeps everything in one directory and includes the rendered site. */
export const mainConfiguration = (directory: string) => `worker_processes 1;
pid ${directory}/nginx.pid;
error_log ${directory}/error.log info;
events { worker_connections 1024; }
http {
	include /etc/nginx/mime.types;
	access_log ${directory}/access.log;
	client_body_temp_path ${directory}/temporary/body;
	proxy_temp_path ${directory}/temporary/proxy;
	fastcgi_temp_path ${directory}/temporary/fastcgi;
	uwsgi_temp_path ${directory}/temporary/uwsgi;
	scgi_temp_path ${directory}/temporary/scgi;
	include ${directory}/nginx/comfyume.conf;
}
`

async function stop(child: ChildProcess): Promise<void> {
	if (child.exitCode !== null || child.signalCode !== null) return
	const ended = new Promise((resolve) => child.once("exit", resolve))
	child.kill("SIGTERM")
	await ended
}

async function listen(name: string): Promise<Server> {
	const server = createServer((request, response) => {
		let bytes = 0
		request.on("data", (chunk: Buffer) => {
			bytes += chunk.length
		})
		request.on("end", () => {
			const seen = {
				server: name,
				method: request.method,
				path: request.url,
				headers: request.headers,
				bytes,
			}
			response.writeHead(request.url?.endsWith("/teapot") ? 418 : 200, { "content-type": "application/json" })
			response.end(JSON.stringify(seen))
		})
	})
	server.on("upgrade", (request, socket) => {
		const key = `${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`
		const accept = createHash("sha1").update(key).digest("base64")
		socket.write(
			`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
		)
		socket.on("error", () => {})
		socket.on("data", (frame: Buffer) => {
			// A short text frame: two bytes of head, four of mask.
			const mask = frame.subarray(2, 6)
			const text = frame.subarray(6).map((byte, index) => byte ^ (mask[index % 4] ?? 0))
			const said = Buffer.from(`${name} ${request.url} ${Buffer.from(text).toString()}`)
			socket.write(Buffer.concat([Buffer.from([0x81, said.length]), said]))
		})
	})
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
	return server
}

function answers(port: number): Promise<boolean> {
	return new Promise((resolve) => {
		const socket = connect(port, "127.0.0.1", () => {
			socket.destroy()
			resolve(true)
		})
		socket.once("error", () => resolve(false))
	})
}

const basic = (as: string | undefined) =>
	as === undefined ? {} : { authorization: `Basic ${Buffer.from(as).toString("base64")}` }

export function ask(
	port: number,
	path: string,
	{ method = "GET", headers = {}, as, body, host = domain }: Asking,
) {
	return new Promise<Answer>((resolve, reject) => {
		const request = secureRequest(
			{
				host: "127.0.0.1",
				port,
				path,
				method,
				servername: host,
				rejectUnauthorized: false,
				agent: false,
				headers: { host, ...basic(as), ...headers },
			},
			(response) => {
				let text = ""
				response.setEncoding("utf8").on("data", (chunk: string) => {
					text += chunk
				})
				response.on("end", () =>
					resolve({
						status: response.statusCode ?? 0,
						headers: response.headers,
						text,
						seen: text.startsWith('{"server"') ? (JSON.parse(text) as Seen) : undefined,
					}),
				)
			},
		)
		request.on("error", reject)
		request.end(body)
	})
}

export function echo(port: number, path: string, headers: Readonly<Record<string, string>>): Promise<string> {
	return new Promise((resolve, reject) => {
		const request = secureRequest({
			host: "127.0.0.1",
			port,
			path,
			servername: domain,
			rejectUnauthorized: false,
			agent: false,
			headers: {
				host: domain,
				connection: "Upgrade",
				upgrade: "websocket",
				"sec-websocket-version": "13",
				"sec-websocket-key": randomBytes(16).toString("base64"),
				...headers,
			},
		})
		request.on("error", reject)
		request.on("response", (response) => {
			response.resume()
			resolve(`no WebSocket: ${response.statusCode}`)
		})
		request.on("upgrade", (_response, socket) => {
			const mask = randomBytes(4)
			const text = Buffer.from("hello").map((byte, index) => byte ^ (mask[index % 4] ?? 0))
			socket.on("data", (frame: Buffer) => {
				resolve(frame.subarray(2).toString())
				socket.destroy()
			})
			socket.on("error", () => {})
			socket.write(Buffer.concat([Buffer.from([0x81, 0x80 | text.length]), mask, text]))
		})
		request.end()
	})
}
