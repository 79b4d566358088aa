// The env file of a stack. What follows from the configuration is written anew each time; a secret, once there, stays.
import { exitCodes, OperatorError } from "../errors.ts"
import { readEnvFile } from "../formats/env-file.ts"
import { serviceToken } from "../formats/service-token.ts"
import { Secret } from "../secret.ts"
import { containersOf, type Stack, secretNames } from "./description.ts"
import { envVariables, renamedVariables } from "./env-variables.ts"
import { renderTokens, tokenGeneration, workerName } from "./workers.ts"

// An older Redis password may be shorter than those that are made here.
const leastLength = {
	REDIS_PASSWORD: 20,
	AUTH_COOKIE_SECRET: 32,
	PROXY_SECRET: 32,
	TOKEN_KEY: 32,
	GRAFANA_ADMIN_PASSWORD: 20,
} as const

export type RenderedEnvironment = {
	text: string
	/** Names of the secrets that were made, and of those made anew. */
	made: readonly string[]
	/** The secret for nginx's own file. */
	proxySecret: Secret
	/** For each GPU host the file with its workers' tokens. */
	workerTokens: readonly { host: string; text: string }[]
}

export type EnvironmentOptions = {
	/** The text of the file that is there; "" where there is none. */
	existing: string
	/** Names of secrets to make anew. */
	rotate?: readonly string[]
	/** A new secret of the safe alphabet. */
	makeSecret: () => string
}

/**
 * The env file's text. Pure but for `makeSecret`.
 * @throws {OperatorError} with exit code 2 when the existing file can't be read line by line, or a value can't be written
 */
export function renderEnvironment(
	stack: Stack,
	{ existing, rotate = [], makeSecret }: EnvironmentOptions,
): RenderedEnvironment {
	const kept = readKept(stack, existing)
	const made: string[] = []
	const secrets = new Map<string, string>()
	for (const name of secretNames) {
		const value = rotate.includes(name) ? undefined : kept.get(name)
		if (value === undefined) made.push(name)
		else if (!/^[A-Za-z0-9_-]+$/.test(value) || value.length < leastLength[name])
			// One of them stands in nginx's configuration, one in Redis's: there, other letters mean other things.
			throw new OperatorError(
				`${name} is shorter than ${leastLength[name]} letters, or not of A-Z a-z 0-9 _ -`,
				{
					exitCode: exitCodes.usage,
					hint: `comfyume env render --rotate ${name}`,
				},
			)
		secrets.set(name, value ?? makeSecret())
	}
	const key = new Secret(secrets.get("TOKEN_KEY") ?? "")
	const values = new Map<string, string>([
		...following(stack),
		...secrets,
		["WORKER_TOKEN", serviceToken(key, "worker", workerName, tokenGeneration)],
		...stack.users.map(
			({ id, tokenVariable }) => [tokenVariable, serviceToken(key, "frontend", id, tokenGeneration)] as const,
		),
	])
	return {
		text: writeEnvironment(values, kept),
		made,
		proxySecret: new Secret(secrets.get("PROXY_SECRET") ?? ""),
		workerTokens: stack.workerHosts.map((host) => ({
			host: host.name,
			text: renderTokens(host, ({ id }) => serviceToken(key, "worker", id, tokenGeneration)),
		})),
	}
}

/**
 * What an env file holds, by today's names.
 * @throws {OperatorError} (2) when it can't be read line by line
 */
export function readKept(stack: Stack, existing: string): Map<string, string> {
	const read = readEnvFile(existing)
	const [problem] = read.problems
	if (problem !== undefined)
		throw new OperatorError(`line ${problem.line} of the env file that is there: ${problem.message}`, {
			exitCode: exitCodes.usage,
			hint: `${problem.fix}; comfyume env lint ${stack.configuration.directory}/${stack.files.environment}`,
		})
	return new Map(
		read.entries
			.filter(({ value }) => value !== "")
			.map(({ name, value }) => [renamedVariables.get(name) ?? name, value]),
	)
}

