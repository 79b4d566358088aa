// What the running workshop consists of: one description, from which compose files, nginx configuration, env file and
// directories are rendered. A name, port or path stands here once.
import { dirname } from "node:path"
import type { Environment, HostConfiguration, StackConfiguration } from "../config/environment.ts"
import { stackOf } from "../config/environment.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { type Roster, userId } from "./roster.ts"
import { type Worker, type WorkerHost, workerHostsOf, workersOf } from "./workers.ts"

/** Everything that keeps the services apart or together. */
export type Network =
	/** Only nginx, and the only one that the internet's requests come in by. */
	| "edge"
	/** nginx and the auth gate. */
	| "gate"
	/** nginx, the queue manager and the admin's page. */
	| "control"
	/** Redis and the queue manager: frontends run their users' code and have no way here. */
	| "data"

export type Limits = { memoryMegabytes: number; cpus: number }

export type Mount = {
	/** On the host. */
	from: string
	/** In the container. */
	to: string
	writable: boolean
}

export type User = {
	id: string
	number: number
	container: string
	/** Its own network: nginx, the queue manager and this frontend. No frontend reaches another. */
	network: string
	subnet: string
	/** On the host's loopback, with nginx on the host. */
	hostPort: number
	/** The variable of the env file that holds its token for the queue manager. */
	tokenVariable: string
	/** The user that must be healthy before; undefined for a batch's leader. */
	after: string | undefined
	mounts: readonly Mount[]
	limits: Limits
}

type Address = { container: string; port: number; hostPort: number }

export type Stack = {
	environment: string
	/** A GPU worker has no part of the stack but its workers, and finds the queue manager on the app server. */
	role: HostConfiguration["role"]
	domain: string
	configuration: StackConfiguration
	/** Whether nginx is one of the containers. */
	hasNginx: boolean
	services: { nginx: Address; redis: Address; queueManager: Address; admin: Address; authGate: Address }
	frontendPort: number
	limits: Readonly<
		Record<"nginx" | "redis" | "queueManager" | "admin" | "authGate" | "worker" | "workerAgent", Limits>
	>
	images: Readonly<
		Record<
			"nginx" | "redis" | "queueManager" | "admin" | "authGate" | "frontend" | "worker" | "workerAgent",
			string
		>
	>
	users: readonly User[]
	/** Of this host, where it is a GPU worker. */
	workers: readonly Worker[]
	/** On the app server: the GPU hosts that it makes tokens for. */
	workerHosts: readonly WorkerHost[]
	redisOption: "A" | "B" | "C"
	/** Addresses of the host on which GPU workers elsewhere find Redis and the queue manager. */
	publishedOn: readonly string[]
	/** Of the files that are rendered, relative to the stack's directory. */
	files: typeof files
	secrets: typeof secretNames
}

export const files = {
	compose: "compose.yaml",
	composeUsers: "compose.users.yaml",
	environment: ".env",
	credentials: "credentials.env",
	htpasswd: "auth/htpasswd",
	nginx: "nginx/nginx.conf",
	nginxSite: "nginx/comfyume.conf",
	/** For the host's own nginx. Beside the container's, so that a change from one to the other can be taken back. */
	nginxHostSite: "nginx/host.conf",
	proxySecret: "nginx/proxy-secret.conf",
	health: "nginx/html/health.html",
	redis: "redis/redis.conf",
	modelPaths: "frontend/extra_model_paths.yaml",
	serverlessModelPaths: "serverless/extra_model_paths.yaml",
	directories: "directories.txt",
	composeMonitoring: "compose.monitoring.yaml",
	composeWorker: "compose.worker.yaml",
	workerModelPaths: "extra_model_paths.yaml",
} as const

/** The secrets that are made here, by their names in the env file. */
export const secretNames = [
	"REDIS_PASSWORD",
	"AUTH_COOKIE_SECRET",
	"PROXY_SECRET",
	"TOKEN_KEY",
	"GRAFANA_ADMIN_PASSWORD",
] as const

const batchSize = 5
const comfyUiVersion = "v0.11.0"

/**
 * What runs on a host: the whole stack, from an environment and its roster, or the workers of a GPU host. Pure.
 * @param host whose part it is; the app server's when it isn't given
 * @throws {OperatorError} (2) for a GPU host where nothing says how it reaches the queue manager
 */
