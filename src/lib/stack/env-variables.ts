// Every variable of the platform's env file, and what it means. The lint and the renderer know no other list.
import { mostUsers, userId } from "./roster.ts"
import { mostWorkers } from "./workers.ts"

export const inferenceModes = ["local", "redis", "serverless"] as const
export type InferenceMode = (typeof inferenceModes)[number]

export type EnvVariable = {
	group: string
	meaning: string
	secret?: true
	/** What it was called before. */
	formerly?: readonly string[]
	/** Must be there on the app server: always, or in these inference modes. */
	needed?: "always" | readonly InferenceMode[]
	/** Must be there on a GPU host (COMFYUI_MODE=worker). */
	neededByWorkers?: true
	/** Must not be there on a GPU host: what it opens is none of a worker's business. */
	notOnWorkers?: true
	/** What a value looks like, and how to say so. */
	pattern?: { matches: RegExp; says: string }
}

const whole = { matches: /^\d+$/, says: "a whole number" }
const number = { matches: /^\d+(\.\d+)?$/, says: "a number" }
const flag = { matches: /^(true|false)$/i, says: "true or false" }
const path = { matches: /^\//, says: "an absolute path" }
const port = {
	matches: /^([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])$/,
	says: "a port",
}
const oneOf = (...words: readonly string[]) => ({
	matches: new RegExp(`^(${words.join("|")})$`),
	says: words.join(", "),
})
const endpoint = {
	matches: /^https:\/\/containers\.datacrunch\.io\/[A-Za-z0-9-]+\/?$/,
	says: "https://containers.datacrunch.io/<deployment>",
}
const cloud = (meaning: string) => ({ group: "cloud", meaning })
const secretOf = (group: string, meaning: string) => ({ group, meaning, secret: true as const })

const table = {
	ENV_VERSION: { group: "meta", meaning: "the version of this file's list of names" },
	ENV_DATE: { group: "meta", meaning: "when it was written by hand last" },
	PROJECT_NAME: { neededByWorkers: true, group: "meta", meaning: "the compose project", needed: "always" },
	SERVER_MODE: {
		group: "meta",
		meaning: "one server or two; INFERENCE_MODE decides today",
		pattern: oneOf("single", "dual", "serverless"),
	},
	DEBUG: { group: "meta", meaning: "more is said", pattern: flag },
	VERBOSE_LOGS: { group: "meta", meaning: "more is logged", pattern: flag },
	LOG_LEVEL: { group: "meta", meaning: "what is logged" },

	DOMAIN: {
		group: "web",
		meaning: "the workshop's host name",
		needed: "always",
		pattern: { matches: /^([a-z0-9-]+\.)+[a-z0-9-]+$/, says: "a host name without https://" },
	},
	SSL_CERT_PATH: { group: "web", meaning: "the certificate with its chain", pattern: path },
	SSL_KEY_PATH: { group: "web", meaning: "the certificate's key", pattern: path },
	USE_HOST_NGINX: { group: "web", meaning: "nginx on the host and not in a container", pattern: flag },
	NGINX_HTTP_PORT: { group: "web", meaning: "where http comes in", pattern: port },
	NGINX_HTTPS_PORT: { group: "web", meaning: "where https comes in", pattern: port },
	NGINX_CLIENT_MAX_BODY_SIZE: {
		group: "web",
		meaning: "the largest upload",
		pattern: { matches: /^\d+[kKmMgG]?$/, says: "a size, as in 10000M" },
	},

	COMFYUI_VERSION: {
		neededByWorkers: true,
		group: "comfy",
		meaning: "the version of ComfyUI",
		needed: "always",
		pattern: { matches: /^v\d+\.\d+\.\d+$/, says: "a version as v0.11.0, never latest" },
	},
	COMFYUI_MODE: {
		neededByWorkers: true,
		group: "comfy",
		meaning: "what ComfyUI does here",
		pattern: oneOf("frontend-testing", "worker"),
	},
	COMFYUI_PORT: { group: "comfy", meaning: "ComfyUI's port in its container", pattern: port },

	QUEUE_MANAGER_HOST: { neededByWorkers: true, group: "queue", meaning: "where the queue manager is" },
	QUEUE_MANAGER_PORT: { neededByWorkers: true, group: "queue", meaning: "its port", pattern: port },
	QUEUE_MANAGER_LOG_LEVEL: { group: "queue", meaning: "what it logs" },
	QUEUE_MODE: {
		group: "queue",
		meaning: "whose turn it is",
		pattern: oneOf("fifo", "round_robin", "priority"),
	},
	ENABLE_PRIORITY: { group: "queue", meaning: "whether jobs may have priorities", pattern: flag },
	JOB_TIMEOUT: { group: "queue", meaning: "seconds a job may take", pattern: whole },
	MAX_QUEUE_DEPTH: { group: "queue", meaning: "how many jobs may wait; 0: any number", pattern: whole },
	MAX_USER_DEPTH: {
		group: "queue",
		meaning: "how many of one user may wait; 0: any number; unset: half of all",
		pattern: whole,
	},

	REDIS_HOST: {
		group: "redis",
		meaning: "where the services find Redis",
		formerly: ["APP_SERVER_REDIS_HOST"],
		needed: "always",
	},
	REDIS_PORT: { group: "redis", meaning: "its port", pattern: port },
	REDIS_BIND_IP: { group: "redis", meaning: "the host's address that Redis is published on" },
	INFERENCE_SERVER_REDIS_HOST: { group: "redis", meaning: "where GPU workers find Redis" },
	REDIS_PASSWORD: {
		...secretOf("redis", "Redis's password"),
		needed: "always",
		pattern: { matches: /^[A-Za-z0-9_-]{20,}$/, says: "20 or more of A-Z a-z 0-9 _ -" },
	},
	REDIS_PERSISTENCE: { group: "redis", meaning: "whether Redis keeps its data on the disk" },

	NUM_USERS: { group: "users", meaning: "how many users there are", pattern: whole },
	USER_ID_PREFIX: { group: "users", meaning: "what users' ids begin with", pattern: oneOf("user") },
	USER_CREDENTIALS_FORMAT: { group: "users", meaning: "how a credential is written: username:password" },

	ADMIN_PORT: { group: "admin", meaning: "the dashboard's port", pattern: port },
	ADMIN_USERNAME: { group: "admin", meaning: "who may open /admin/" },
	ADMIN_PASSWORD: {
		...secretOf("admin", "the admin's password, where no credentials file holds it"),
		notOnWorkers: true,
	},
	ADMIN_ISOLATE_MODE: { group: "admin", meaning: "features off, to find a fault", pattern: flag },
	AUTH_COOKIE_SECRET: {
		notOnWorkers: true,
		...secretOf("admin", "signs the users' sessions"),
		needed: "always",
	},
	PROXY_SECRET: {
		notOnWorkers: true,
		...secretOf("admin", "by which the queue manager knows nginx"),
		needed: "always",
	},
	TOKEN_KEY: {
		notOnWorkers: true,
		...secretOf("admin", "what the services' tokens are made with"),
		needed: "always",
	},
	WORKER_TOKEN: { notOnWorkers: true, ...secretOf("admin", "the GPU workers' token"), needed: "always" },

	MODELS_PATH: {
		neededByWorkers: true,
		group: "storage",
		meaning: "models on the host",
		needed: "always",
		pattern: path,
	},
	OUTPUTS_PATH: { group: "storage", meaning: "results, by user", needed: "always", pattern: path },
	INPUTS_PATH: { group: "storage", meaning: "uploads, by user", needed: "always", pattern: path },
	WORKFLOWS_PATH: { group: "storage", meaning: "the workshop's workflows", pattern: path },

	INFERENCE_MODE: {
		group: "inference",
		meaning: "where jobs are executed",
		needed: "always",
		pattern: oneOf(...inferenceModes),
	},
	SERVERLESS_ACTIVE: {
		group: "inference",
		meaning: "which of the endpoints takes new jobs",
		pattern: oneOf("default", "h200-spot", "h200-on-demand", "b300-spot", "b300-on-demand"),
	},
	SERVERLESS_ENDPOINT: { group: "inference", meaning: "the default endpoint", pattern: endpoint },
	SERVERLESS_ENDPOINT_H200_SPOT: { group: "inference", meaning: "H200, spot", pattern: endpoint },
	SERVERLESS_ENDPOINT_H200_ON_DEMAND: { group: "inference", meaning: "H200, on demand", pattern: endpoint },
	SERVERLESS_ENDPOINT_B300_SPOT: { group: "inference", meaning: "B300, spot", pattern: endpoint },
	SERVERLESS_ENDPOINT_B300_ON_DEMAND: { group: "inference", meaning: "B300, on demand", pattern: endpoint },
	SERVERLESS_API_KEY: {
		notOnWorkers: true,
		...secretOf("inference", "the inference key; not the cloud API's secret"),
		needed: ["serverless"],
	},
	SERVERLESS_TRANSPORT: {
		group: "inference",
		meaning: "share: vanilla ComfyUI; held: an agent that answers when the job is done",
		pattern: oneOf("share", "held"),
	},
	SERVERLESS_SLOTS: { group: "inference", meaning: "jobs that an endpoint may have at once", pattern: whole },

	SFS_DELIVERY_ENABLED: {
		group: "delivery",
		meaning: "results are looked for on the share",
		pattern: flag,
	},
	SFS_OUTPUT_DIR: {
		neededByWorkers: true,
		group: "delivery",
		meaning: "where serverless workers write",
		pattern: path,
	},
	SFS_POLL_INTERVAL: { group: "delivery", meaning: "seconds between two looks", pattern: number },
	SFS_MAX_WAIT: { group: "delivery", meaning: "seconds until a result counts as lost", pattern: number },
	SFS_SETTLE_TIME: {
		group: "delivery",
		meaning: "seconds in which a file must not change",
		pattern: number,
	},

	NUM_WORKERS: {
		neededByWorkers: true,
		group: "worker",
		meaning: "how many GPU workers there are",
		pattern: whole,
	},
	WORKER_ID: { group: "worker", meaning: "this worker's name" },
	WORKER_GPU_MEMORY_LIMIT: { group: "worker", meaning: "GPU memory a worker may use, as in 70G" },
	WORKER_RESTART_POLICY: { group: "worker", meaning: "when Docker starts it again" },
	WORKER_HEARTBEAT_TIMEOUT: {
		group: "worker",
		meaning: "seconds until a silent worker is gone",
		pattern: whole,
	},
	WORKER_POLL_INTERVAL: { group: "worker", meaning: "seconds between two claims", pattern: number },

	VERDA_CLIENT_ID: cloud("the cloud API's client"),
	VERDA_CLIENT_SECRET: secretOf("cloud", "the cloud API's secret"),
	VERDA_PUBLIC_IP: cloud("the server's address"),
	VERDA_HOSTNAME: cloud("the server's host name"),
	VERDA_INSTANCE_ID: cloud("the server's id at the provider"),
	VERDA_TAILSCALE_IP: cloud("the server's address in the tailnet"),
	MELLO_TAILSCALE_IP: cloud("the development machine's address in the tailnet"),
	VERDA_MODELS_SFS_PSEUDOPATH: cloud("the share's path; it changes, and is read from the API"),
	GRAFANA_ADMIN_PASSWORD: {
		...secretOf("monitoring", "Grafana's admin; counts at its first start"),
		notOnWorkers: true,
	},
	VERDA_EDGE_ID: cloud("Portainer's edge agent"),
	VERDA_EDGE_KEY: secretOf("cloud", "Portainer's edge key"),
	VERDA_PORTAINER_CONNECTION_MODE: cloud("how the edge agent connects"),

	HF_TOKEN: { ...secretOf("secrets", "gated models at Hugging Face"), formerly: ["HUGGINGFACE_TOKEN"] },
	NTFY_TOPIC: secretOf("secrets", "where notifications go; whoever knows it reads them"),
	VERDA_DEV_USER_PASSWORD: secretOf("secrets", "the platform user's password"),
	PUB_KEY_MELLO: { group: "secrets", meaning: "a public key that may log in" },
	PUB_KEY_VERDA: { group: "secrets", meaning: "a public key that may log in" },
	PUB_KEY_AEON: { group: "secrets", meaning: "a public key that may log in" },
	VERDA_INSTANCE_SSH_PRIVATE_KEY: {
		...secretOf("secrets", "the key of the server's own user"),
		formerly: ["VERDA_SSH_PRIVATE_KEY"],
	},
	GH_TOKEN: secretOf("secrets", "reading the git repositories"),
	GH_APP_REPO: { group: "secrets", meaning: "the platform's repository" },
	GH_APP_BRANCH: { group: "secrets", meaning: "its branch" },
	GH_SCRIPTS_REPO: { group: "secrets", meaning: "the scripts' repository" },
	GH_SCRIPTS_BRANCH: { group: "secrets", meaning: "its branch" },
	R2_ENDPOINT: { group: "secrets", meaning: "the object store's address" },
	R2_ACCESS_KEY_ID: secretOf("secrets", "the object store's access key"),
	R2_SECRET_ACCESS_KEY: secretOf("secrets", "the object store's secret key"),
	R2_MODELS_BUCKET: { group: "secrets", meaning: "models" },
	R2_CACHE_BUCKET: { group: "secrets", meaning: "configuration and identity" },
	R2_WORKER_CONTAINER_TAR_BALL_BUCKET: { group: "secrets", meaning: "container images" },
	R2_USER_FILES_BUCKET: { group: "secrets", meaning: "users' files" },
	UBUNTU_PRO_TOKEN: secretOf("secrets", "attaching the machine to Ubuntu Pro"),
	TAILSCALE_AUTH_KEY: secretOf("secrets", "joining the tailnet"),
} as const satisfies Readonly<Record<string, EnvVariable>>

/** What there is for each user besides. */
const ofUsers = Array.from({ length: mostUsers }, (_, index) => userId(index + 1).toUpperCase()).flatMap(
	(id): [string, EnvVariable][] => [
		[
			`USER_CREDENTIALS_${id}`,
			{
				...secretOf("users", "username:password; belongs into the credentials file"),
				notOnWorkers: true,
			},
		],
		[
			`FRONTEND_TOKEN_${id}`,
			{ ...secretOf("users", "this frontend's token for the queue manager"), notOnWorkers: true },
		],
	],
)

/** The tokens of a GPU host's workers. */
const ofWorkers = Array.from({ length: mostWorkers }, (_, index): [string, EnvVariable] => [
	`WORKER_TOKEN_${index + 1}`,
	secretOf("worker", "this worker's token, made on the app server"),
])

/** All of them by name; those of users last. */
export const envVariables: ReadonlyMap<string, EnvVariable> = new Map([
	...Object.entries<EnvVariable>(table),
	...ofWorkers,
	...ofUsers,
])

/** Former name -> name. */
export const renamedVariables: ReadonlyMap<string, string> = new Map(
	[...envVariables].flatMap(([name, { formerly = [] }]) => formerly.map((old) => [old, name] as const)),
)
