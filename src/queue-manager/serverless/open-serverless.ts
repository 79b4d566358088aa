// Puts together what INFERENCE_MODE=serverless needs: endpoints, threads for the share, the transport and its runner.
import { randomBytes } from "node:crypto"
import { setTimeout as pause } from "node:timers/promises"
import { exitCodes, OperatorError } from "../../lib/errors.ts"
import { activeEndpoint, configuredEndpoints, type Environment } from "../environment.ts"
import { openFilePool } from "../outputs/file-pool.ts"
import { planOutputs } from "../outputs/prefix.ts"
import { type SettleTimes, settleTimes } from "../outputs/settle.ts"
import { leaseMs, type Service } from "../service.ts"
import { openEndpoints } from "../transports/endpoints.ts"
import { heldRequest } from "../transports/held-request.ts"
import { type SharedFilesystemOptions, sharedFilesystem } from "../transports/shared-filesystem.ts"
import { type EndpointTrust, watchEndpoints } from "./endpoint-watch.ts"
import { startRunner } from "./runner.ts"

export type EndpointView = EndpointTrust & { name: string; isActive: boolean; running: number; slots: number }

export type Serverless = {
	/** @throws {WorkflowRefused} before a job costs a GPU */
	checkWorkflow(workflow: Buffer): void
	endpoints(): Promise<EndpointView[]>
	/** Threads that a hung share holds. */
	stuck(): number
	close(mostMs: number): Promise<void>
}

/**
 * How long files must be quiet. `SFS_SETTLE_TIME` can make these times longer and not shorter: they are what was found
 * to be safe.
 */
export function settleTimesOf({ SFS_SETTLE_TIME }: Pick<Environment, "SFS_SETTLE_TIME">): SettleTimes {
	const atLeast = (ms: number) => Math.max(ms, SFS_SETTLE_TIME * 1000)
	return {
		...settleTimes,
		pictureMs: atLeast(settleTimes.pictureMs),
		filmMs: atLeast(settleTimes.filmMs),
		unknownMs: atLeast(settleTimes.unknownMs),
	}
}

/** How long a job may take. Who holds a request for it is answered before nginx's 600 s; the job goes on. */
export const maxWaitMsOf = (config: ReadonlyMap<string, string>) =>
	Number(config.get("max_wait") ?? 600) * 1000

/** Sees whether the environment has what serverless mode needs. @throws {OperatorError} that shows no address */
export function checkServerless(environment: Environment): {
	configured: ReturnType<typeof configuredEndpoints>
	outputsRoot: string
} {
	const configured = configuredEndpoints(environment)
	const wrong = [...configured].find(([, url]) => !/^https?:\/\//.test(url) || !URL.canParse(url))
	const { OUTPUTS_PATH: outputsRoot } = environment
	if (!configured.has(environment.SERVERLESS_ACTIVE) || wrong !== undefined || outputsRoot === undefined) {
		throw new OperatorError(
			"INFERENCE_MODE=serverless lacks an address or OUTPUTS_PATH, or an address is none",
			{
				exitCode: exitCodes.usage,
				hint: "set OUTPUTS_PATH, and SERVERLESS_ENDPOINT (or the one that SERVERLESS_ACTIVE names) to https://…",
			},
		)
	}
	return { configured, outputsRoot }
}

/** Starts it. @throws {OperatorError} when the environment lacks what it needs */
export function openServerless(
	service: Omit<Service, "serverless" | "workerOutputs">,
	log: Service["log"],
): Serverless {
	const { environment, queue, metrics, now } = service
	const { SFS_OUTPUT_DIR: shareRoot } = environment
	const { configured, outputsRoot } = checkServerless(environment)
	const slots = environment.SERVERLESS_SLOTS
	const looking = openFilePool({ name: "the share" })
	const delivering = openFilePool({ name: "the share or the outputs" })
	const endpoints = openEndpoints(
		// How many jobs each may have is counted in Redis, for all queue managers together.
		[...configured].map(([name, url]) => ({
			...{ name, url, key: environment.SERVERLESS_API_KEY },
			slots: Number.MAX_SAFE_INTEGER,
		})),
		environment.SERVERLESS_ACTIVE,
	)
	const pollMs = environment.SFS_POLL_INTERVAL * 1000
	const options: SharedFilesystemOptions = {
		endpoints,
		files: looking.files,
		deliveryFiles: delivering.files,
		records: queue.deliveries,
		clock: { nowMs: now, wait: async (ms, signal) => void (await pause(ms, undefined, { signal })) },
		randomId: () => randomBytes(8).toString("hex"),
		shareRoot,
		outputsRoot,
		coldTickMs: pollMs,
		tickMs: Math.min(500, pollMs),
		times: settleTimesOf(environment),
		say: (event) => {
			if (event.event === "delivered") metrics.deliveryLag(event.lagMs / 1000)
			else if (event.event === "quarantined") metrics.quarantined()
			const level = event.event === "delivered" || event.event === "first-file" ? "debug" : "warn"
			log[level](event, "outputs")
		},
	}
	const shared = sharedFilesystem(options)
	const transport = environment.SERVERLESS_TRANSPORT === "held" ? heldRequest(options, shared) : shared
	const trust = watchEndpoints(transport.preflight, { log, now, onSettled: () => undefined })
	const active = async () => {
		const { config } = await service.status()
		return activeEndpoint(environment, config.get("endpoint"))
	}
	const runner = startRunner({
		...{ queue, hub: service.hub, metrics, transport, log, now, slots, trust },
		leaseMs: leaseMs(environment, true),
		jobTimeoutMs: environment.JOB_TIMEOUT * 1000,
		async settings() {
			// Asked anew each time: who has switched to another endpoint means the very next job.
			const config = await queue.configure({})
			return { endpoint: activeEndpoint(environment, config.get("endpoint")), maxWaitMs: maxWaitMsOf(config) }
		},
	})

	return {
		checkWorkflow(workflow) {
			const parsed = JSON.parse(workflow.toString("utf8")) as Record<string, unknown>
			planOutputs(parsed, { job: "checked", attempt: 1, createdAt: new Date(0) })
		},
		async endpoints() {
			const chosen = await active()
			return Promise.all(
				[...configured.keys()].map(async (name) => ({
					...{ name, isActive: name === chosen, slots },
					running: await queue.onEndpoint(name),
					...trust.of(name),
				})),
			)
		},
		stuck: () => looking.stuck() + delivering.stuck(),
		async close(mostMs) {
			await runner.close(mostMs)
			await Promise.race([
				Promise.all([looking[Symbol.asyncDispose](), delivering[Symbol.asyncDispose]()]),
				pause(500, undefined, { ref: false }),
			])
		},
	}
}
