// Docker as it is asked about the stack: few questions, each for everything at once, and its refusals in words.
import { parse } from "yaml"
import { z } from "zod"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import { type Command, command, withOptions } from "../host/command.ts"
import type { ExecuteOptions, Finished, Host } from "../host/host.ts"
import { rememberedHashes } from "./compose-hashes.ts"
import { files } from "./description.ts"
import { dockerApi } from "./docker-api.ts"
import { type Container, readContainers } from "./health.ts"
import { readIfThere } from "./write.ts"

/** The compose project's name, as compose.yaml has it. */
export const projectName = "comfyume"

export type Engine = {
	/** As in `26.1.5`. */
	version: string
	composeVersion: string
	/** Of the machine that Docker runs on. */
	memoryBytes: number
}

/** What a service is expected to run as: compose's own hash of its configuration, and the image its name stands for. */
export type Expected = {
	/** Service -> compose's hashes of it: started together with what it depends on, and alone. */
	hashes: ReadonlyMap<string, readonly string[]>
	/** Image name -> id; one that isn't there is absent. */
	images: ReadonlyMap<string, string>
}

export type Docker = {
	engine(): Promise<Engine>
	/** What `engine` answered last in this run; asked where nobody has asked yet. */
	knownEngine(): Promise<Engine>
	/**
	 * All containers of these names (`comfy-…`), by name, as they are now. Questions that come while one is under way
	 * share the next answer: it began after they were asked.
	 */
	look(): Promise<ReadonlyMap<string, Container>>
	/** Asked of compose and of Docker; the images' names come from the description. */
	expected(images: readonly string[]): Promise<Expected>
	/** `docker compose up --detach` of one service alone. */
	up(service: string, options: { recreate: boolean }): Promise<void>
	/** Any other `docker` command that changes something. */
	run(...words: readonly string[]): Promise<Finished>
	/** The last lines of a container's log, both of its streams. */
	lastLines(container: string, count: number): Promise<string[]>
	/** Who publishes a port of the host. */
	publisherOf(port: number): Promise<string | undefined>
}

const askTimeoutMs = 20_000
const engines = new WeakMap<Host, Engine>()

/**
 * @param directory the stack's, where the compose files lie
 * @param composeFiles relative to it: the one that compose is given, then those that it includes
 */
