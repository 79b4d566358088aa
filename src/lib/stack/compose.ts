// The compose files of the app server.
import { dirname } from "node:path"
import {
	after,
	bind,
	common,
	health,
	inDirectory,
	nodeProbe,
	passedToQueueManager,
	text,
	type Value,
} from "./compose-parts.ts"
import { workerBeside } from "./compose-worker.ts"
import { files, type Network, type Stack, type User } from "./description.ts"
import { tokenGeneration } from "./workers.ts"

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
			...workerBeside(stack),
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

const onLoopback = ({ port, hostPort }: { port: number; hostPort: number }): Value => [
	`127.0.0.1:${hostPort}:${port}`,
]
const published = ({ publishedOn }: Stack, { port, hostPort }: { port: number; hostPort: number }): Value =>
	publishedOn.map((address) => `${address}:${hostPort}:${port}`)
