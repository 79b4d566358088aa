// Is an env file right? Everything at once, and never a value in what is said: these files hold secrets.
import { closest } from "../formats/closest.ts"
import { type EnvFile, readEnvFile } from "../formats/env-file.ts"
import { checkR2Endpoint } from "../formats/r2-endpoint.ts"
import { envVariables, type InferenceMode, inferenceModes, renamedVariables } from "./env-variables.ts"
import { mostWorkers } from "./workers.ts"

export type EnvFinding = {
	kind: "unreadable" | "ambiguous" | "renamed" | "unknown" | "missing" | "wrong" | "contradictory"
	/** 0 where it is about no line. */
	line: number
	message: string
	fix: string
}

/** Every finding about the text of an env file, in the order of its lines. Pure. */
export function lintEnvFile(text: string): EnvFinding[] {
	const file = readEnvFile(text)
	const named = new Map(file.entries.map((entry) => [entry.name, entry]))
	const findings: EnvFinding[] = [
		...file.problems.map((problem) => ({ kind: "unreadable" as const, ...problem })),
		...file.notes.map((note) => ({ kind: "ambiguous" as const, ...note })),
		...file.entries.flatMap(
			({ name, value, line }): EnvFinding[] =>
				nameFindings(name, line, named) ?? valueFindings(name, value, line),
		),
		...missing(named),
		...outOfPlace(named),
		...contradictions(file),
	]
	return findings.sort(
		(one, other) => (one.line || Number.MAX_SAFE_INTEGER) - (other.line || Number.MAX_SAFE_INTEGER),
	)
}

type Named = ReadonlyMap<string, { value: string; line: number }>

function nameFindings(name: string, line: number, named: Named): EnvFinding[] | undefined {
	if (envVariables.has(name)) return undefined
	const today = renamedVariables.get(name)
	if (today !== undefined) {
		const both = named.has(today)
		const message = both ? `${name} is ${today} today, which stands here too` : `${name} is ${today} today`
		return [{ kind: "renamed", line, message, fix: both ? `remove ${name}` : `rename it to ${today}` }]
	}
	const meant = closest(name, envVariables.keys())
	const fix = meant === undefined ? "remove it" : `did you mean ${meant}?`
	return [{ kind: "unknown", line, message: `${name} is known to nobody`, fix }]
}

function valueFindings(name: string, value: string, line: number): EnvFinding[] {
	const { pattern } = envVariables.get(name) ?? {}
	// An empty one counts as not set, as compose takes it.
	if (value === "") return []
	if (name === "R2_ENDPOINT")
		return checkR2Endpoint(value).map(({ message, fix }) => ({
			kind: "wrong" as const,
			line,
			message: `${name} ${message}`,
			fix,
		}))
	if (pattern === undefined || pattern.matches.test(value)) return []
	return [{ kind: "wrong", line, message: `${name} is not ${pattern.says}`, fix: `write ${pattern.says}` }]
}

function missing(named: Named): EnvFinding[] {
	const mode = modeOf(named)
	const onWorker = isWorkers(named)
	return [...envVariables].flatMap(([name, variable]): EnvFinding[] => {
		const { meaning, formerly = [] } = variable
		const needed = onWorker ? variable.neededByWorkers && "always" : variable.needed
		if (needed === undefined) return []
		if (needed !== "always" && (mode === undefined || !needed.includes(mode))) return []
		if (isSet(named, name) || formerly.some((old) => isSet(named, old))) return []
		const why = needed === "always" ? "" : `, and INFERENCE_MODE is ${mode}`
		return [
			{ kind: "missing", line: 0, message: `${name} is not set (${meaning})${why}`, fix: `add ${name}=…` },
		]
	})
}

/** On a GPU host: secrets of the app server, and tokens that are too few. */
function outOfPlace(named: Named): EnvFinding[] {
	if (!isWorkers(named)) return []
	const findings = [...named].flatMap(([name, { value, line }]): EnvFinding[] =>
		value !== "" && envVariables.get(name)?.notOnWorkers === true
			? [
					{
						...{ kind: "contradictory" as const, line },
						message: `${name} stands on a GPU host (COMFYUI_MODE=worker), and belongs to the app server alone`,
						fix: `remove it, and make it anew on the app server`,
					},
				]
			: [],
	)
	const count = Number(named.get("NUM_WORKERS")?.value ?? 1)
	for (let number = 1; number <= Math.min(count, mostWorkers); number++)
		if (!isSet(named, `WORKER_TOKEN_${number}`))
			findings.push({
				...{ kind: "missing", line: 0 },
				message: `WORKER_TOKEN_${number} is not set (a worker's token, made on the app server)`,
				fix: "comfyume generate-users --credentials FILE",
			})
	return findings
}

