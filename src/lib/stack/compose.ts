// The compose files. Compose replaces `$NAME` in every value: whatever is meant as it stands has its `$` doubled, here
// and nowhere else.
import { dirname } from "node:path"
import { stringify } from "yaml"
import { files, type Limits, type Mount, type Network, type Stack, type User } from "./description.ts"

/** A variable of the env file. Compose refuses to start without it. */
type Variable = { variable: string }

export type Value =
	| string
	| number
	| boolean
	| Variable
	| readonly Value[]
	| { readonly [key: string]: Value }

export const generatedMark = "# Written by comfyume generate-users; changes here are lost."

/** `compose.yaml`: what there is once, and the files of the users included. Pure. */
export function renderCompose(stack: Stack): string {
	const { services, images, limits, users, hasNginx } = stack
	const names = { redis: services.redis.container, manager: services.queueManager.container }
	return text({
		name: "comfyume",
		include: [
			{ path: files.composeUsers },
			...(stack.configuration.monitoring === undefined ? [] : [{ path: files.composeMonitoring }]),
		],
		services: {
			redis: {
				...common(names.redis, images.redis, limits.redis),
				user: "999:1000",
				// On stdin, so that the password is in no process list; redis-server reads its own file first.
				command: [
					"sh",
					"-c",
					`printf 'requirepass %s\\n' "$REDIS_PASSWORD" | exec redis-server /etc/redis/redis.conf -`,
				],
				environment: {
					REDIS_PASSWORD: { variable: "REDIS_PASSWORD" },
					REDISCLI_AUTH: { variable: "REDIS_PASSWORD" },
				},
				volumes: [
					bind({ from: inDirectory(stack, files.redis), to: "/etc/redis/redis.conf", writable: false }),
					{ type: "volume", source: "redis-data", target: "/data" },
				],
				networks: ["data"],
				ports: published(stack, services.redis),
				healthcheck: health(["redis-cli", "-h", "127.0.0.1", "-p", String(services.redis.port), "ping"]),
			},
			"queue-manager": {
				...common(names.manager, images.queueManager, limits.queueManager),
				pull_policy: "never",
				// It drains for ten seconds.
				stop_grace_period: "15s",
				environment: {
					REDIS_HOST: names.redis,
					REDIS_PORT: String(services.redis.port),
					REDIS_PASSWORD: { variable: "REDIS_PASSWORD" },
					PORT: String(services.queueManager.port),
					AUTH_MODE: "proxy",
					PROXY_SECRET: { variable: "PROXY_SECRET" },
					TOKEN_KEY: { variable: "TOKEN_KEY" },
					TOKEN_GENERATION: String(tokenGeneration),
					CORS_ORIGINS: `https://${stack.domain}`,
					INFERENCE_MODE: stack.configuration.inferenceMode,
					OUTPUTS_PATH: "/outputs",
					INPUTS_PATH: "/inputs",
					SFS_OUTPUT_DIR: shareOutputs,
					...Object.fromEntries(passedToQueueManager.map((name) => [name, { variable: name }])),
				},
				volumes: [
					bind({ from: stack.configuration.paths.outputs, to: "/outputs", writable: true }),
					bind({ from: stack.configuration.paths.inputs, to: "/inputs", writable: true }),
					bind({ from: stack.configuration.paths.shareOutputs, to: shareOutputs, writable: true }),
				],
				networks: ["data", "control", ...users.map(({ network }) => network)],
				ports: published(stack, services.queueManager),
				depends_on: after("redis"),
				healthcheck: health(nodeProbe(`http://127.0.0.1:${services.queueManager.port}/health`)),
			},
			"auth-gate": {
				...common(services.authGate.container, images.authGate, limits.authGate),
				pull_policy: "never",
				environment: {
					PORT: String(services.authGate.port),
					HTPASSWD_FILE: "/etc/comfyume/passwords/htpasswd",
					ADMIN_USERNAME: stack.configuration.adminName,
					AUTH_COOKIE_SECRET: { variable: "AUTH_COOKIE_SECRET" },
				},
				// The directory and not the file: a file that is replaced would stay the old one in here.
				volumes: [
					bind({
						from: inDirectory(stack, dirname(files.htpasswd)),
						to: "/etc/comfyume/passwords",
						writable: false,
					}),
				],
				networks: hasNginx ? ["gate"] : ["edge"],
				ports: hasNginx ? [] : onLoopback(services.authGate),
				healthcheck: health(nodeProbe(`http://127.0.0.1:${services.authGate.port}/health`)),
			},
			admin: {
				...common(services.admin.container, images.admin, limits.admin),
				pull_policy: "never",
				networks: hasNginx ? ["control"] : ["edge"],
				ports: hasNginx ? [] : onLoopback(services.admin),
				tmpfs: ["/tmp"],
				healthcheck: health(["wget", "-q", "-O", "-", `http://127.0.0.1:${services.admin.port}/health`]),
			},
			...(hasNginx ? { nginx: nginxService(stack) } : {}),
			...worker(stack),
		},
		networks: {
			edge: {},
			gate: { internal: true },
			control: { internal: hasNginx },
			data: {},
		} satisfies Record<Network, Value>,
		volumes: { "redis-data": {}, "worker-agent-state": {} },
	})
}

