// A real OpenSSH server on a free loopback port, as the user who runs the tests, with keys made for it.
import { type ChildProcess, execFile, spawn } from "node:child_process"
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { connect, createServer } from "node:net"
import { tmpdir, userInfo } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"

const run = promisify(execFile)

export type TestSshd = {
	address: string
	port: number
	user: string
	/** A private key that is let in. */
	keyFile: string
	/** A `known_hosts` file with the server's keys. */
	knownHosts: string
	/** The server's public keys by their type, as in `ssh-ed25519`, with fingerprints as ssh-keygen prints them. */
	hostKeys: Record<string, { fingerprint: string; line: string }>
	/** For what a test needs; removed with the server. */
	directory: string
	/** What the server wrote into its log. */
	log(): string
	/** Ends the listener and every connection, without a goodbye. */
	kill(): Promise<void>
	[Symbol.asyncDispose](): Promise<void>
}

export type TestSshdOptions = {
	/** More lines for sshd_config. */
	config?: readonly string[]
	/** As ssh-keygen names them; the first is what the server prefers. */
	keyTypes?: readonly ("ed25519" | "ecdsa" | "rsa")[]
}

/** Starts sshd and waits until it greets. @throws with sshd's log when it doesn't. */
export async function openTestSshd({
	config = [],
	keyTypes = ["ed25519"],
}: TestSshdOptions = {}): Promise<TestSshd> {
	const directory = await mkdtemp(join(tmpdir(), "comfyume-sshd-"))
	// sshd started by root wants its directory for the part that has no privileges.
	if (process.getuid?.() === 0) await mkdir("/run/sshd", { recursive: true, mode: 0o755 })
	const keyFile = await makeKey(join(directory, "client"), "ed25519")
	const hostKeyFiles = await Promise.all(
		keyTypes.map((type) => makeKey(join(directory, `host-${type}`), type)),
	)
	await writeFile(join(directory, "authorized_keys"), await readFile(`${keyFile}.pub`))

	const port = await freePort()
	const configFile = join(directory, "sshd_config")
	await writeFile(
		configFile,
		[
			`Port ${port}`,
			"ListenAddress 127.0.0.1",
			...hostKeyFiles.map((file) => `HostKey ${file}`),
			`AuthorizedKeysFile ${directory}/authorized_keys`,
			"PidFile none",
			"StrictModes no",
			"UsePAM no",
			"PasswordAuthentication no",
			"KbdInteractiveAuthentication no",
			"PermitRootLogin prohibit-password",
			"LogLevel VERBOSE",
			"Subsystem sftp internal-sftp",
			...config,
			"",
		].join("\n"),
	)
	const server = spawn("/usr/sbin/sshd", ["-D", "-e", "-f", configFile], {
		stdio: ["ignore", "ignore", "pipe"],
		// A group of its own: its connections' processes end with it.
		detached: true,
	})
	let log = ""
	server.stderr.on("data", (chunk) => {
		log += chunk
	})
	try {
		await greeting(server, port, () => log)
	} catch (error) {
		await end(server)
		await rm(directory, { recursive: true, force: true })
		throw error
	}

	const hostKeys: TestSshd["hostKeys"] = {}
	for (const file of hostKeyFiles) {
		const line = (await readFile(`${file}.pub`, "utf8")).trim()
		hostKeys[line.split(" ")[0] ?? ""] = { line, fingerprint: await fingerprint(`${file}.pub`) }
	}
	const knownHosts = join(directory, "known_hosts")
	const lines = Object.values(hostKeys).map(({ line }) => `[127.0.0.1]:${port} ${line}\n`)
	await writeFile(knownHosts, lines.join(""))

	return {
		address: "127.0.0.1",
		port,
		user: userInfo().username,
		keyFile,
		knownHosts,
		hostKeys,
		directory,
		log: () => log,
		kill: () => end(server),
		async [Symbol.asyncDispose]() {
			await end(server)
			await rm(directory, { recursive: true, force: true })
		},
	}
}

/** Makes a key pair and gives the private file's path. */
export async function makeKey(file: string, type: string, passphrase = ""): Promise<string> {
	const bits = type === "rsa" ? ["-b", "2048"] : []
	await run("ssh-keygen", ["-q", "-t", type, ...bits, "-N", passphrase, "-C", "test", "-f", file])
	return file
}

/** What `ssh-keygen -l` says of a public key. */
export async function fingerprint(publicKeyFile: string): Promise<string> {
	const { stdout } = await run("ssh-keygen", ["-l", "-f", publicKeyFile])
	return stdout.split(" ")[1] ?? ""
}

/** A loopback port that nobody listens on at the moment. */
export async function freePort(): Promise<number> {
	const probe = createServer()
	await new Promise<void>((resolve) => probe.listen(0, "127.0.0.1", resolve))
	const address = probe.address()
	await new Promise((resolve) => probe.close(resolve))
	if (address === null || typeof address === "string") throw new Error("no free port")
	return address.port
}

async function greeting(server: ChildProcess, port: number, log: () => string): Promise<void> {
	const deadline = Date.now() + 10_000
	while (Date.now() < deadline && server.exitCode === null) {
		if (await greets(port)) return
	}
	throw new Error(`sshd doesn't greet on port ${port}:\n${log()}`)
}

function greets(port: number): Promise<boolean> {
	return new Promise((resolve) => {
		const socket = connect(port, "127.0.0.1")
		const answer = (is: boolean) => {
			socket.destroy()
			// A refused connection answers at once: don't spin.
			setTimeout(() => resolve(is), is ? 0 : 20)
		}
		socket.once("data", (data) => answer(data.toString().startsWith("SSH-2.0-OpenSSH")))
		socket.once("error", () => answer(false))
	})
}

async function end(server: ChildProcess): Promise<void> {
	if (server.pid === undefined || server.exitCode !== null || server.signalCode !== null) return
	const ended = new Promise((resolve) => server.once("exit", resolve))
	for (const pid of await descendants(server.pid)) signal(pid)
	signal(server.pid)
	await ended
}

// Each connection has processes in sessions of their own; what runs in them is left to its own fate.
async function descendants(parent: number): Promise<number[]> {
	const children = await readFile(`/proc/${parent}/task/${parent}/children`, "utf8").catch(() => "")
	const found: number[] = []
	for (const pid of children.trim().split(" ").filter(Boolean).map(Number)) {
		const name = await readFile(`/proc/${pid}/comm`, "utf8").catch(() => "")
		if (name.startsWith("sshd")) found.push(pid, ...(await descendants(pid)))
	}
	return found
}

function signal(pid: number): void {
	try {
		process.kill(pid, "SIGKILL")
	} catch {
		// It has ended already.
	}
}
