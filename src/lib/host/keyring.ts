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

function unreadable(host: Host, description: string, stderr: string): OperatorError {
	return new OperatorError(
		`the key ${description} in the keyring of ${host.name} can't be read: ${stderr.trim()}`,
		{
			hint: "keyctl link @u @s; keyctl show",
		},
	)
}
