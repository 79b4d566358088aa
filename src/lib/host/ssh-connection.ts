// One SSH connection: dialling, the host's key, our keys, and an error of its own for each way in which that fails.
import { readFile } from "node:fs/promises"
import ssh2, { type AnyAuthMethod, type Client } from "ssh2"
import { codeOf, exitCodes, messageOf, OperatorError } from "../errors.ts"
import type { Secret } from "../secret.ts"
import { quoteForShell } from "./command.ts"
import { fingerprintOf, judgeHostKey, type KnownKey, keysOf, readKnownHosts } from "./known-hosts.ts"

export type SshConnectOptions = {
	/** What the operator calls the host; stands in messages and in the command that would trust its key. */
	name: string
	address: string
	port: number
	user: string
	/** The `known_hosts` file beside the configuration. It may be missing. */
	knownHosts: string
	/** Fingerprints (`SHA256:…`) that the configuration pins for this host. */
	hostKeys?: readonly string[]
	/** One more fingerprint, accepted for this run only. */
	extraFingerprint?: string
	/** Private keys to offer, in this order, before those of the agent. Files that don't exist are passed over. */
	keyFiles: readonly string[]
	agentSocket?: string
	/** Opens encrypted key files. */
	passphrase?: Secret
	/** For each attempt, from dialling to being let in. */
	connectTimeoutMs: number
	/** Three of these without an answer, and the connection counts as lost. */
	keepaliveMs: number
	signal: AbortSignal
}

/** SSH's names of the signatures that go with each type of key, the strongest first. */
const signaturesOf: Readonly<Record<string, readonly string[]>> = {
	"ssh-ed25519": ["ssh-ed25519"],
	"ecdsa-sha2-nistp256": ["ecdsa-sha2-nistp256"],
	"ecdsa-sha2-nistp384": ["ecdsa-sha2-nistp384"],
	"ecdsa-sha2-nistp521": ["ecdsa-sha2-nistp521"],
	"ssh-rsa": ["rsa-sha2-512", "rsa-sha2-256"],
}
const keyTypes = Object.keys(signaturesOf)

type DialOptions = Pick<SshConnectOptions, "address" | "port" | "user" | "connectTimeoutMs" | "signal"> & {
	types: readonly string[]
	keepaliveMs?: number
	methods: AnyAuthMethod[]
	acceptKey: (key: Buffer) => boolean
}

/**
 * Connects, holds the host's key against what is known of it, and logs in.
 * @throws {OperatorError} `unreachable`, `refusedByGuard` for the host's key, `refusedCredentials` for ours
 */
export async function connectSsh(options: SshConnectOptions): Promise<Client> {
	const { hostKeys = [], extraFingerprint } = options
	const accepted = extraFingerprint === undefined ? hostKeys : [...hostKeys, extraFingerprint]
	const known = readKnownHosts(await readIfThere(options.knownHosts))
	const offered = await offeredKeys(options)
	// As OpenSSH does: ask for the types on record, so that a server with several keys isn't taken for a changed one.
	const recordedTypes = keysOf(known, options).map(({ type }) => type)
	const preferred = [...keyTypes].sort((a, b) => rank(recordedTypes, a) - rank(recordedTypes, b))

	let refusal: OperatorError | undefined
	const attempt = async (types: readonly string[]): Promise<Client> => {
		refusal = undefined
		return dial({
			...options,
			types,
			methods: offered.methods,
			acceptKey: (key) => {
				refusal = hostKeyRefusal(key, options, known, accepted)
				return refusal === undefined
			},
		}).catch((error: unknown) => {
			throw refusal ?? explained(error, options, offered.skipped)
		})
	}
	try {
		return await attempt(preferred)
	} catch (error) {
		if (refusal === undefined || accepted.length === 0) throw error
		// A fingerprint doesn't tell the type of its key: the accepted one may be another of this server's keys.
		for (const type of preferred) {
			try {
				return await attempt([type])
			} catch (other) {
				if (refusal === undefined && !isWithoutSuchKey(other)) throw other
			}
		}
		throw error
	}
}

/**
 * The keys that a host shows, one per type, read without logging in. Reading is not verifying.
 * @throws {OperatorError} `unreachable`
 */
