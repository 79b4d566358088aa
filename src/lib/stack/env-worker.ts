// The env file of a GPU host. It holds the tokens of its own workers and no other secret that the stack is made of: who
// takes the machine over can claim jobs, and nothing else.
import { exitCodes, OperatorError } from "../errors.ts"
import type { Stack } from "./description.ts"
import { readKept, writeEnvironment } from "./env-render.ts"
import { envVariables } from "./env-variables.ts"
import { tokensFile, tokensIn } from "./workers.ts"

export type WorkerEnvironment = {
	/** With its header. */
	text: string
	/** Variables of tokens that were not there, or were others. */
	taken: readonly string[]
	/** What has no business on a GPU host and is left out: names. */
	dropped: readonly string[]
}

/**
 * The env file's text. Tokens that are there are kept, unless the operator brought others. Pure.
 * @param options.existing the text of the file that is there; "" where there is none
 * @param options.handed what the app server has made: the file as the operator called it, and its entries
 * @throws {OperatorError} (2) when the existing file can't be read line by line, a token is missing or another worker's
 */
export function renderWorkerEnvironment(
	stack: Stack,
	{
		existing,
		handed,
	}: {
		existing: string
		handed?: { where: string; entries: readonly { name: string; value: string }[] }
	},
): WorkerEnvironment {
	const { configuration, workers, services } = stack
	const kept = readKept(stack, existing)
	const own = `${configuration.directory}/${stack.files.environment}`
	// An older file's tokens don't count where new ones were brought, and so can't be wrong.
	const there = [...kept].map(([name, value]) => ({ name, value }))
	const source = handed === undefined ? { where: own, entries: there } : handed
	const tokens = tokensIn(source.entries, workers, source.where)
	const missing = workers.filter(({ tokenVariable }) => !tokens.has(tokenVariable))
	if (missing.length > 0) throw noToken(stack, source.where, missing[0]?.tokenVariable ?? "")
	const values = new Map([
		...following(stack, configuration.vpnAddress ?? ""),
		...[...tokens].map(([name, token]) => [name, token.reveal()] as const),
	])
	const dropped = [...kept.keys()].filter(
		(name) =>
			envVariables.get(name)?.notOnWorkers === true || (/^WORKER_TOKEN_\d+$/.test(name) && !tokens.has(name)),
	)
	for (const name of dropped) kept.delete(name)
	const count = workers.length === 1 ? "1 worker" : `${workers.length} workers`
	return {
		text:
			`# Written by comfyume generate-users: ${count}. What follows from comfyume.yaml is written anew each time;\n` +
			"# tokens and what people put here stay. They are made on the app server, which alone has their key.\n" +
			writeEnvironment(values, kept),
		taken: [...tokens].filter(([name, token]) => kept.get(name) !== token.reveal()).map(([name]) => name),
		dropped,
	}

	function following({ images, frontendPort, domain }: Stack, appServer: string): [string, string][] {
		return [
			["PROJECT_NAME", "comfyume"],
			["DOMAIN", domain],
			["COMFYUI_VERSION", images.worker.split(":")[1] ?? ""],
			["COMFYUI_MODE", "worker"],
			["COMFYUI_PORT", String(frontendPort)],
			["QUEUE_MANAGER_HOST", appServer],
			["QUEUE_MANAGER_PORT", String(services.queueManager.hostPort)],
			["REDIS_HOST", appServer],
			["REDIS_PORT", String(services.redis.hostPort)],
			["INFERENCE_SERVER_REDIS_HOST", appServer],
			["MODELS_PATH", configuration.paths.models],
			["SFS_OUTPUT_DIR", configuration.paths.shareOutputs],
			["INFERENCE_MODE", configuration.inferenceMode],
			["NUM_WORKERS", String(workers.length)],
		]
	}
}

function noToken({ workers, environment }: Stack, where: string, variable: string): OperatorError {
	const host = workers[0]?.id.replace(/-\d$/, "") ?? ""
	return new OperatorError(`${where} has no ${variable}: the queue manager would not know the worker`, {
		exitCode: exitCodes.usage,
		hint:
			`comfyume generate-users --env ${environment} on the app server writes ${tokensFile(host)} beside its stack: ` +
			`carry it here, then comfyume generate-users --env ${environment} --host ${host} --credentials FILE`,
	})
}