export function describeStack(
	environment: Environment,
	roster: Roster,
	host?: Pick<HostConfiguration, "name" | "role" | "workers">,
): Stack {
	const configuration = stackOf(environment)
	const { inferenceMode, vpnAddress, ports, nginx } = configuration
	const isWorker = host?.role === "worker"
	if (isWorker && vpnAddress === undefined)
		throw new OperatorError(`nothing says how ${host.name} reaches the queue manager`, {
			exitCode: exitCodes.usage,
			hint: "write stack: { vpnAddress: … } in comfyume.yaml: the app server's Tailscale address",
		})
	return {
		environment: environment.name,
		role: isWorker ? "worker" : "app",
		domain: environment.domain,
		configuration,
		hasNginx: nginx === "container",
		services: {
			nginx: { container: "comfy-nginx", port: 443, hostPort: ports.https },
			redis: { container: "comfy-redis", port: 6379, hostPort: 6379 },
			queueManager: { container: "comfy-queue-manager", port: 3000, hostPort: 3000 },
			admin: { container: "comfy-admin", port: 8080, hostPort: 8080 },
			authGate: { container: "comfy-auth-gate", port: 8090, hostPort: 8090 },
		},
		frontendPort: 8188,
		limits: {
			nginx: { memoryMegabytes: 512, cpus: 1 },
			redis: { memoryMegabytes: 2048, cpus: 2 },
			queueManager: { memoryMegabytes: 2048, cpus: 2 },
			admin: { memoryMegabytes: 1024, cpus: 1 },
			authGate: { memoryMegabytes: 256, cpus: 1 },
			worker: { memoryMegabytes: 71_680, cpus: 8 },
			workerAgent: { memoryMegabytes: 512, cpus: 1 },
		},
		images: {
			nginx: configuration.images.nginx,
			redis: configuration.images.redis,
			queueManager: "comfyume-queue-manager:local",
			admin: "comfyume-admin:local",
			authGate: "comfyume-auth-gate:local",
			frontend: `comfyume-frontend:${comfyUiVersion}`,
			worker: `comfyume-worker:${comfyUiVersion}`,
			workerAgent: "comfyume-worker-agent:local",
		},
		users: isWorker ? [] : roster.map((number, index) => describeUser(configuration, roster, number, index)),
		workers: isWorker ? workersOf(host) : [],
		workerHosts: isWorker ? [] : workerHostsOf(environment),
		redisOption: vpnAddress !== undefined ? "B" : inferenceMode === "serverless" ? "C" : "A",
		publishedOn: vpnAddress === undefined ? ["127.0.0.1"] : ["127.0.0.1", vpnAddress],
		files,
		secrets: secretNames,
	}
}

/** The names of all containers that must be healthy, in the order of a start. */
export function containersOf({ role, services, users, workers, hasNginx }: Stack): string[] {
	if (role === "worker") return workers.flatMap(({ container, agent }) => [container, agent.container])
	const { nginx, redis, queueManager, admin, authGate } = services
	const first = [redis, queueManager, authGate, admin, ...(hasNginx ? [nginx] : [])]
	return [...first.map(({ container }) => container), ...users.map(({ container }) => container)]
}

function describeUser(
	{ directory, paths, ports, network }: StackConfiguration,
	roster: Roster,
	number: number,
	index: number,
): User {
	const id = userId(number)
	const before = index % batchSize === 0 ? undefined : roster[index - 1]
	return {
		id,
		number,
		container: `comfy-${id}`,
		network: id,
		subnet: subnetOf(network, number),
		hostPort: ports.firstUser + number - 1,
		tokenVariable: `FRONTEND_TOKEN_${id.toUpperCase()}`,
		after: before === undefined ? undefined : userId(before),
		mounts: [
			{ from: `${paths.outputs}/${id}`, to: "/outputs", writable: true },
			{ from: `${paths.inputs}/${id}`, to: "/inputs", writable: true },
			{ from: paths.workflows, to: "/workflows", writable: false },
			{ from: `${paths.models}/shared`, to: "/models/shared", writable: false },
			{ from: `${paths.models}/${byType}`, to: `/models/${byType}`, writable: false },
			{ from: `${paths.models}/users/${id}`, to: `/models/users/${id}`, writable: true },
			{ from: `${directory}/user_data/${id}`, to: "/comfyui/user", writable: true },
			{
				from: `${directory}/user_data/${id}/comfyui/custom_nodes`,
				to: "/comfyui/custom_nodes",
				writable: true,
			},
			{ from: `${directory}/${files.modelPaths}`, to: "/comfyui/extra_model_paths.yaml", writable: false },
		],
		limits: { memoryMegabytes: 2048, cpus: 1 },
	}
}

