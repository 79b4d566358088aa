// The agent's environment variables: parsed once, at the door, with every problem said at the same time.
import { readFile } from "node:fs/promises"
import { z } from "zod"
import { exitCodes, messageOf, OperatorError } from "../lib/errors.ts"
import { Secret } from "../lib/secret.ts"

export type AgentConfiguration = {
	/** `pull`: asks the queue manager for jobs. `held`: is asked, and answers when the job is done. */
	mode: (typeof modes)[number]
	/** Without a slash at its end; empty where it isn't asked. */
	queueManagerUrl: string
	workerId: string
	token: Secret | undefined
	/** Without a slash at its end. */
	comfyuiUrl: string
	/** Between two questions for work, and the longest between two heartbeats. */
	pollMs: number
	/** What a lease lasts: the queue manager's variable of the same name. */
	leaseMs: number
	/** ComfyUI may be silent so long while it works; then the job is given up. */
	comfyuiSilenceMs: number
	/** After SIGTERM a job may go on for so long; then it is handed back. */
	drainMs: number
	/** ComfyUI's output directory as the agent sees it; undefined: outputs are taken at ComfyUI's word. */
	outputsPath: string | undefined
	/** Where the job at hand and a result that nobody has taken yet are noted. */
	statePath: string
	/** Kept free on the GPU besides what a job is said to need. */
	vramMarginMb: number
	/** What a job is taken to need when it doesn't say. */
	vramDefaultMb: number
	healthHost: string
	/** 0: no health server. */
	healthPort: number
	/** Where jobs are taken with `held`. */
	runHost: string
	runPort: number
	logLevel: (typeof logLevels)[number]
}

const modes = ["pull", "held"] as const

const logLevels = ["debug", "info", "warn", "error"] as const

const url = z
	.string("is not set")
	.refine((text) => /^https?:\/\//.test(text) && URL.canParse(text), "is not an http:// or https:// address")
	.refine(
		(text) => !URL.canParse(text) || new URL(text).username === "",
		"holds credentials: use WORKER_TOKEN_FILE",
	)
	.transform((text) => text.replace(/\/+$/, ""))
const number = (least: number, most: number) =>
	z.coerce.number("is not a number").min(least, `is less than ${least}`).max(most, `is more than ${most}`)
const seconds = (least: number, most: number) => number(least, most).transform((value) => value * 1000)
const absolutePath = z.string().startsWith("/", "is not an absolute path")

const schema = z.object({
	WORKER_MODE: z.enum(modes, `is none of ${modes.join(", ")}`).default("pull"),
	QUEUE_MANAGER_URL: url,
	WORKER_ID: z
		.string("is not set")
		.regex(/^[a-zA-Z0-9._-]{1,100}$/, "is not a worker's name: 1 to 100 of a-z A-Z 0-9 . _ -"),
	WORKER_TOKEN: z.string().optional(),
	WORKER_TOKEN_FILE: absolutePath.optional(),
	COMFYUI_URL: url.default("http://127.0.0.1:8188"),
	WORKER_POLL_INTERVAL: seconds(0.05, 60).default(2000),
	WORKER_HEARTBEAT_TIMEOUT: seconds(1, 3600).default(60_000),
	WORKER_COMFYUI_SILENCE: seconds(1, 3600).default(60_000),
	WORKER_DRAIN_TIMEOUT: seconds(0, 3600).default(8000),
	OUTPUTS_PATH: absolutePath.optional(),
	WORKER_STATE_PATH: absolutePath.default("/var/lib/comfyume-worker-agent"),
	WORKER_VRAM_MARGIN: number(0, 1_000_000).default(2048),
	WORKER_VRAM_DEFAULT: number(0, 1_000_000).default(8192),
	WORKER_HEALTH_HOST: z.string().default("127.0.0.1"),
	WORKER_HEALTH_PORT: number(0, 65_535).int("is not a whole number").default(3001),
	WORKER_RUN_HOST: z.string().default("0.0.0.0"),
	WORKER_RUN_PORT: number(0, 65_535).int("is not a whole number").default(8189),
	LOG_LEVEL: z
		.string()
		.toLowerCase()
		.transform((level) => (level === "warning" ? "warn" : level))
		.pipe(z.enum(logLevels, `is none of ${logLevels.join(", ")}`))
		.default("info"),
})
const heldSchema = schema.extend({ QUEUE_MANAGER_URL: url.optional() })

/**
 * Reads the configuration from an environment. An empty variable counts as unset, as compose files write it.
 * @throws {OperatorError} exit 2, naming every variable that is wrong
 */
export async function readConfiguration(
	environment: Readonly<Record<string, string | undefined>>,
): Promise<AgentConfiguration> {
	const given = Object.fromEntries(Object.entries(environment).filter(([, value]) => value !== ""))
	const parsed = (given["WORKER_MODE"] === "held" ? heldSchema : schema).safeParse(given)
	if (!parsed.success) {
		const problems = parsed.error.issues.map(({ path, message }) => `${path.join(".")} ${message}`)
		throw refused(problems.join("; "))
	}
	const values = parsed.data
	const token = await readToken(values.WORKER_TOKEN, values.WORKER_TOKEN_FILE)
	if (values.WORKER_MODE === "held" && token === undefined)
		throw refused(
			"WORKER_TOKEN or WORKER_TOKEN_FILE is needed with WORKER_MODE=held: else anybody has the GPU",
		)
	return {
		mode: values.WORKER_MODE,
		queueManagerUrl: values.QUEUE_MANAGER_URL ?? "",
		workerId: values.WORKER_ID,
		token,
		comfyuiUrl: values.COMFYUI_URL,
		pollMs: values.WORKER_POLL_INTERVAL,
		leaseMs: values.WORKER_HEARTBEAT_TIMEOUT,
		comfyuiSilenceMs: values.WORKER_COMFYUI_SILENCE,
		drainMs: values.WORKER_DRAIN_TIMEOUT,
		outputsPath: values.OUTPUTS_PATH,
		statePath: values.WORKER_STATE_PATH,
		vramMarginMb: values.WORKER_VRAM_MARGIN,
		vramDefaultMb: values.WORKER_VRAM_DEFAULT,
		healthHost: values.WORKER_HEALTH_HOST,
		healthPort: values.WORKER_HEALTH_PORT,
		runHost: values.WORKER_RUN_HOST,
		runPort: values.WORKER_RUN_PORT,
		logLevel: values.LOG_LEVEL,
	}
}

async function readToken(value: string | undefined, file: string | undefined): Promise<Secret | undefined> {
	if (value !== undefined && file !== undefined)
		throw refused("WORKER_TOKEN and WORKER_TOKEN_FILE are both set: one is enough")
	if (file === undefined) return value === undefined ? undefined : tokenOf(value, "WORKER_TOKEN")
	const text = await readFile(file, "utf8").catch((error) => {
		throw refused(`WORKER_TOKEN_FILE can't be read: ${messageOf(error)}`)
	})
	return tokenOf(text.trim(), `WORKER_TOKEN_FILE ${file}`)
}

function tokenOf(text: string, where: string): Secret {
	// What doesn't fit into a header would make fetch throw with the value in its message.
	if (!/^[\x21-\x7e]+$/.test(text)) throw refused(`${where} is empty or holds characters that no token has`)
	return new Secret(text)
}

const refused = (problem: string) =>
	new OperatorError(`the worker agent's environment: ${problem}`, {
		exitCode: exitCodes.usage,
		hint: "docs/worker-agent.md lists the variables",
	})
