// comfyume.yaml: found, read, and taken apart into environments with every path resolved.
import { readFileSync, statSync } from "node:fs"
import { dirname, join, resolve } from "node:path"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { closest } from "../formats/closest.ts"
import { parseMountCommand } from "../formats/mount-command.ts"
import type {
	BucketConfiguration,
	BucketName,
	Configuration,
	Environment,
	FirewallRule,
	HostConfiguration,
	ShareConfiguration,
	WrittenEnvironment,
} from "./environment.ts"
import { bucketNames } from "./environment.ts"
import { type Problem, readConfiguration } from "./problems.ts"

const fileName = "comfyume.yaml"

type Variables = Readonly<Record<string, string | undefined>>

type Sources = {
	/** `--config` */
	path?: string | undefined
	variables: Variables
	workingDirectory: string
	/** Where the machine's own configuration lies; `/etc/comfyume`. */
	systemDirectory?: string
}

export type LoadedConfiguration = Configuration & {
	/** Absolute. */
	path: string
	/** The file as it is written; what a remote run is sent. */
	text: string
}

/**
 * Finds and reads the configuration: `--config`, else `$COMFYUME_CONFIG`, else the nearest `comfyume.yaml` upwards of
 * the working directory, else `/etc/comfyume/comfyume.yaml`.
 * @throws OperatorError with exit code 2 when there is none, it can't be read, or anything in it is wrong
 */
export function loadConfiguration(options: Sources): LoadedConfiguration {
	const { path, text } = readConfigurationFile(options)
	const { HOME: homeDirectory } = options.variables
	const home = homeDirectory === undefined ? {} : { homeDirectory }
	return { ...parseConfiguration(text, path, home), path, text }
}

/** Finds and reads the file's text without judging it. Throws as `loadConfiguration` does when there is none. */
export function readConfigurationFile(options: Sources): { path: string; text: string } {
	const path = findConfiguration(options)
	if (path === undefined) throw notFound(options)
	try {
		return { path, text: readFileSync(path, "utf8") }
	} catch (error) {
		if (codeOf(error) === "ENOENT")
			throw new OperatorError(`there is no configuration at ${path}`, {
				exitCode: exitCodes.usage,
				hint: "comfyume init, which asks and writes one; or name one with --config FILE",
			})
		const { message, hint } = systemError(error, `reading the configuration ${path}`)
		throw new OperatorError(message, {
			exitCode: exitCodes.usage,
			cause: error,
			...(hint === undefined ? {} : { hint }),
		})
	}
}

/** The path of the configuration; undefined when none is named and there is none. One that is named needn't be there. */
export function findConfiguration({
	path,
	variables,
	workingDirectory,
	systemDirectory = "/etc/comfyume",
}: Sources): string | undefined {
	const named = path ?? (variables.COMFYUME_CONFIG || undefined)
	if (named !== undefined) return resolve(workingDirectory, named)
	for (let directory = resolve(workingDirectory); ; directory = dirname(directory)) {
		const candidate = join(directory, fileName)
		if (isFile(candidate)) return candidate
		if (directory === dirname(directory)) break
	}
	const systemFile = join(systemDirectory, fileName)
	return isFile(systemFile) ? systemFile : undefined
}

const notFound = ({ workingDirectory, systemDirectory = "/etc/comfyume" }: Sources) =>
	new OperatorError(`no ${fileName} in ${workingDirectory}, above it, or in ${systemDirectory}`, {
		exitCode: exitCodes.usage,
		hint: "comfyume init, which asks and writes one; or name one with --config FILE",
	})

const isFile = (path: string) => statSync(path, { throwIfNoEntry: false })?.isFile() === true

/** Every problem of a configuration, in the order of its lines; none when it is right. Pure. */
export function problemsOf(text: string, _path: string): readonly Problem[] {
	return readConfiguration(text).problems ?? []
}

/**
 * Reads a configuration from its text. Pure: touches no file.
 * @param path where the text lies; relative paths in it count from there
 * @throws OperatorError with exit code 2 that names the first problem and counts the others
 */
export function parseConfiguration(
	text: string,
	path: string,
	{ homeDirectory }: { homeDirectory?: string } = {},
): Configuration {
	const read = readConfiguration(text)
	if (read.problems !== undefined) throw problemsError(read.problems, path)
	const base = dirname(resolve("/", path))
	const environments = Object.entries(read.written.environments).map(
		([name, written]) => [name, resolveEnvironment(name, written, { base, homeDirectory })] as const,
	)
	return { version: 1, environments: Object.fromEntries(environments) }
}

function problemsError(problems: readonly Problem[], path: string): OperatorError {
	const [first] = problems
	const where = `${path}:${first?.line ?? 1}:${first?.column ?? 1}`
	const what = `${where}: ${first?.path === "" ? "" : `${first?.path} `}${first?.message}`
	const more = problems.length > 1 ? ` (and ${problems.length - 1} more)` : ""
	return new OperatorError(`${what}${more}`, {
		exitCode: exitCodes.usage,
		hint:
			problems.length > 1
				? `comfyume config check --config ${path}`
				: (first?.fix ?? "comfyume config check"),
	})
}

type Place = { base: string; homeDirectory: string | undefined }

