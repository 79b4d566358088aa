// A certificate authority on loopback: Debian's pebble with a name server that sends every name where the test says.
import { type ChildProcess, spawn } from "node:child_process"
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import type { createServer, Server } from "node:http"
import { connect } from "node:net"
import { join } from "node:path"
import { poll } from "./poll.ts"
import { run } from "./run.ts"
import { freePort } from "./sshd.ts"

export type Authority = Awaited<ReturnType<typeof startAuthority>>

/**
 * @param directory an empty one of its own
 * @param httpPort where it asks for challenges
 */
export async function startAuthority(directory: string, httpPort: number) {
	mkdirSync(directory, { recursive: true })
	const at = (name: string) => join(directory, name)
	const subject = [
		"-subj",
		"/CN=the tests' ACME server",
		"-addext",
		"subjectAltName=IP:127.0.0.1",
		"-days",
		"1",
	]
	const keyPair = ["-newkey", "rsa:2048", "-noenc", "-keyout", at("key.pem"), "-out", at("cert.pem")]
	await run("openssl", ["req", "-x509", ...keyPair, ...subject])
	const [port, management, dns, dnsManagement] = await Promise.all([
		freePort(),
		freePort(),
		freePort(),
		freePort(),
	])
	const pebble = {
		listenAddress: `127.0.0.1:${port}`,
		managementListenAddress: `127.0.0.1:${management}`,
		certificate: at("cert.pem"),
		privateKey: at("key.pem"),
		httpPort,
		tlsPort: 1,
		ocspResponderURL: "",
		externalAccountBindingRequired: false,
	}
	writeFileSync(at("pebble.json"), JSON.stringify({ pebble }))
	const started: ChildProcess[] = []
	let log = ""
	const start = (program: string, args: string[]) => {
		// No waiting between a challenge and its validation, no refused nonces: those are for testing ACME clients. And it
		// asks each time: what it has once found may not be so any more.
		const pebbles = { PEBBLE_VA_NOSLEEP: "1", PEBBLE_WFE_NONCEREJECT: "0", PEBBLE_AUTHZREUSE: "0" }
		const env = { PATH: process.env.PATH, ...pebbles }
		const child = spawn(program, args, { env, stdio: ["ignore", "pipe", "pipe"] })
		for (const stream of [child.stdout, child.stderr])
			stream.on("data", (chunk: Buffer) => {
				log = (log + chunk.toString()).slice(-4000)
			})
		started.push(child)
		return child
	}
	const none = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]
	start("pebble-challtestsrv", [
		...[
			"-dns01",
			`127.0.0.1:${dns}`,
			"-management",
			`127.0.0.1:${dnsManagement}`,
			"-defaultIPv4",
			"127.0.0.1",
		],
		...none,
	])
	await poll(() => listens(dnsManagement), { what: "the name server listens", deadlineMs: 20_000 })
	start("pebble", ["-config", at("pebble.json"), "-dnsserver", `127.0.0.1:${dns}`])
	await poll(() => listens(port), { what: "the ACME server listens", deadlineMs: 20_000 }).catch((error) => {
		throw new Error(`${error.message}\n${log}`)
	})
	const tellNames = async (path: string, body: object) => {
		const url = `http://127.0.0.1:${dnsManagement}/${path}`
		const answer = await fetch(url, { method: "POST", body: JSON.stringify(body) })
		if (!answer.ok) throw new Error(`the name server: ${answer.status}`)
	}
	return {
		/** The directory that clients are told. */
		url: `https://127.0.0.1:${port}/dir`,
		/** By which its own TLS is trusted. */
		caFile: at("cert.pem"),
		/** Where a name leads from now on: an IPv4 or an IPv6 address. */
		async lead(name: string, address: string) {
			for (const kind of ["clear-a", "clear-aaaa"]) await tellNames(kind, { host: `${name}.` })
			const kind = address.includes(":") ? "add-aaaa" : "add-a"
			await tellNames(kind, { host: `${name}.`, addresses: [address] })
		},
		async [Symbol.asyncDispose]() {
			await Promise.all(started.map(stop))
		},
	}
}

/** An ACME server that refuses everything because of its limits, in the words of RFC 8555. A stand-in. */
export async function startRefusingAuthority(directory: string) {
	const { createServer: createTlsServer } = await import("node:https")
	const port = await freePort()
	const tls = {
		cert: readFileSync(join(directory, "cert.pem")),
		key: readFileSync(join(directory, "key.pem")),
	}
	const base = `https://127.0.0.1:${port}`
	const directoryText = JSON.stringify({
		newNonce: `${base}/nonce`,
		newAccount: `${base}/account`,
		newOrder: `${base}/order`,
		revokeCert: `${base}/revoke`,
		keyChange: `${base}/key`,
		meta: {},
	})
	const server: Server = createTlsServer(tls, (request, response) => {
		request.resume()
		response.setHeader("replay-nonce", "bm9uY2U")
		if (request.url === "/dir")
			return void response.setHeader("content-type", "application/json").end(directoryText)
		if (request.url === "/nonce") return void response.end()
		response.writeHead(429, { "content-type": "application/problem+json" })
		const detail = "too many new registrations (10) from this IP address in the last 3h0m0s"
		response.end(JSON.stringify({ type: "urn:ietf:params:acme:error:rateLimited", detail, status: 429 }))
	}) as unknown as ReturnType<typeof createServer>
	await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve))
	return {
		url: `${base}/dir`,
		async [Symbol.asyncDispose]() {
			server.closeAllConnections()
			await new Promise((resolve) => server.close(resolve))
		},
	}
}

function listens(port: number): Promise<boolean> {
	return new Promise((resolve) => {
		const socket = connect(port, "127.0.0.1")
		socket.once("connect", () => {
			socket.destroy()
			resolve(true)
		})
		socket.once("error", () => resolve(false))
	})
}

async function stop(child: ChildProcess): Promise<void> {
	if (child.exitCode !== null || child.signalCode !== null) return
	const ended = new Promise((resolve) => child.once("exit", resolve))
	child.kill("SIGKILL")
	await ended
}
