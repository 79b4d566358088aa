// GPU workers: what each is called in compose, by Docker, by the queue manager and in the env file. One list of names for
// the host that runs them and for the app server, which makes their tokens.
import type { Environment, HostConfiguration } from "../config/environment.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { Secret } from "../secret.ts"

/** Tokens of an older generation are refused by the queue manager. */
export const tokenGeneration = 1

/** The GPU worker that is started beside the stack, with the profile gpu. */
export const workerName = "worker-1"

/** On one host, as the configuration's schema has it. */
export const mostWorkers = 3

export type Worker = {
	/** From 1 on. */
	number: number
	/** What the queue manager calls it: no other in the environment is called so. */
	id: string
	/** ComfyUI's. */
	service: string
	container: string
	agent: { service: string; container: string }
	/** Its own network: ComfyUI and the agent beside it. */
	network: string
	/** Where the agent notes the job at hand. */
	stateVolume: string
	tokenVariable: string
	/** `all`, or this one alone. */
	gpu: "all" | number
}

/** The workers that a host runs; none on an app server. Pure. */
export const workersOf = ({ name, workers }: Pick<HostConfiguration, "name" | "workers">): Worker[] =>
	Array.from({ length: workers }, (_, index) => {
		const number = index + 1
		return {
			number,
			id: `${name}-${number}`,
			service: `worker-${number}`,
			container: `comfy-worker-${number}`,
			agent: { service: `worker-agent-${number}`, container: `comfy-worker-agent-${number}` },
			network: `worker-${number}`,
			stateVolume: `worker-agent-${number}-state`,
			tokenVariable: `WORKER_TOKEN_${number}`,
			// One has the whole machine; several have one GPU each.
			gpu: workers === 1 ? "all" : index,
		}
	})

export type WorkerHost = { name: string; workers: readonly Worker[] }

/** The environment's GPU hosts, each with its workers. Pure. */
export const workerHostsOf = ({ hosts }: Pick<Environment, "hosts">): WorkerHost[] =>
	hosts.flatMap((host) => (host.role === "worker" ? [{ name: host.name, workers: workersOf(host) }] : []))

/** Of a GPU host's tokens on the app server, relative to the stack's directory. */
export const tokensFile = (host: string): string => `workers/${host}.env`

/** The text of that file: to be carried to the host, and given to `generate-users --credentials` there. Pure. */
export const renderTokens = (
	{ name, workers }: WorkerHost,
	tokenOf: (worker: Worker) => string,
): string => `# Written by comfyume generate-users: by these tokens the workers of ${name} claim jobs, and do nothing else.
# Mode 0600, never in git. On ${name}: comfyume generate-users --credentials FILE
${workers.map((worker) => `${worker.tokenVariable}=${tokenOf(worker)}\n`).join("")}`

/**
 * The tokens of a host's workers among an env file's entries. Whether the queue manager takes one can't be seen from
 * here: its key stays on the app server. Whose it is can.
 * @param where the file, for messages
 * @returns variable -> token, of those that are there
 * @throws {OperatorError} (2) for a token that is none, or of another worker; never shows it
 */
export function tokensIn(
	entries: readonly { name: string; value: string }[],
	workers: readonly Worker[],
	where: string,
): ReadonlyMap<string, Secret> {
	const found = new Map<string, Secret>()
	for (const { tokenVariable, id } of workers) {
		const token = entries.find(({ name }) => name === tokenVariable)?.value ?? ""
		if (token === "") continue
		const [, of] = /^worker:([a-zA-Z0-9_.-]{1,100}):\d{1,7}:[A-Za-z0-9_-]{43}$/.exec(token) ?? []
		if (of !== id)
			throw new OperatorError(
				`${where}: ${tokenVariable} is ${of === undefined ? "no worker's token" : `the token of ${of}`}, and has to be that of ${id}`,
				{
					exitCode: exitCodes.usage,
					hint: `take it from ${tokensFile(id.replace(/-\d$/, ""))} in the stack's directory on the app server`,
				},
			)
		found.set(tokenVariable, new Secret(token))
	}
	return found
}
