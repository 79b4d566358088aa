// What sshd goes by, as it says itself.
import { command } from "../../host/command.ts"
import type { LocalHost } from "../../host/local.ts"

/**
 * @returns the ports that sshd listens on
 * @throws {OperatorError} when its configuration is none
 */
export async function sshdPorts(host: LocalHost): Promise<number[]> {
	const { stdout } = await askSshd(host, "-T")
	return [...stdout.matchAll(/^port (\d+)$/gm)].map(([, port]) => Number(port))
}

/** @throws {OperatorError} when sshd would not start with its configuration and keys */
export const checkSshd = (host: LocalHost) => askSshd(host, "-t")

// Where a socket starts it at the first login, as on Ubuntu 24.04, its run directory isn't there before that: it would
// refuse to say anything. Its unit makes the same one.
async function askSshd(host: LocalHost, flag: "-t" | "-T") {
	const asked = command("sshd", flag)
	const answer = await host.capture(asked, { allowedExitCodes: [1, 255] })
	if (answer.exitCode === 0) return answer
	if (!/Missing privilege separation directory/.test(answer.stderr)) return host.capture(asked)
	// In memory, empty, and gone with a reboot: also a run that changes nothing may make it.
	await host.capture(command("mkdir", "-p", "-m", "755", "/run/sshd"))
	return host.capture(asked)
}