export async function readHostKeys(
	options: Pick<SshConnectOptions, "name" | "address" | "port" | "connectTimeoutMs" | "signal">,
): Promise<Buffer[]> {
	const keys: Buffer[] = []
	let left: readonly string[] = keyTypes
	while (left.length > 0) {
		const found = keys.length
		const look = dial({
			...options,
			user: "nobody",
			types: left,
			methods: [],
			acceptKey: (key) => {
				keys.push(key)
				return false
			},
		})
		try {
			;(await look).destroy()
		} catch (error) {
			if (keys.length === found) {
				if (isWithoutSuchKey(error) && found > 0) break
				throw explained(error, { ...options, user: "nobody", keyFiles: [] }, [])
			}
		}
		const shown = keys.at(-1)
		left = left.filter((type) => shown?.indexOf(type, 4, "latin1") !== 4)
	}
	return keys
}

function dial(options: DialOptions): Promise<Client> {
	const { signal, connectTimeoutMs } = options
	return new Promise((resolve, reject) => {
		const client = new ssh2.Client()
		const settle = (finish: () => void) => {
			clearTimeout(timer)
			signal.removeEventListener("abort", onAbort)
			finish()
		}
		const fail = (error: unknown) =>
			settle(() => {
				// What a dying connection still says must not become an uncaught error.
				client.removeAllListeners().on("error", () => {})
				client.destroy()
				reject(error)
			})
		const onAbort = () => fail(signal.reason)
		// ssh2 has a timer too, and counts every failure of the agent as an end of it.
		const timer = setTimeout(() => fail(new NoAnswer()), connectTimeoutMs)
		if (signal.aborted) return onAbort()
		signal.addEventListener("abort", onAbort, { once: true })
		client
			.on("ready", () =>
				settle(() =>
					resolve(client.setNoDelay(true).removeAllListeners("close").removeAllListeners("error")),
				),
			)
			.on("error", (error: Error & { level?: string }) => {
				// An agent that is gone or can't sign: the next method may still do.
				if (error.level !== "agent") fail(error)
			})
			.on("close", () => fail(new Error("the connection was closed before we were let in")))
			.connect({
				host: options.address,
				port: options.port,
				username: options.user,
				readyTimeout: 0,
				keepaliveInterval: options.keepaliveMs ?? 0,
				keepaliveCountMax: 3,
				algorithms: {
					serverHostKey: options.types.flatMap((type) => signaturesOf[type] ?? []) as never,
				},
				hostVerifier: (key: Buffer) => options.acceptKey(key),
				authHandler: options.methods,
			})
	})
}

class NoAnswer extends Error {}

type Offered = { methods: AnyAuthMethod[]; skipped: string[] }

// Key files come first: an agent with many keys would use up the server's patience (MaxAuthTries) before them.
async function offeredKeys(options: SshConnectOptions): Promise<Offered> {
	const offered: Offered = { methods: [], skipped: [] }
	for (const file of options.keyFiles) {
		const content = await readIfThere(file)
		if (content === "") continue
		const passphrase = options.passphrase?.reveal()
		const parsed = ssh2.utils.parseKey(content, passphrase)
		if (parsed instanceof Error) offered.skipped.push(`${file} ${unreadable(parsed, passphrase)}`)
		else
			offered.methods.push({
				type: "publickey",
				username: options.user,
				key: content,
				...(passphrase === undefined ? {} : { passphrase }),
			})
	}
	if (options.agentSocket !== undefined)
		offered.methods.push({ type: "agent", username: options.user, agent: options.agentSocket })
	return offered
}

function unreadable(error: Error, passphrase: string | undefined): string {
	if (!/encrypted|passphrase|integrity check failed|bad decrypt/i.test(error.message))
		return "is no private key"
	return passphrase === undefined
		? "is encrypted, and no passphrase was given"
		: "is encrypted, and the passphrase doesn't open it"
}