function resolveEnvironment(name: string, written: WrittenEnvironment, place: Place): Environment {
	const { hosts, share, objectStore, scratch, git, ...rest } = written
	return {
		name,
		...rest,
		hosts: hosts.map((host) => resolveHost(host, place)),
		...(share === undefined ? {} : { share: resolveShare(name, share, place) }),
		...(scratch === undefined ? {} : { scratch }),
		...(objectStore === undefined
			? {}
			: { objectStore: { ...objectStore, buckets: present(objectStore.buckets) } }),
		git: { project: resolveRepository(git.project, place), scripts: resolveRepository(git.scripts, place) },
	}
}

function resolveHost(written: WrittenEnvironment["hosts"][number], place: Place): HostConfiguration {
	const { name, role, hostKeys, tailscaleAddress, port, user, address = "" } = written
	const common = {
		...{ name, role, hostKeys },
		...(tailscaleAddress === undefined ? {} : { tailscaleAddress }),
		tailnet: written.tailnet ?? (tailscaleAddress === undefined ? "none" : "identity"),
		firewall: (written.firewall ?? usualFirewall[role]).map(firewallRule),
		workers: role === "worker" ? (written.workers ?? 1) : 0,
	}
	if (written.connection === "directory")
		return { ...common, connection: "directory", directory: expand(written.directory ?? "", place) }
	const keyFiles = written.keyFiles.map((file) => expand(file, place))
	return { ...common, connection: "ssh", address, port, user, keyFiles }
}

// SSH, the workshop's two ports, and WireGuard as Tailscale has it.
const usualFirewall = {
	app: ["22/tcp limit", "80/tcp", "443/tcp", "41641/udp"],
	worker: ["22/tcp limit", "41641/udp"],
} as const

function firewallRule(written: string): FirewallRule {
	const [place = "", limit] = written.split(" ")
	const [port, protocol] = place.split("/")
	return { port: Number(port), protocol: protocol === "udp" ? "udp" : "tcp", limit: limit !== undefined }
}

function resolveShare(
	environment: string,
	written: NonNullable<WrittenEnvironment["share"]>,
	place: Place,
): ShareConfiguration {
	const { filesystem, backups, models } = written
	if (filesystem === "directory") {
		const directory = expand(written.directory ?? "", place)
		return { environment, filesystem, directory, mountPoint: directory, backups, models }
	}
	const parsed = parseMountCommand(written.mount ?? "")
	// `rules.ts` has refused every other form before.
	if ("problem" in parsed)
		throw new Error(`a mount command that was checked can't be parsed: ${parsed.problem.message}`)
	return {
		environment,
		filesystem,
		mount: parsed.command,
		mountPoint: parsed.command.target,
		backups,
		models,
	}
}

function resolveRepository(
	{ commit, ...written }: WrittenEnvironment["git"]["project"],
	place: Place,
): Environment["git"]["project"] {
	const remote = /^\.{0,2}\//.test(written.remote) ? expand(written.remote, place) : written.remote
	return { ...written, remote, ...(commit === undefined ? {} : { commit }) }
}

function present(
	buckets: NonNullable<WrittenEnvironment["objectStore"]>["buckets"],
): { cache: BucketConfiguration } & Partial<Record<BucketName, BucketConfiguration>> {
	const found: Partial<Record<BucketName, BucketConfiguration>> = {}
	for (const name of bucketNames) {
		const bucket = buckets[name]
		if (bucket !== undefined) found[name] = bucket
	}
	return { ...found, cache: buckets.cache }
}

function expand(path: string, { base, homeDirectory }: Place): string {
	if (path === "~" || path.startsWith("~/"))
		return homeDirectory === undefined ? path : join(homeDirectory, path.slice(1))
	return resolve(base, path)
}

/**
 * The environment a command works on: `--env`, else `$COMFYUME_ENV`, else what the host says of itself. Nothing is
 * guessed, not even where there is only one.
 * @throws OperatorError with exit code 2 when none is named or the named one doesn't exist
 */
export function chooseEnvironment(
	configuration: Configuration,
	{
		option,
		variables,
		hostOwnEnvironment,
	}: { option?: string | undefined; variables: Variables; hostOwnEnvironment?: string | undefined },
): Environment {
	const names = Object.keys(configuration.environments)
	const candidates = [
		{ name: option, where: "--env" },
		{ name: variables.COMFYUME_ENV || undefined, where: "$COMFYUME_ENV" },
		{ name: hostOwnEnvironment, where: hostEnvironmentFile },
	]
	const chosen = candidates.find(({ name }) => name !== undefined)
	if (chosen?.name === undefined)
		throw new OperatorError("no environment is named", {
			exitCode: exitCodes.usage,
			hint: `add --env ${names.join(" or --env ")}`,
		})
	const environment = Object.hasOwn(configuration.environments, chosen.name)
		? configuration.environments[chosen.name]
		: undefined
	if (environment !== undefined) return environment
	const meant = closest(chosen.name, names)
	throw new OperatorError(
		`${chosen.where} names the environment ${chosen.name}; there are ${names.join(", ")}`,
		{
			exitCode: exitCodes.usage,
			hint: meant === undefined ? `add --env ${names.join(" or --env ")}` : `did you mean --env ${meant}?`,
		},
	)
}

const hostEnvironmentFile = "/etc/comfyume/environment"

/** What a host says of itself: the name of its environment, or undefined on a machine that is none of ours. */
export function readHostOwnEnvironment(path: string = hostEnvironmentFile): string | undefined {
	try {
		return readFileSync(path, "utf8").trim() || undefined
	} catch (error) {
		if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return undefined
		throw systemError(error, `reading ${path}`)
	}
}
