// Which parts of the test world this machine has. `npm test` finds out and says so in the environment.
import { homedir } from "node:os"
import { join } from "node:path"
import { describe } from "vitest"

/** Parts that can be missing where Debian packages can't be installed or the tests don't run as root. */
type Part =
	| "redis"
	| "instances"
	| "sshd"
	| "git"
	| "age"
	| "keyring"
	| "nginx"
	| "compose"
	| "docker"
	| "freshServers"
	| "virtualMachines"
	| "acme"
	| "prometheus"
	| "chromium"

/**
 * A group of tests that needs a part of the test world. Where it is missing, the group is skipped in the open, with
 * the reason in its name. Without word from `npm test` every part is taken to be there, and a missing one fails.
 */
export function describeWith(part: Part, name: string, tests: () => void): void {
	const missing = missingParts()[part]
	if (missing === undefined) describe(name, tests)
	else describe.skip(`${name} (not here: ${missing})`, tests)
}

const cache = () => process.env["COMFYUME_TEST_CACHE"] ?? join(homedir(), ".cache", "comfyume-test")

/** Where `npm test` puts compose v2 (scripts/lib/test-parts.js). */
export const composeProgram = (): string => join(cache(), "compose/docker-compose")

/** Where `npm test` puts the Docker Engine's programs (scripts/lib/test-parts.js). */
export const dockerPrograms = (): string => join(cache(), "docker-26.1")

/** Where `npm test` puts ComfyUI's frontend and the Python packages of its server's stand-in. */
export const comfyuiPackages = (): string => join(cache(), "comfyui-1.37.11")

function missingParts(): Partial<Record<Part, string>> {
	return JSON.parse(process.env.COMFYUME_TEST_MISSING ?? "{}") as Partial<Record<Part, string>>
}