/** `compose.users.yaml`: a frontend and a network for each user. Pure. */
export function renderComposeUsers(stack: Stack): string {
	return text({
		services: Object.fromEntries(stack.users.map((user) => [user.id, frontend(stack, user)])),
		networks: Object.fromEntries(
			stack.users.map(({ network, subnet }) => [network, { ipam: { config: [{ subnet }] } }]),
		),
	})
}

/** Where the queue manager has what workers write. */
const shareOutputs = "/mnt/sfs/outputs"

/** Tokens of an older generation are refused by the queue manager. */
export const tokenGeneration = 1

/** The GPU worker that is started beside the stack, with the profile gpu. */
export const workerName = "worker-1"

/** Of the env file, handed to the queue manager as they are; empty where they don't apply. */
export const passedToQueueManager = [
	"QUEUE_MODE",
	"ENABLE_PRIORITY",
	"JOB_TIMEOUT",
	"MAX_QUEUE_DEPTH",
	"MAX_USER_DEPTH",
	"SERVERLESS_ACTIVE",
	"SERVERLESS_ENDPOINT",
	"SERVERLESS_ENDPOINT_H200_SPOT",
	"SERVERLESS_ENDPOINT_H200_ON_DEMAND",
	"SERVERLESS_ENDPOINT_B300_SPOT",
	"SERVERLESS_ENDPOINT_B300_ON_DEMAND",
	"SERVERLESS_API_KEY",
	"SERVERLESS_TRANSPORT",
	"SERVERLESS_SLOTS",
	"WORKER_HEARTBEAT_TIMEOUT",
	"SFS_POLL_INTERVAL",
	"SFS_MAX_WAIT",
	"SFS_SETTLE_TIME",
] as const

function frontend(stack: Stack, user: User): Value {
	const { services, images, frontendPort, hasNginx, configuration } = stack
	return {
		...common(user.container, images.frontend, user.limits),
		pull_policy: "never",
		user: "1000:1000",
		// ComfyUI writes caches and temporary files beside its own code.
		read_only: false,
		environment: {
			USER_ID: user.id,
			QUEUE_MANAGER_URL: `http://${services.queueManager.container}:${services.queueManager.port}`,
			QUEUE_MANAGER_TOKEN: { variable: user.tokenVariable },
			INFERENCE_MODE: configuration.inferenceMode,
			COMFYUME_EXTENSIONS: configuration.extensions.join(",") || "none",
			COMFYUME_DEFAULT_WORKFLOW: configuration.defaultWorkflow ?? "",
		},
		volumes: user.mounts.map(bind),
		networks: [user.network],
		ports: hasNginx ? [] : [`127.0.0.1:${user.hostPort}:${frontendPort}`],
		depends_on: after(user.after ?? "queue-manager"),
		healthcheck: health(["curl", "-fsS", "-o", "/dev/null", `http://127.0.0.1:${frontendPort}/`]),
	}
}

function nginxService(stack: Stack): Value {
	const { services, images, limits, users, configuration } = stack
	const { paths, ports } = configuration
	return {
		...common(services.nginx.container, images.nginx, limits.nginx),
		// The master reads keys that only root may and hands its sockets to workers without rights.
		cap_add: ["CHOWN", "NET_BIND_SERVICE", "SETGID", "SETUID"],
		tmpfs: ["/var/cache/nginx", "/run", "/tmp"],
		volumes: [
			bind({ from: inDirectory(stack, "nginx"), to: "/etc/nginx/comfyume", writable: false }),
			bind({ from: paths.certificates, to: "/etc/nginx/ssl", writable: false }),
			bind({ from: paths.acme, to: "/var/www/certbot", writable: false }),
			bind({ from: paths.outputs, to: "/srv/comfyume/outputs", writable: false }),
		],
		command: ["nginx", "-c", "/etc/nginx/comfyume/nginx.conf", "-g", "daemon off;"],
		networks: ["edge", "gate", "control", ...users.map(({ network }) => network)],
		ports: [`${ports.http}:80`, `${ports.https}:443`],
		depends_on: { ...after("queue-manager"), ...after("auth-gate") },
		healthcheck: health(["wget", "-q", "-O", "-", "http://127.0.0.1/health/ping"]),
	}
}

