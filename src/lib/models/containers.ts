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
	if (!(await host.test(asked))) return []
	const { stdout } = await host.capture(asked)
	return stdout.split("\n").filter((name) => frontendName.test(name))
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

export type Unseen = { path: string; status: "missing" | "differs" | "extra"; because: string }

/** How a container's view differs from what the share has. Extra are files that the share doesn't have any more. */
export function compareView(
	container: string,
	seen: ReadonlyMap<string, number>,
	share: ReadonlyMap<string, number | undefined>,
): Unseen[] {
	const unseen = [...share].flatMap(([path, sizeBytes]): Unseen[] => {
		const there = seen.get(path)
		if (sizeBytes === undefined || there === sizeBytes) return []
		const because =
			there === undefined
				? `the share has it, and ${container} doesn't see it`
				: `the share has ${sizeBytes} bytes of it, and ${container} sees ${there}`
		return [{ path, status: there === undefined ? "missing" : "differs", because: `${because}: stale listing` }]
	})
	const gone = [...seen.keys()]
		.filter((path) => !share.has(path))
		.map((path): Unseen => {
			const because = `${container} sees it, and the share doesn't have it: stale listing`
			return { path, status: "extra", because }
		})
	return [...unseen, ...gone]
}