export function dockerOf(
	host: Host,
	directory: string,
	composeFiles: readonly [string, ...string[]] = [files.compose, files.composeUsers],
): Docker {
	const failing = (error: unknown): never => {
		throw dockerFailure(error, host.name)
	}
	const ask = (words: readonly string[], options?: ExecuteOptions) =>
		host
			.capture(withOptions(command("docker", ...words), { timeoutMs: askTimeoutMs }), options)
			.catch(failing)
	const execute = (asked: Command) => host.execute(asked).catch(failing)
	const compose = (words: readonly string[], file = `${directory}/${composeFiles[0]}`) => [
		"compose",
		...["--progress", "quiet"],
		...["--project-directory", directory],
		...["--file", file],
		...["--env-file", `${directory}/${files.environment}`],
		// Harmless where nothing of it is started: each service is named.
		...["--profile", "gpu"],
		...words,
	]
	const inspectAll = async (): Promise<string | undefined> => {
		const api = await dockerApi(host)
		if (api !== undefined) {
			const filters = encodeURIComponent(JSON.stringify({ name: ["comfy-"] }))
			const listed = await api(`/containers/json?all=true&filters=${filters}`).catch(failing)
			const ids = listedSchema.parse(JSON.parse(listed ?? "[]")).map(({ Id }) => Id)
			// One that went away in between is not there.
			const inspected = await Promise.all(ids.map((id) => api(`/containers/${id}/json`).catch(failing)))
			return `[${inspected.filter((text) => text !== undefined).join(",")}]`
		}
		const filters = ["--filter", "name=comfy-"]
		const { stdout } = await ask(["ps", "--all", "--quiet", "--no-trunc", ...filters])
		const ids = stdout.split("\n").filter((id) => id !== "")
		if (ids.length === 0) return undefined
		// 1: one of them went away in between; the others are told.
		return (await ask(["inspect", "--type", "container", ...ids], { allowedExitCodes: [1] })).stdout
	}
	const read = async () =>
		new Map(readContainers((await inspectAll()) ?? "[]").map((container) => [container.name, container]))
	const inspectImages = async (names: readonly string[]): Promise<string> => {
		const api = await dockerApi(host)
		if (api === undefined)
			return (await ask(["image", "inspect", ...new Set(names)], { allowedExitCodes: [1] })).stdout
		const asked = [...new Set(names)].map((name) => api(imagePath(name)).catch(failing))
		return `[${(await Promise.all(asked)).filter((text) => text !== undefined).join(",")}]`
	}
	/** Of the engine alone. */
	const askInfo = async (): Promise<string> => {
		const api = await dockerApi(host)
		if (api !== undefined) return (await api("/info").catch(failing)) ?? "{}"
		const format = '{"ServerVersion":"{{.ServerVersion}}","MemTotal":{{.MemTotal}}}'
		return (await ask(["info", "--format", format])).stdout
	}

	const engine = async (): Promise<Engine> => {
		const [info, version] = await Promise.all([askInfo(), ask(["compose", "version", "--short"])])
		const { ServerVersion, MemTotal } = engineSchema.parse(JSON.parse(info))
		const composeVersion = version.stdout.trim().replace(/^v/, "")
		const answer = { version: ServerVersion, composeVersion, memoryBytes: MemTotal }
		engines.set(host, answer)
		return answer
	}
	const knownEngine = async () => engines.get(host) ?? (await engine())
	const composeHashes = async () => {
		const config = ["config", "--hash", "*"]
		const [whole, alone] = await Promise.all([
			ask(compose(config)),
			textWithoutDependencies(directory, composeFiles).then((text) =>
				ask(compose(config, "-"), { stdin: text }),
			),
		])
		const [first, second] = [readHashes(whole.stdout), readHashes(alone.stdout)]
		return new Map(
			[...first].map(([service, hash]) => [
				service,
				[hash, ...[second.get(service)].filter((one) => one !== undefined)],
			]),
		)
	}

	return {
		...{ engine, knownEngine },
		look: shared(read),
		async expected(names) {
			// The hashes are made of these alone: compose's own version, its files, and the values that stand in them.
			const inputs = async () => [
				...[(await knownEngine()).composeVersion, directory],
				...(await Promise.all(
					[...composeFiles, files.environment].map((file) => readIfThere(`${directory}/${file}`)),
				)),
			]
			const [hashes, images] = await Promise.all([
				rememberedHashes(host, inputs, composeHashes),
				inspectImages(names),
			])
			return { hashes, images: readImages(images, names) }
		},
		async up(service, { recreate }) {
			const words = ["up", "--detach", "--no-deps", ...(recreate ? ["--force-recreate"] : []), service]
			await execute(command("docker", ...compose(words)))
		},
		run: (...words) => execute(command("docker", ...words)),
		async lastLines(container, count) {
			const said: Buffer[] = []
			const take = (chunk: Buffer) => void said.push(chunk)
			await ask(["logs", "--tail", String(count), container], { onStdout: take, onStderr: take })
			return Buffer.concat(said)
				.toString("utf8")
				.split("\n")
				.filter((line) => line.trim() !== "")
				.slice(-count)
		},
		async publisherOf(port) {
			const { stdout } = await ask(["ps", "--filter", `publish=${port}`, "--format", "{{.Names}}"])
			return stdout.split("\n")[0] || undefined
		},
	}
}

const engineSchema = z.object({ ServerVersion: z.string().min(1), MemTotal: z.number() })
const listedSchema = z.array(z.object({ Id: z.string() }))

/** Where the API has what `docker image inspect` prints of an image. */
export const imagePath = (name: string): string =>
	`/images/${name.split("/").map(encodeURIComponent).join("/")}/json`

/**
 * Work whose answer is shared: who asks while it is under way gets the answer of the next time, which begins after he
 * asked. At most one is under way.
 */