/** The user's own 16 addresses of the stack's network. Docker's default pools end after some 30 networks. */
function subnetOf(network: string, number: number): string {
	const [a = 0, b = 0, c = 0] = network.split("/")[0]?.split(".").map(Number) ?? []
	const offset = number * 16
	return `${a}.${b}.${c + Math.floor(offset / 256)}.${offset % 256}/28`
}

/**
 * ComfyUI's own folder types, as far as there are directories for them: a key of another name hides what lies in its
 * directory.
 */
export const modelTypes = [
	"checkpoints",
	"clip_vision",
	"controlnet",
	"diffusion_models",
	"embeddings",
	"latent_upscale_models",
	"loras",
	"style_models",
	"text_encoders",
	"upscale_models",
	"vae",
] as const

/**
 * Below the models: a directory per type that holds a link per user. ComfyUI names a model by its path below the type's
 * directory, and so `user003/mine.safetensors` is that one file in the user's own frontend and on every worker. In a
 * frontend the links of all other users lead nowhere.
 */
export const byType = "users/by-type"

export type UserDirectory = {
	path: string
	/** Permission bits; 0755 without them. */
	mode?: number
	/** Root's: nobody in a container may change what lies in it. */
	isOurs?: boolean
	/** Must be there already: a mount point that is empty because nothing is mounted must not be filled. */
	base: string
	/** The user's own: from here on down the user's code may have put anything, links too. */
	top: string
}

/** ComfyUI's own user in the containers. */
export const containerUserId = 1000

/** Every directory that the containers need, parents first. */
export function directoriesOf({ role, users, configuration }: Stack): UserDirectory[] {
	const { directory, paths } = configuration
	// The users' own are made where their frontends are.
	if (role === "worker") return [shareOutputs(paths)]
	const ours = modelTypes.map((type) => {
		const path = `${paths.models}/${byType}/${type}`
		return { base: paths.models, top: path, path, isOurs: true }
	})
	return [shareOutputs(paths), ...ours, ...users.flatMap(({ id }) => directoriesOfUser(directory, paths, id))]
}

function directoriesOfUser(
	directory: string,
	paths: StackConfiguration["paths"],
	id: string,
): UserDirectory[] {
	const own = `${directory}/user_data/${id}`
	const models = `${paths.models}/users/${id}`
	const inner = (base: string, top: string, names: readonly string[]) =>
		["", ...names.map((name) => `/${name}`)].map((name) => ({ base, top, path: top + name }))
	return [
		...inner(directory, own, ["default/workflows", "comfyui/custom_nodes"]),
		...inner(paths.outputs, `${paths.outputs}/${id}`, []),
		...inner(paths.inputs, `${paths.inputs}/${id}`, []),
		...inner(paths.models, models, modelTypes),
	]
}

// Workers on rented GPUs write here under whatever user their share gives them. Where it lies on the same share as the
// models, these tell whether the share is mounted.
function shareOutputs({ shareOutputs: path, models }: StackConfiguration["paths"]): UserDirectory {
	const base = dirname(path) === dirname(models) ? models : dirname(path)
	return { path, base, top: path, mode: 0o1777 }
}

export type UserLink = { path: string; target: string; base: string }

/** The links by which ComfyUI finds users' own models, each relative: right wherever the share is mounted. */
export function linksOf({ users, configuration: { paths } }: Stack): UserLink[] {
	return users.flatMap(({ id }) =>
		modelTypes.map((type) => ({
			path: `${paths.models}/${byType}/${type}/${id}`,
			target: `../../${id}/${type}`,
			base: paths.models,
		})),
	)
}
