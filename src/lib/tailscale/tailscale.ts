// Tailscale on a host, through its own client: what address the machine has, and starting it with its old identity.
import { messageOf, OperatorError } from "../errors.ts"
import { command } from "../host/command.ts"
import type { Host } from "../host/host.ts"

const upTimeoutSeconds = 60

/** The machine's IPv4 address in the tailnet; undefined when the daemon isn't running or isn't logged in. */
export async function readAddress(host: Host): Promise<string | undefined> {
	const asked = command("tailscale", "ip", "-4")
	// A missing client and a daemon that is down both mean: no address.
	if (!(await host.test(asked))) return undefined
	const { stdout } = await host.capture(asked)
	const [first] = stdout.trim().split("\n")
	return first === "" ? undefined : first
}

/** Stops the daemon, so that its state can be swapped under it. A host without the unit is left alone. */
export async function stopTailscale(host: Host): Promise<void> {
	if (await host.test(command("systemctl", "is-active", "--quiet", "tailscaled")))
		await host.execute(command("systemctl", "stop", "tailscaled"))
}

/**
 * Starts the daemon with the identity that is in place and makes sure that it comes up as who it was. A machine that
 * came up as somebody else is taken off the tailnet again at once; its identity isn't thrown away, since it may be the
 * expected address that is wrong.
 * @param expected the address the machine had
 * @throws {OperatorError} when it needs a login, or has another address
 */
export async function startTailscale(host: Host, expected: string): Promise<void> {
	await host.execute(command("systemctl", "start", "tailscaled"))
	try {
		await host.execute(command("tailscale", "up", "--ssh=false", `--timeout=${upTimeoutSeconds}s`))
	} catch (error) {
		throw new OperatorError(`Tailscale doesn't come up on ${host.name}: ${messageOf(error)}`, {
			hint: "tailscale status   # an expired key or a node removed from the tailnet needs a login: tailscale up --ssh=false",
			cause: error,
		})
	}
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
