// What ComfyUI sees: the models as they are listed inside of a frontend's container. A mount that was made before the
// share was there, or an NFS listing that went stale, hides models from users while the share has them all.
import { OperatorError } from "../errors.ts"
import { command, withOptions } from "../host/command.ts"
import type { Host } from "../host/host.ts"

/** Where the share's models are mounted in a frontend. */
const mountPoint = "/models"
const timeoutMs = 60_000
const frontendName = /^comfy-user\d+$/

/** The names of the frontends that run; empty where docker isn't installed or gives no answer. */
export async function findFrontends(host: Host): Promise<string[]> {
	const asked = withOptions(command("docker", "ps", "--format", "{{.Names}}"), { timeoutMs: 20_000 })
	try {
		const { stdout } = await host.capture(asked)
		return stdout.split("\n").filter((name) => frontendName.test(name))
	} catch (error) {
		if (error instanceof OperatorError) return []
		throw error
	}
}

/**
 * Path -> size in bytes of all files below the directory of models inside of a container, links followed.
 * @param below the directory of models below what is mounted, as in `shared`; passed over where it isn't there
 * @throws {OperatorError} when the container can't be asked
 */
export async function listInContainer(
	host: Host,
	container: string,
	below: string,
): Promise<Map<string, number>> {
	if (!/^[\w][\w.-]*$/.test(container))
		throw new OperatorError(`${container} is not a container's name`, { exitCode: 2, hint: "docker ps" })
	const words = ["exec", container, "find", "-L", mountPoint, "-type", "f"]
	// Not -printf: busybox's find doesn't know it. 1: something could not be read; what could be is listed.
	const { stdout } = await host.capture(
		withOptions(command("docker", ...words, "-exec", "stat", "-L", "-c", "%s %n", "{}", "+"), { timeoutMs }),
		{ allowedExitCodes: [1] },
	)
	const lines = stdout.split("\n").flatMap((line): [string, number][] => {
		const [, size, path] = /^(\d+) \/models\/(.+)$/.exec(line) ?? []
		return path === undefined ? [] : [[path, Number(size)]]
	})
	const prefix = `${below}/`
	const inside = lines.filter(([path]) => path.startsWith(prefix))
	if (inside.length === 0) return new Map(lines)
	return new Map(inside.map(([path, size]) => [path.slice(prefix.length), size]))
}

export type Unseen = {
	path: string
	status: "missing" | "differs" | "extra"
	containers: readonly string[]
	because: string
}

/**
 * How the containers' views differ from what the share has. Extra are files that the share doesn't have any more.
 * @param views container -> what it sees, path -> size
 */
export function compareViews(
	views: ReadonlyMap<string, ReadonlyMap<string, number>>,
	share: ReadonlyMap<string, number | undefined>,
): Unseen[] {
	const paths = new Set([...share.keys(), ...[...views.values()].flatMap((seen) => [...seen.keys()])])
	const among = (test: (seen: number | undefined) => boolean, path: string) =>
		[...views].flatMap(([container, seen]) => (test(seen.get(path)) ? [container] : []))
	return [...paths].flatMap((path): Unseen[] => {
		const has = share.get(path)
		if (!share.has(path)) {
			const containers = among((seen) => seen !== undefined, path)
			const because = `the share doesn't have it, and it is still seen by ${containers.join(", ")}: stale listing`
			return [{ path, status: "extra", containers, because }]
		}
		// A broken link on the share is the share's own trouble.
		if (has === undefined) return []
		const blind = among((seen) => seen === undefined, path)
		const differing = among((seen) => seen !== undefined && seen !== has, path)
		const lines: Unseen[] = []
		if (blind.length > 0) {
			const because = `the share has it, and it is not seen by ${blind.join(", ")}: stale listing`
			lines.push({ path, status: "missing", containers: blind, because })
		}
		if (differing.length > 0) {
			const because = `the share has ${has} bytes of it, and not so many are seen by ${differing.join(", ")}: stale`
			lines.push({ path, status: "differs", containers: differing, because })
		}
		return lines
	})
}