/** What follows from the configuration alone. */
function following(stack: Stack): [string, string][] {
	const { configuration, services, users, redisOption } = stack
	const { paths, ports } = configuration
	const forWorkers = configuration.vpnAddress ?? services.redis.container
	return [
		["PROJECT_NAME", "comfyume"],
		["DOMAIN", stack.domain],
		["SSL_CERT_PATH", `${paths.certificates}/cert.pem`],
		["SSL_KEY_PATH", `${paths.certificates}/key.pem`],
		["USE_HOST_NGINX", String(!stack.hasNginx)],
		["NGINX_HTTP_PORT", String(ports.http)],
		["NGINX_HTTPS_PORT", String(ports.https)],
		["NGINX_CLIENT_MAX_BODY_SIZE", `${configuration.maxBodyMegabytes}M`],
		["COMFYUI_VERSION", stack.images.frontend.split(":")[1] ?? ""],
		["COMFYUI_PORT", String(stack.frontendPort)],
		["QUEUE_MANAGER_HOST", services.queueManager.container],
		["QUEUE_MANAGER_PORT", String(services.queueManager.port)],
		["REDIS_HOST", services.redis.container],
		["REDIS_PORT", String(services.redis.port)],
		["REDIS_BIND_IP", redisOption === "B" ? forWorkers : "127.0.0.1"],
		["INFERENCE_SERVER_REDIS_HOST", forWorkers],
		["NUM_USERS", String(users.length)],
		["USER_ID_PREFIX", "user"],
		["ADMIN_PORT", String(services.admin.port)],
		["ADMIN_USERNAME", configuration.adminName],
		["MODELS_PATH", paths.models],
		["OUTPUTS_PATH", paths.outputs],
		["INPUTS_PATH", paths.inputs],
		["WORKFLOWS_PATH", paths.workflows],
		["SFS_OUTPUT_DIR", paths.shareOutputs],
		["INFERENCE_MODE", configuration.inferenceMode],
	]
}

const header = (containers: number) =>
	`# Written by comfyume env render: ${containers} containers. What follows from comfyume.yaml is written anew each\n` +
	"# time; secrets and what people put here stay. Values in single quotes are taken as they are by compose and shells.\n"

/** Lines in the order of the known variables, in groups; `values` before what was `kept`. Pure. */
export function writeEnvironment(
	values: ReadonlyMap<string, string>,
	kept: ReadonlyMap<string, string>,
): string {
	const lines: string[] = []
	let group = ""
	const all = new Map([...kept, ...values])
	const line = (name: string, about: string) => {
		const value = all.get(name)
		// A token of somebody who left, or a password that belongs elsewhere, is not carried on.
		if (value === undefined || (!values.has(name) && /^(FRONTEND_TOKEN|USER_CREDENTIALS)_USER/.test(name)))
			return
		if (about !== group) lines.push("", `# ${about}`)
		group = about
		lines.push(`${name}=${quoteForEnvFile(name, value)}`)
	}
	for (const [name, variable] of envVariables) line(name, variable.group)
	for (const name of kept.keys()) if (!envVariables.has(name)) line(name, "not known to comfyume")
	return `${lines.slice(1).join("\n")}\n`
}

/**
 * A value as every reader of env files takes it: bare where it is plain, else in single quotes.
 * @throws {OperatorError} with exit code 2 for what no two readers take alike: single quotes, line ends, control letters
 */
export function quoteForEnvFile(name: string, value: string): string {
	if (/^[A-Za-z0-9_./:@,+-]*$/.test(value)) return value
	// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for.
	if (/['\u0000-\u001F\u007F]/.test(value))
		throw new OperatorError(`${name} holds a single quote, a line end or a control letter`, {
			exitCode: exitCodes.usage,
			hint: "compose and shells take such a value differently: choose another one",
		})
	return `'${value}'`
}

/** The header and the text, as the file is written. */
export const environmentFile = (stack: Stack, { text }: Pick<RenderedEnvironment, "text">): string =>
	header(containersOf(stack).length) + text
