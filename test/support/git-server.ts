// A private git hosting as GitHub is one: smart HTTP with Basic credentials, and its answers when they don't do.
import { spawn } from "node:child_process"
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import { createGunzip } from "node:zlib"
import { run } from "./run.ts"

/**
 * How the server answers:
 * - `normal`: the right token gets in, a wrong or missing one gets 401;
 * - `expired`: 401 whatever the token is, as for an expired or revoked one;
 * - `no-access`: 404 as for a private repository that the token can't see;
 * - `no-scope`: 403 as for a token that lacks the permission or the organisation's single sign-on;
 * - `unavailable`: 503.
 */
export type GitServerMode = "normal" | "expired" | "no-access" | "no-scope" | "unavailable"

export type GitServer = {
	/** Where repositories are found: `<url>/<name>.git`. Holds no credential. */
	readonly url: string
	mode: GitServerMode
	/** Every request so far, for tests that prove where the token was and wasn't. */
	readonly requests: readonly { method: string; url: string; authorization: string | undefined }[]
	/** Stops listening, as when the network is gone. The port stays unused until `start`. */
	stop(): Promise<void>
	start(): Promise<void>
	[Symbol.asyncDispose](): Promise<void>
}

export type GitServerOptions = {
	/** Directory of bare repositories, each `<name>.git`. */
	repositories: string
	token: string
	/** Loopback unless told otherwise; the address of a test world, for its instances. */
	address?: string
}

const refusals: Readonly<Record<Exclude<GitServerMode, "normal">, { status: number; text: string }>> = {
	expired: { status: 401, text: "Invalid username or token. Password authentication is not supported." },
	"no-access": { status: 404, text: "Repository not found." },
	"no-scope": {
		status: 403,
		text: "The organization has enabled or enforced SAML SSO. Write access to repository not granted.",
	},
	unavailable: { status: 503, text: "Service unavailable" },
}

/** Starts the server. Repositories can be read and written with `x-access-token:<token>`. */
export async function startGitServer({
	repositories,
	token,
	address = "127.0.0.1",
}: GitServerOptions): Promise<GitServer> {
	const execPath = (await run("git", ["--exec-path"])).stdout.trim()
	const expected = `Basic ${Buffer.from(`x-access-token:${token}`).toString("base64")}`
	const requests: { method: string; url: string; authorization: string | undefined }[] = []

	const http = createServer((request, response) => {
		const { method = "GET", url = "/" } = request
		requests.push({ method, url, authorization: request.headers.authorization })
		// As GitHub does: whoever shows no credential is asked for one before anything else is said.
		if (gitServer.mode === "unavailable") return refuse(response, refusals.unavailable)
		if (request.headers.authorization === undefined)
			return refuse(response, { status: 401, text: "No anonymous write access." })
		if (gitServer.mode !== "normal") return refuse(response, refusals[gitServer.mode])
		if (request.headers.authorization !== expected) return refuse(response, refusals.expired)
		serve(request, response, { program: `${execPath}/git-http-backend`, repositories })
	})
	const listen = (port: number) =>
		new Promise<void>((resolve, reject) => {
			http.once("error", reject)
			http.listen(port, address, () => {
				http.off("error", reject)
				resolve()
			})
		})
	await listen(0)
	const { port } = http.address() as AddressInfo

	const stop = async () => {
		if (!http.listening) return
		const closed = new Promise((resolve) => http.close(resolve))
		http.closeAllConnections()
		await closed
	}
	const gitServer: GitServer = {
		url: `http://${address}:${port}`,
		mode: "normal",
		requests,
		stop,
		start: () => listen(port),
		[Symbol.asyncDispose]: stop,
	}
	return gitServer
}

function refuse(response: ServerResponse, { status, text }: { status: number; text: string }): void {
	const challenge = status === 401 ? { "WWW-Authenticate": 'Basic realm="GitHub"' } : {}
	response.writeHead(status, { "Content-Type": "text/plain; charset=utf-8", ...challenge })
	response.end(`${text}\n`)
}

// One CGI run of git's own server (RFC 3875).
function serve(
	request: IncomingMessage,
	response: ServerResponse,
	{ program, repositories }: { program: string; repositories: string },
): void {
	const { pathname, search } = new URL(request.url ?? "/", "http://git.example.test")
	const child = spawn(program, [], {
		stdio: ["pipe", "pipe", "ignore"],
		env: {
			PATH: process.env.PATH,
			GIT_PROJECT_ROOT: repositories,
			GIT_HTTP_EXPORT_ALL: "1",
			// The repositories may belong to another user than the one who runs the tests.
			GIT_CONFIG_COUNT: "1",
			GIT_CONFIG_KEY_0: "safe.directory",
			GIT_CONFIG_VALUE_0: "*",
			PATH_INFO: decodeURIComponent(pathname),
			QUERY_STRING: search.slice(1),
			REQUEST_METHOD: request.method,
			CONTENT_TYPE: request.headers["content-type"] ?? "",
			HTTP_GIT_PROTOCOL: String(request.headers["git-protocol"] ?? ""),
			REMOTE_USER: "x-access-token",
			REMOTE_ADDR: request.socket.remoteAddress ?? "",
		},
	})
	child.stdin.on("error", () => {})
	const unzipped = request.headers["content-encoding"] === "gzip" ? request.pipe(createGunzip()) : request
	unzipped.pipe(child.stdin)

	let head = Buffer.alloc(0)
	const onHead = (chunk: Buffer) => {
		head = Buffer.concat([head, chunk])
		const end = head.indexOf("\r\n\r\n")
		if (end === -1) return
		child.stdout.off("data", onHead)
		const headers = head
			.subarray(0, end)
			.toString("latin1")
			.split("\r\n")
			.map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()] as const)
		const status = headers.find(([name]) => name.toLowerCase() === "status")?.[1] ?? "200"
		response.writeHead(
			Number.parseInt(status, 10),
			Object.fromEntries(headers.filter(([name]) => name.toLowerCase() !== "status")),
		)
		response.write(head.subarray(end + 4))
		child.stdout.pipe(response)
	}
	child.stdout.on("data", onHead)
	child.on("error", () => refuse(response, { status: 500, text: "git-http-backend can't be started" }))
	child.on("close", () => {
		if (!response.headersSent) refuse(response, { status: 500, text: "git-http-backend gave no answer" })
	})
	response.on("close", () => child.kill())
}
