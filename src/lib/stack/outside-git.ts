// Secrets are never written where git would take them up.
import { existsSync } from "node:fs"
import { dirname, join } from "node:path"
import { exitCodes, OperatorError } from "../errors.ts"
import { command, quoteForShell } from "../host/command.ts"
import type { Host } from "../host/host.ts"

/**
 * Refuses a file inside of a git working tree, unless git is told to ignore it.
 * @param file absolute; needn't be there yet
 * @throws {OperatorError} with exit code 8
 */
export async function refuseTrackedPath(host: Host, file: string): Promise<void> {
	let above = dirname(file)
	while (!existsSync(above) && above !== dirname(above)) above = dirname(above)
	let tree: string | undefined
	for (let directory = above; ; directory = dirname(directory)) {
		if (existsSync(join(directory, ".git"))) tree = directory
		if (tree !== undefined || directory === dirname(directory)) break
	}
	if (tree === undefined) return
	// 0 for a path that is ignored and not tracked; anything else, a missing git too, counts as not.
	const ignored = await host
		.test(command("git", "-C", tree, "check-ignore", "--quiet", "--", file))
		.catch(() => false)
	if (ignored) return
	throw new OperatorError(`${file} lies in the git working tree ${tree}, which would take the secrets up`, {
		exitCode: exitCodes.refusedByGuard,
		hint: `write elsewhere: --directory /etc/comfyume/stack, or have git ignore ${quoteForShell(dirname(file))}`,
	})
}
