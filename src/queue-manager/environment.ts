// The environment's variables, read once: everything the queue manager can be told from outside.
import { z } from "zod"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import { Secret } from "../lib/secret.ts"
import { modes } from "./job.ts"

const whole = (least: number, most: number) => z.coerce.number().int().min(least).max(most)
const flag = z
	.string()
	.toLowerCase()
	.pipe(z.enum(["true", "false", "1", "0", "yes", "no", "on", "off"]))
	.transform((text) => ["true", "1", "yes", "on"].includes(text))
const list = z.string().transform((text) =>
	text
		.split(",")
		.map((one) => one.trim())
		.filter(Boolean),
)
const secret = z.string().transform((text) => new Secret(text))
const actives = ["default", "h200-spot", "h200-on-demand", "b300-spot", "b300-on-demand"] as const

const schema = z
	.object({
		REDIS_HOST: z.string().default("127.0.0.1"),
		REDIS_PORT: whole(1, 65_535).default(6379),
		REDIS_PASSWORD: secret.optional(),
		REDIS_DB: whole(0, 10_000).default(0),
		WORKSHOP: z
			.string()
			.regex(/^[a-zA-Z0-9_-]{1,50}$/)
			.default("workshop"),
		QUEUE_MODE: z.enum(modes).default("fifo"),
		ENABLE_PRIORITY: flag.default(true),
		PRIORITY_AGING: whole(0, 604_800).default(0),
		JOB_TIMEOUT: whole(1, 604_800).default(3600),
		MAX_QUEUE_DEPTH: whole(0, 1_000_000).default(100),
		MAX_USER_DEPTH: whole(0, 1_000_000).optional(),
		INFERENCE_MODE: z.enum(["local", "redis", "serverless"]).default("local"),
		SERVERLESS_ENDPOINT: z.string().optional(),
		SERVERLESS_ENDPOINT_H200_SPOT: z.string().optional(),
		SERVERLESS_ENDPOINT_H200_ON_DEMAND: z.string().optional(),
		SERVERLESS_ENDPOINT_B300_SPOT: z.string().optional(),
		SERVERLESS_ENDPOINT_B300_ON_DEMAND: z.string().optional(),
		SERVERLESS_ACTIVE: z.enum(actives).default("default"),
		SERVERLESS_API_KEY: secret.optional(),
		SERVERLESS_TRANSPORT: z.enum(["share", "held"]).default("share"),
		SERVERLESS_SLOTS: whole(1, 1000).default(4),
		NUM_WORKERS: whole(0, 10_000).default(1),
		HOST: z.string().default("0.0.0.0"),
		PORT: whole(0, 65_535).default(3000),
		LOG_LEVEL: z
			.string()
			.toLowerCase()
			.transform((level) => (level === "warning" ? "warn" : level === "critical" ? "fatal" : level))
			.pipe(z.enum(["trace", "debug", "info", "warn", "error", "fatal", "silent"]))
			.default("info"),
		WORKER_HEARTBEAT_TIMEOUT: whole(1, 86_400).default(60),
		OUTPUTS_PATH: z.string().optional(),
		INPUTS_PATH: z.string().default("/inputs"),
		SFS_OUTPUT_DIR: z.string().default("/mnt/sfs/outputs"),
		SFS_POLL_INTERVAL: z.coerce.number().positive().default(3),
		SFS_MAX_WAIT: whole(1, 86_400).default(600),
		SFS_SETTLE_TIME: z.coerce.number().nonnegative().default(2),
		AUTH_MODE: z.enum(["proxy", "open"]).default("proxy"),
		PROXY_SECRET: secret.optional(),
		TOKEN_KEY: secret.optional(),
		TOKEN_GENERATION: whole(0, 1_000_000).default(1),
		WORKER_ADDRESSES: list.default([]),
		CORS_ORIGINS: list.default([]),
	})
	.superRefine((environment, context) => {
		const short = (name: "PROXY_SECRET" | "TOKEN_KEY") => {
			if ((environment[name]?.reveal().length ?? 0) < 32) {
				context.addIssue({
					code: "custom",
					path: [name],
					message: "AUTH_MODE=proxy needs at least 32 letters",
				})
			}
		}
		if (environment.AUTH_MODE !== "proxy") return
		short("PROXY_SECRET")
		short("TOKEN_KEY")
	})

export type Environment = z.infer<typeof schema>

/**
 * Reads the variables; an empty one counts as not set, as Compose leaves them.
 * @throws {OperatorError} naming every variable that is wrong, never its value
 */
export function readEnvironment(variables: Readonly<Record<string, string | undefined>>): Environment {
	const set = Object.fromEntries(
		Object.entries(variables).filter(([, value]) => value !== undefined && value !== ""),
	)
	const read = schema.safeParse(set)
	if (read.success) return read.data
	const problems = read.error.issues.map(({ path, message }) => `${path.join(".")}: ${message}`)
	throw new OperatorError(`the environment is wrong: ${problems.join("; ")}`, {
		exitCode: exitCodes.usage,
		hint: "docs/queue-manager.md lists every variable; for a trusted network: AUTH_MODE=open",
	})
}

const gpus = {
	default: "serverless",
	"h200-spot": "H200-141GB-SPOT",
	"h200-on-demand": "H200-141GB",
	"b300-spot": "B300-288GB-SPOT",
	"b300-on-demand": "B300-288GB",
} as const

/** What jobs run on at the moment, as the health answer names it. */
export function activeGpu({ INFERENCE_MODE }: Environment, active: EndpointName): string {
	return INFERENCE_MODE === "serverless" ? gpus[active] : "local"
}

export type EndpointName = (typeof actives)[number]
export const endpointNames = actives

/** The endpoints that are configured, by name. They may hold a key: show `endpointName` instead. */
export function configuredEndpoints(environment: Environment): ReadonlyMap<EndpointName, string> {
	if (environment.INFERENCE_MODE !== "serverless") return new Map()
	const urls: [EndpointName, string | undefined][] = [
		["default", environment.SERVERLESS_ENDPOINT],
		["h200-spot", environment.SERVERLESS_ENDPOINT_H200_SPOT],
		["h200-on-demand", environment.SERVERLESS_ENDPOINT_H200_ON_DEMAND],
		["b300-spot", environment.SERVERLESS_ENDPOINT_B300_SPOT],
		["b300-on-demand", environment.SERVERLESS_ENDPOINT_B300_ON_DEMAND],
	]
	return new Map(urls.flatMap(([name, url]) => (url === undefined ? [] : [[name, url] as const])))
}

/** Which endpoint new jobs go to: what an instructor chose, where that is (still) configured. */
export function activeEndpoint(environment: Environment, chosen: string | undefined): EndpointName {
	const isKnown = (name: string | undefined): name is EndpointName =>
		name !== undefined && configuredEndpoints(environment).has(name as EndpointName)
	return isKnown(chosen) ? chosen : environment.SERVERLESS_ACTIVE
}

/** A short name for an endpoint: the last part of its path, or its host's first; never its address, user or query. */
export function endpointName(endpoint: string | undefined): string | null {
	if (endpoint === undefined) return null
	if (!URL.canParse(endpoint)) return /^[a-zA-Z0-9_-]{1,64}$/.test(endpoint) ? endpoint : "serverless"
	const { pathname, hostname } = new URL(endpoint)
	const name = pathname.split("/").filter(Boolean).at(-1) ?? hostname.split(".")[0] ?? ""
	return /^[a-zA-Z0-9_.-]{1,64}$/.test(name) ? name : "serverless"
}
