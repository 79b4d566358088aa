// Tailscale on a host, through its own client: what address the machine has, starting it with its old identity, and
// joining as a new machine.
import { z } from "zod"
import { messageOf, OperatorError } from "../errors.ts"
import { command } from "../host/command.ts"
import type { Host } from "../host/host.ts"
import type { LocalHost } from "../host/local.ts"
import type { Secret } from "../secret.ts"

/** How long the daemon may take to say anything, and how long a person may take to log in. */
const answerTimeoutMs = 60_000
const loginTimeoutMs = 10 * 60_000
const unit = "tailscaled"

/** What a run that waits for a person needs. */
export type Waiting = {
	/** Shows the operator a line at once. */
	say: (text: string) => void
	signal: AbortSignal
}

/** The machine's IPv4 address in the tailnet; undefined when the daemon isn't running or isn't logged in. */
export async function readAddress(host: Host): Promise<string | undefined> {
	const asked = command("tailscale", "ip", "-4")
	// A missing client and a daemon that is down both mean: no address.
	if (!(await host.test(asked))) return undefined
	const { stdout } = await host.capture(asked)
	const [first] = stdout.trim().split("\n")
	return first === "" ? undefined : first
}

const statusSchema = z.object({ BackendState: z.string() })

/** Whether the daemon is connected as somebody; an address alone is also what one has that was taken down. */
export async function isConnected(host: Host): Promise<boolean> {
	const { stdout, exitCode } = await host.capture(command("tailscale", "status", "--json"), {
		allowedExitCodes: [1],
	})
	if (exitCode !== 0) return false
	return statusSchema.safeParse(parse(stdout)).data?.BackendState === "Running"
}

const preferencesSchema = z.object({ RunSSH: z.boolean() })

/** Whether Tailscale answers SSH in sshd's place, which it must not; undefined when the daemon doesn't say. */
export async function runsSsh(host: Host): Promise<boolean | undefined> {
	const { stdout, exitCode } = await host.capture(command("tailscale", "debug", "prefs"), {
		allowedExitCodes: [1],
	})
	return exitCode === 0 ? preferencesSchema.safeParse(parse(stdout)).data?.RunSSH : undefined
}

/** In words, of anything but a plain no. */
export const sshTrouble = (runs: true | undefined): string =>
	runs === true
		? "Tailscale answers SSH in sshd's place"
		: "nobody can say whether Tailscale answers SSH: `tailscale debug prefs` doesn't"

function parse(text: string): unknown {
	try {
		return JSON.parse(text)
	} catch {
		return undefined
	}
}

/** Stops the daemon, so that its state can be swapped under it. A host without the unit is left alone. */
export async function stopTailscale(host: Host): Promise<void> {
	if (await host.test(command("systemctl", "is-active", "--quiet", unit)))
		await host.execute(command("systemctl", "stop", unit))
}

/**
 * Starts the daemon with the identity that is in place and makes sure that it comes up as who it was. A machine that
 * came up as somebody else is taken off the tailnet again at once; its identity isn't thrown away, since it may be the
 * expected address that is wrong. Where a login is asked for (the key has expired, or the node was removed), its address
 * is shown and waited for.
 * @param expected the address the machine had
 * @throws {OperatorError} when nobody logs in, or it has another address
 */
export async function startTailscale(host: LocalHost, expected: string, waiting: Waiting): Promise<void> {
	await enable(host)
	await up(host, undefined, waiting)
	await shutSsh(host)
	const address = await readAddress(host)
	if (address === expected) return
	await host.execute(command("tailscale", "down"))
	throw new OperatorError(
		`Tailscale came up as ${address ?? "nobody"} on ${host.name}, expected is ${expected}: it was taken down again`,
		{
			hint: "tailscale status; the identity in /var/lib/tailscale is not this host's, or tailscaleAddress in comfyume.yaml is wrong",
		},
	)
}

/**
 * Joins the tailnet as a new machine: with the key, or by a login that is shown and waited for.
 * @param authKey goes to the client by its stdin: it is in no file and on no command line
 */
export async function joinTailnet(
	host: LocalHost,
	authKey: Secret | undefined,
	waiting: Waiting,
): Promise<void> {
	await enable(host)
	await up(host, authKey, waiting)
	await shutSsh(host)
}

/** sshd alone answers SSH. Not by a flag of `up`: that refuses any, where an identity comes with settings of its own. */
const shutSsh = (host: Host) => host.execute(command("tailscale", "set", "--ssh=false"))

/**
 * Whether the host has a Tailscale that may be touched: where a directory stands in for a machine, the one on the PATH
 * is the operator's own, unless the directory brings a stand-in along.
 */
export const hasOwnTailscale = async (host: LocalHost): Promise<boolean> =>
	!host.standIn || (await host.test(command("test", "-x", host.path("/usr/local/bin/tailscale"))))

/** Now, and after a boot. */
async function enable(host: Host): Promise<void> {
	await host.execute(command("systemctl", "enable", unit))
	await host.execute(command("systemctl", "start", unit))
}

// The client takes a key from a file alone, and /dev/stdin is one only where it leads to a pipe: what it gets from here
// is a socket, of which the shell makes a pipe. `exec`, so that what is stopped is the client.
const upWithKey = `key=$(cat)
exec tailscale up --auth-key=file:/dev/stdin <<KEY
$key
KEY`

async function up(host: Host, authKey: Secret | undefined, { say, signal }: Waiting): Promise<void> {
	const impatient = new AbortController()
	const stop = () =>
		impatient.abort(new OperatorError(`Tailscale gave no answer in ${answerTimeoutMs / 1000} s`))
	let timer = setTimeout(stop, answerTimeoutMs)
	let said = ""
	let shown = false
	const listen = (chunk: Buffer) => {
		said += chunk.toString("utf8")
		const [address] = /https:\/\/\S+(?=\s)/.exec(said) ?? []
		if (shown || address === undefined) return
		shown = true
		// From now on it is a person's time.
		clearTimeout(timer)
		timer = setTimeout(
			() => impatient.abort(new OperatorError("nobody has logged in in time")),
			loginTimeoutMs,
		)
		say(`Tailscale asks for a login: open ${address} (waiting ${loginTimeoutMs / 60_000} minutes)`)
	}
	try {
		const asked = authKey === undefined ? command("tailscale", "up") : command("sh", "-c", upWithKey)
		await host.execute(asked, {
			...(authKey === undefined ? {} : { stdin: authKey.reveal() }),
			onStdout: listen,
			onStderr: listen,
			signal: AbortSignal.any([signal, impatient.signal]),
		})
	} catch (error) {
		if (signal.aborted) throw error
		throw new OperatorError(`Tailscale doesn't come up on ${host.name}: ${messageOf(error)}`, {
			hint: shown
				? "run the same command again, and open the address that it shows"
				: "tailscale status; journalctl --unit tailscaled --lines 20",
			cause: error,
		})
	} finally {
		clearTimeout(timer)
	}
}