// Off unless asked for: a CPU host has no use for it.
function worker(stack: Stack): { [key: string]: Value } {
	const { services, images, limits, configuration, frontendPort } = stack
	const probe = `import urllib.request as r; r.urlopen("http://127.0.0.1:${frontendPort}/system_stats", timeout=5)`
	return {
		worker: {
			...common("comfy-worker", images.worker, limits.worker),
			pull_policy: "never",
			profiles: ["gpu"],
			user: "1000:1000",
			read_only: false,
			deploy: {
				resources: { reservations: { devices: [{ driver: "nvidia", count: "all", capabilities: ["gpu"] }] } },
			},
			command: [
				"python3",
				"/workspace/ComfyUI/main.py",
				"--listen",
				"0.0.0.0",
				"--port",
				String(frontendPort),
				"--extra-model-paths-config",
				"/etc/comfyume/extra_model_paths.yaml",
				"--output-directory",
				"/outputs",
			],
			volumes: [
				bind({ from: configuration.paths.models, to: "/models", writable: false }),
				bind({ from: configuration.paths.shareOutputs, to: "/outputs", writable: true }),
				bind({
					from: inDirectory(stack, files.modelPaths),
					to: "/etc/comfyume/extra_model_paths.yaml",
					writable: false,
				}),
			],
			networks: ["control"],
			depends_on: after("queue-manager"),
			// Not curl: the worker's image has none, and a probe that can't run restarts it for ever.
			healthcheck: health(["python3", "-c", probe]),
		},
		"worker-agent": {
			...common("comfy-worker-agent", images.workerAgent, limits.workerAgent),
			pull_policy: "never",
			profiles: ["gpu"],
			stop_grace_period: "15s",
			environment: {
				QUEUE_MANAGER_URL: `http://${services.queueManager.container}:${services.queueManager.port}`,
				COMFYUI_URL: `http://comfy-worker:${frontendPort}`,
				WORKER_ID: workerName,
				WORKER_TOKEN: { variable: "WORKER_TOKEN" },
				OUTPUTS_PATH: "/outputs",
			},
			volumes: [
				bind({ from: configuration.paths.shareOutputs, to: "/outputs", writable: true }),
				{ type: "volume", source: "worker-agent-state", target: "/var/lib/comfyume-worker-agent" },
			],
			networks: ["control"],
			depends_on: after("worker"),
			healthcheck: health(nodeProbe("http://127.0.0.1:3001/health")),
		},
	}
}

export function common(container: string, image: string, { memoryMegabytes, cpus }: Limits) {
	return {
		container_name: container,
		image,
		restart: "unless-stopped",
		init: true,
		read_only: true,
		security_opt: ["no-new-privileges:true"],
		cap_drop: ["ALL"],
		mem_limit: `${memoryMegabytes}m`,
		cpus,
		pids_limit: 1024,
		// The tag is how a line's container is known to who collects the files.
		logging: {
			driver: "json-file",
			options: { "max-size": "10m", "max-file": "3", tag: "{{.Name}}" },
		},
	} satisfies Value
}

// The source must be there: Docker would make a directory where a file is missing.
export const bind = ({ from, to, writable }: Mount): Value => ({
	type: "bind",
	source: from,
	target: to,
	read_only: !writable,
	bind: { create_host_path: false },
})

// 127.0.0.1 and not localhost, which may be ::1 where nobody listens.
export const health = (test: readonly string[]): Value => ({
	test: ["CMD", ...test],
	interval: "30s",
	timeout: "10s",
	retries: 3,
	start_period: "120s",
	start_interval: "1s",
})

const nodeProbe = (url: string) => [
	"node",
	"-e",
	`fetch("${url}").then(async(r)=>process.exit(r.ok&&(await r.json()).status==="healthy"?0:1),()=>process.exit(1))`,
]

const after = (service: string): { [key: string]: Value } => ({ [service]: { condition: "service_healthy" } })
const onLoopback = ({ port, hostPort }: { port: number; hostPort: number }): Value => [
	`127.0.0.1:${hostPort}:${port}`,
]
const published = ({ publishedOn }: Stack, { port, hostPort }: { port: number; hostPort: number }): Value =>
	publishedOn.map((address) => `${address}:${hostPort}:${port}`)
export const inDirectory = ({ configuration }: Stack, file: string) => `${configuration.directory}/${file}`

// Version 1.1, as elsewhere: readers that still take it so would read `yes` and `22:22` as something else.
export const text = (value: Value) =>
	`${generatedMark}\n${stringify(forCompose(value), { version: "1.1", lineWidth: 0, aliasDuplicateObjects: false })}`

const isVariable = (value: object): value is Variable =>
	"variable" in value && typeof value.variable === "string" && Object.keys(value).length === 1

function forCompose(value: Value): unknown {
	if (typeof value === "string") return value.replaceAll("$", "$$$$")
	if (typeof value !== "object") return value
	if (Array.isArray(value)) return value.map(forCompose)
	if (isVariable(value))
		return optional.has(value.variable) ? `\${${value.variable}-}` : required(value.variable)
	// Where there is nothing to publish, there is no `ports: []` to wonder at.
	const entries = Object.entries(value).filter(
		([, inside]) => !(Array.isArray(inside) && inside.length === 0),
	)
	return Object.fromEntries(entries.map(([key, inside]) => [key, forCompose(inside as Value)]))
}

const optional: ReadonlySet<string> = new Set([...passedToQueueManager, "VERDA_EDGE_ID", "VERDA_EDGE_KEY"])
const required = (name: string) => `\${${name}:?is not in .env; comfyume env render writes it}`