// How each of `SERVERLESS_ACTIVE`'s words is spelled in a variable.
const endpointOf = (active: string) =>
	active === "default"
		? "SERVERLESS_ENDPOINT"
		: `SERVERLESS_ENDPOINT_${active.replaceAll("-", "_").toUpperCase()}`

function contradictions({ entries }: EnvFile): EnvFinding[] {
	const named: Named = new Map(entries.map((entry) => [entry.name, entry]))
	const value = (name: string) => named.get(name)?.value ?? ""
	const mode = modeOf(named)
	const findings: EnvFinding[] = []
	const add = (name: string, message: string, fix: string) =>
		findings.push({ kind: "contradictory", line: named.get(name)?.line ?? 0, message, fix })

	if (mode === "serverless") {
		const wanted = endpointOf(value("SERVERLESS_ACTIVE") || "default")
		if (envVariables.has(wanted) && value(wanted) === "")
			add("SERVERLESS_ACTIVE", `SERVERLESS_ACTIVE chooses ${wanted}, which is not set`, `add ${wanted}=…`)
		if (value("REDIS_BIND_IP") !== "" && !isLoopback(value("REDIS_BIND_IP")))
			add(
				"REDIS_BIND_IP",
				"serverless workers never ask Redis, and it is published beyond this machine",
				"write REDIS_BIND_IP=127.0.0.1",
			)
	} else if (
		mode !== undefined &&
		value("SERVERLESS_ACTIVE") !== "" &&
		value("SERVERLESS_ACTIVE") !== "default"
	)
		add(
			"SERVERLESS_ACTIVE",
			`SERVERLESS_ACTIVE chooses an endpoint, and INFERENCE_MODE is ${mode}`,
			"write INFERENCE_MODE=serverless, or SERVERLESS_ACTIVE=default",
		)
	const bound = value("REDIS_BIND_IP")
	if (bound === "0.0.0.0" || bound === "::")
		add(
			"REDIS_BIND_IP",
			"Redis is published to the whole internet",
			"write 127.0.0.1, or the Tailscale address",
		)
	const forWorkers = value("INFERENCE_SERVER_REDIS_HOST")
	if (isTailscale(forWorkers) && bound !== "" && bound !== forWorkers)
		add(
			"INFERENCE_SERVER_REDIS_HOST",
			"GPU workers look for Redis at an address that it is not published on (REDIS_BIND_IP)",
			"give both the same address",
		)
	if (isTailscale(bound) && forWorkers !== "" && !isTailscale(forWorkers))
		add(
			"REDIS_BIND_IP",
			"Redis is published on the VPN, and GPU workers look for it elsewhere (INFERENCE_SERVER_REDIS_HOST)",
			"give both the same address",
		)
	const users = [...named.keys()].filter((name) => name.startsWith("USER_CREDENTIALS_USER")).length
	if (users > 0 && value("NUM_USERS") !== "" && Number(value("NUM_USERS")) !== users)
		add("NUM_USERS", `NUM_USERS is not the number of credentials here (${users})`, `write NUM_USERS=${users}`)
	if (value("SERVERLESS_API_KEY") !== "" && value("SERVERLESS_API_KEY") === value("VERDA_CLIENT_SECRET"))
		add(
			"SERVERLESS_API_KEY",
			"SERVERLESS_API_KEY is the cloud API's secret",
			"make an inference key in the console",
		)
	return findings
}

function modeOf(named: Named): InferenceMode | undefined {
	const written = named.get("INFERENCE_MODE")?.value
	return inferenceModes.find((mode) => mode === written)
}

const isWorkers = (named: Named) => named.get("COMFYUI_MODE")?.value === "worker"
const isSet = (named: Named, name: string) => (named.get(name)?.value ?? "") !== ""
const isLoopback = (address: string) => address.startsWith("127.")
const isTailscale = (address: string) => /^100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])\./.test(address)
