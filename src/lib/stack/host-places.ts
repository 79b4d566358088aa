// What the host must have before a container is started: the files and directories that are mounted, and free ports.
import { readFile, stat } from "node:fs/promises"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { command } from "../host/command.ts"
import type { Host } from "../host/host.ts"
import type { Place } from "./services.ts"

/**
 * Refuses a place that is something else than it must be. Docker makes a directory where a mounted file is missing, and
 * what then starts can't read it.
 * @throws {OperatorError} naming the first one and what to do
 */
export async function requirePlaces(places: readonly Place[]): Promise<void> {
	for (const { path, kind, hint } of places) {
		const problem = await problemOf(path, kind)
		if (problem === undefined) continue
		const isDirectory = problem === "is a directory"
		throw new OperatorError(`${path} ${problem}${isDirectory ? ", and a file belongs there" : ""}`, {
			exitCode: exitCodes.incomplete,
			hint: isDirectory ? `rmdir ${path}; ${hint}` : hint,
		})
	}
}

async function problemOf(path: string, kind: Place["kind"]): Promise<string | undefined> {
	try {
		const found = await stat(path)
		if (kind === "directory") return found.isDirectory() ? undefined : "is no directory"
		if (found.isDirectory()) return "is a directory"
		if (!found.isFile()) return "is no regular file"
		return found.size === 0 ? "is empty" : undefined
	} catch (error) {
		if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return "is not there"
		throw systemError(error, `looking at ${path}`)
	}
}

/** Whether one of these files was written after that time; one that isn't there was not. */
export async function haveChangedSince(paths: readonly string[], since: Date | undefined): Promise<boolean> {
	if (since === undefined) return false
	const found = await Promise.all(paths.map((path) => stat(path).catch(() => undefined)))
	return found.some((file) => file !== undefined && file.mtimeMs > since.getTime())
}

export type PortHolder = {
	program: string
	process: number
	/** The unit that it belongs to, as in `nginx.service`. */
	unit: string | undefined
}

/** Who listens on a TCP port of this machine; undefined when nobody does. */
export async function holderOf(host: Host, port: number): Promise<PortHolder | undefined> {
	const { stdout } = await host.capture(
		command("ss", "--no-header", "--listening", "--tcp", "--numeric", "--processes", `sport = :${port}`),
	)
	const line = stdout.trim()
	if (line === "") return undefined
	const [, program = "somebody", process = "0"] = /users:\(\("([^"]+)",pid=(\d+)/.exec(line) ?? []
	return { program, process: Number(process), unit: await unitOf(Number(process)) }
}

async function unitOf(process: number): Promise<string | undefined> {
	if (process === 0) return undefined
	// 0::/system.slice/nginx.service
	const text = await readFile(`/proc/${process}/cgroup`, "utf8").catch(() => "")
	return /\/([\w@:.\\-]+\.service)(?:\/|$)/m.exec(text)?.[1]
}

/** In words: `nginx (process 812 of nginx.service)`. */
export const describeHolder = ({ program, process, unit }: PortHolder): string =>
	process === 0 ? program : `${program} (process ${process}${unit === undefined ? "" : ` of ${unit}`})`