export function shared<T>(work: () => Promise<T>): () => Promise<T> {
	let running: Promise<T> | undefined
	let next: Promise<T> | undefined
	const begin = () => {
		const begun = work()
		running = begun
		const over = () => {
			if (running === begun) running = undefined
		}
		begun.then(over, over)
		return begun
	}
	return () => {
		if (running === undefined) return begin()
		if (next !== undefined) return next
		const after = () => {
			next = undefined
			return begin()
		}
		next = running.then(after, after)
		return next
	}
}

/**
 * The compose files in one, without `depends_on`. Compose before 2.30 or so hashes that too, and takes it away from a
 * service that is started alone: such a container has another hash than `config --hash` says.
 */
async function textWithoutDependencies(
	directory: string,
	composeFiles: readonly [string, ...string[]],
): Promise<string> {
	const read = async (file: string) =>
		// One that is missing is for compose to tell.
		projectSchema.parse(
			parse(await readIfThere(`${directory}/${file}`), { version: "1.1" }) ?? { services: {}, networks: {} },
		)
	const [first, ...included] = composeFiles
	const [whole, ...others] = await Promise.all([read(first), ...included.map(read)])
	const services = [whole, ...others].flatMap((one) => Object.entries(one.services))
	// JSON is YAML, and made in no time.
	return JSON.stringify({
		...whole,
		include: undefined,
		services: Object.fromEntries(services.map(([name, { depends_on: _, ...service }]) => [name, service])),
		networks: Object.assign({}, ...[whole, ...others].map(({ networks }) => networks)),
	})
}

const projectSchema = z.looseObject({
	services: z.record(z.string(), z.looseObject({})),
	networks: z.record(z.string(), z.unknown()),
})

const readHashes = (text: string) =>
	new Map(
		text
			.split("\n")
			.map((line) => line.trim().split(/\s+/))
			.flatMap(([service = "", hash]) => (hash === undefined ? [] : [[service, hash] as const])),
	)

const imagesSchema = z.array(z.object({ Id: z.string(), RepoTags: z.array(z.string()).nullable() }))

function readImages(text: string, names: readonly string[]): Map<string, string> {
	const images = imagesSchema.parse(JSON.parse(text.trim() || "[]"))
	return new Map(
		names.flatMap((name) => {
			const found = images.find(({ RepoTags }) => RepoTags?.includes(name))
			return found === undefined ? [] : [[name, found.Id] as const]
		}),
	)
}

// Docker's words, and what they mean to an operator.
const failures: readonly {
	says: RegExp
	message: (host: string) => string
	hint: string
	exitCode: 3 | 4
}[] = [
	{
		says: /Cannot connect to the Docker daemon|error during connect|failed to connect to the docker API/i,
		message: (host) => `Docker gives no answer on ${host}`,
		hint: "systemctl status docker; systemctl start docker",
		exitCode: exitCodes.unreachable,
	},
	{
		says: /permission denied while trying to connect/i,
		message: (host) => `Docker lets this user not in on ${host}`,
		hint: "run it as root",
		exitCode: exitCodes.unreachable,
	},
	{
		says: /^docker is not installed/,
		message: (host) => `docker is not installed on ${host}`,
		hint: "https://docs.docker.com/engine/install/",
		exitCode: exitCodes.unreachable,
	},
	{
		says: /'compose' is not a docker command|unknown (shorthand )?flag: .*compose|unknown flag: --project-directory/,
		message: (host) => `docker has no compose on ${host}`,
		hint: "apt-get install docker-compose-plugin",
		exitCode: exitCodes.incomplete,
	},
]

/** An error of a `docker` command in words that say what to do. */
export function dockerFailure(error: unknown, host: string): unknown {
	if (!(error instanceof OperatorError)) return error
	const known = failures.find(({ says }) => says.test(error.message))
	if (known === undefined) return error
	return new OperatorError(known.message(host), {
		exitCode: known.exitCode,
		hint: known.hint,
		cause: messageOf(error),
	})
}
