// Secrets from the kernel's keyring: the user's own, `comfyume:<NAME>`, loaded at boot.
import { OperatorError } from "../errors.ts"
import { Secret } from "../secret.ts"
import { command } from "./command.ts"
import type { Host } from "./host.ts"

/** Gives the secret of a name, or undefined when the keyring has none. */
export type SecretReader = (name: string) => Promise<Secret | undefined>

/**
 * Reads secrets from the keyring of the user who runs comfyume. A machine without keyctl, or where the kernel gives
 * containers no keyring, has an empty one.
 * @throws {OperatorError} when there is a key that can't be read
 */
export function keyringReader(host: Host): SecretReader {
	let hasKeyctl: Promise<boolean> | undefined
	return async (name) => {
		hasKeyctl ??= host.test(command("keyctl", "--version"))
		if (!(await hasKeyctl)) return undefined
		const description = `comfyume:${name}`
		const found = await host.capture(command("keyctl", "search", "@u", "user", description), {
			allowedExitCodes: [1],
		})
		if (found.exitCode !== 0) {
			if (
				/Required key not available|Key has been revoked|Key has expired|Operation not permitted|Function not implemented/.test(
					found.stderr,
				)
			)
				return undefined
			throw unreadable(host, description, found.stderr)
		}
		const piped = await host.capture(command("keyctl", "pipe", found.stdout.trim()), {
			allowedExitCodes: [1],
		})
		if (piped.exitCode !== 0) throw unreadable(host, description, piped.stderr)
		return new Secret(piped.stdout)
	}
}

/** Whether the keyring has a secret of this name; it isn't read. */
export const keyringHolds = (host: Host, name: string): Promise<boolean> =>
	host.test(command("keyctl", "search", "@u", "user", `comfyume:${name}`))

// All for who possesses it; view, read and search for other processes of the same user, as a timer's run is one.
const permissions = "0x3f0b0000"

/** Puts a secret there, in place of an older one. Its value goes by stdin. */
export async function putIntoKeyring(host: Host, name: string, secret: Secret): Promise<void> {
	const { stdout } = await host.execute(command("keyctl", "padd", "user", `comfyume:${name}`, "@u"), {
		stdin: secret.reveal(),
	})
	await host.execute(command("keyctl", "setperm", stdout.trim(), permissions))
}

function unreadable(host: Host, description: string, stderr: string): OperatorError {
	return new OperatorError(
		`the key ${description} in the keyring of ${host.name} can't be read: ${stderr.trim()}`,
		{
			hint: "keyctl link @u @s; keyctl show",
		},
	)
}