function hostKeyRefusal(
	key: Buffer,
	options: SshConnectOptions,
	known: readonly KnownKey[],
	accepted: readonly string[],
): OperatorError | undefined {
	const { name, knownHosts } = options
	const judgement = judgeHostKey(key, options, known, accepted)
	const shown = fingerprintOf(key)
	const trust = `comfyume host trust ${quoteForShell(name)} ${shown}`
	const guard = exitCodes.refusedByGuard
	if (judgement.state === "known") return undefined
	if (judgement.state === "revoked")
		return new OperatorError(
			`${name} shows a REVOKED key, ${shown} (${knownHosts} line ${judgement.recorded.line}): nothing was sent`,
			{ exitCode: guard, hint: "find out who answers at that address before anything else" },
		)
	if (judgement.state === "changed") {
		const recorded = judgement.recorded.map(
			({ key: old, type, line }) => `${fingerprintOf(old)} (${type}, ${knownHosts} line ${line})`,
		)
		return new OperatorError(
			`THE KEY OF ${name} HAS CHANGED: it shows ${shown}, and on record is ${recorded.join(", ")}. ` +
				"Somebody may be in between, or the machine was made anew: nothing was sent",
			{ exitCode: guard, hint: `only if the host's own console shows that fingerprint: ${trust} --replace` },
		)
	}
	const expected = accepted.length === 0 ? "" : `, expected was ${accepted.join(" or ")}`
	return new OperatorError(`the key of ${name} is not known: it shows ${shown}${expected}`, {
		exitCode: guard,
		hint: `if the host's own console shows that fingerprint: ${trust}   # for a restore onto a fresh machine: --host-fingerprint ${shown}`,
	})
}

const isWithoutSuchKey = (error: unknown): boolean =>
	/no matching host key format/.test(messageOf(error)) ||
	(error instanceof OperatorError && error.cause !== undefined && isWithoutSuchKey(error.cause))

type Target = Pick<SshConnectOptions, "name" | "address" | "port" | "user" | "keyFiles" | "connectTimeoutMs">

const dialProblems: Readonly<Record<string, string>> = {
	// A firewall that limits logins (`ufw limit`: six in half a minute) refuses in the same way.
	ECONNREFUSED:
		"refuses the connection: no sshd listens there, or its firewall has had too many logins in half a minute",
	ECONNRESET: "resets the connection",
	EHOSTUNREACH: "can't be reached: there is no route to it",
	ENETUNREACH: "can't be reached: the network is unreachable",
	ETIMEDOUT: "gives no answer",
}

function explained(error: unknown, target: Target, skipped: readonly string[]): unknown {
	if (error instanceof OperatorError) return error
	const { name, address, port, user, connectTimeoutMs } = target
	const place = `${name} (${address} port ${port})`
	const message = messageOf(error)
	const code = codeOf(error) ?? ""
	const unreachable = (says: string, hint: string) =>
		new OperatorError(`${place} ${says}`, { exitCode: exitCodes.unreachable, hint, cause: error })
	const lookThere = `nc -vz ${quoteForShell(address)} ${port}`
	if (/All configured authentication methods failed|Too many authentication failures/.test(message)) {
		const also = skipped.length === 0 ? "" : `; ${skipped.join("; ")}`
		const closed = message.startsWith("Too many") ? " (too many keys were offered)" : ""
		const key = skipped[0]?.split(" is ")[0] ?? target.keyFiles[0] ?? "~/.ssh/id_ed25519"
		return new OperatorError(`${place} refused our keys for ${user}${closed}${also}`, {
			exitCode: exitCodes.refusedCredentials,
			hint: `ssh-add ${quoteForShell(key)}`,
			cause: error,
		})
	}
	if (code === "ENOTFOUND")
		return unreachable("has no address: there is no such host name", `getent hosts ${quoteForShell(address)}`)
	if (code === "EAI_AGAIN")
		return unreachable("has no address: the name server gives no answer", "resolvectl status")
	if (error instanceof NoAnswer || code === "ETIMEDOUT")
		return unreachable(`gave no answer within ${connectTimeoutMs} ms`, lookThere)
	const problem = dialProblems[code]
	if (problem !== undefined) return unreachable(problem, lookThere)
	return unreachable(`can't be spoken to over SSH: ${message}`, lookThere)
}

const rank = (preferred: readonly string[], type: string): number =>
	preferred.includes(type) ? keyTypes.indexOf(type) - keyTypes.length : keyTypes.indexOf(type)

async function readIfThere(file: string): Promise<string> {
	try {
		return await readFile(file, "utf8")
	} catch (error) {
		if (codeOf(error) === "ENOENT") return ""
		throw error
	}
}
