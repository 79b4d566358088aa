// Serverless mode as it runs: queue managers as processes, a real Redis, ComfyUI stand-ins behind the load balancer's
// stand-in, a directory as the share. Quiet times are production's.
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { basename, join } from "node:path"
import type { Comfyui, ComfyuiOptions } from "./comfyui.ts"
import { startComfyui } from "./comfyui.ts"
import { startLoadBalancer } from "./load-balancer.ts"
import { poll } from "./poll.ts"
import { type Ask, clientOf, startQueueManager, type TestQueueManager } from "./queue-manager.ts"
import { startTestRedis } from "./redis.ts"
import { quickTiming } from "./share-world.ts"

/** @param options.otherVolume the GPU's side writes elsewhere */
export async function createServerlessWorld(
	options: { comfyui?: Partial<ComfyuiOptions>; otherVolume?: boolean } = {},
) {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-serverless-"))
	const [share, outputs, other] = ["share", "outputs", "other"].map((name) => join(directory, name)) as [
		string,
		string,
		string,
	]
	for (const path of [share, outputs, other]) mkdirSync(path)
	const redis = await startTestRedis()
	const replicas: Comfyui[] = []
	for (let count = 0; count < 2; count++)
		replicas.push(
			await startComfyui({
				outputDirectory: options.otherVolume === true ? other : share,
				timing: quickTiming,
				wantsUuids: true,
				...options.comfyui,
			}),
		)
	const balancer = await startLoadBalancer(
		replicas.map(({ url }) => url),
		{ key: "made-up-inference-key" },
	)
	const managers: TestQueueManager[] = []
	const list = (user: string) => {
		try {
			return readdirSync(join(outputs, user)).sort()
		} catch {
			return []
		}
	}
	return {
		directory,
		share,
		other,
		redis,
		replicas,
		balancer,
		/** Starts a queue manager on the workshop that all of them share. */
		async manager(
			more: Record<string, string> = {},
			bundle?: string,
		): Promise<{ process: TestQueueManager; ask: Ask; url: string }> {
			const environment = {
				REDIS_HOST: redis.socket,
				WORKSHOP: "serverless",
				INFERENCE_MODE: "serverless",
				SERVERLESS_ENDPOINT: `${balancer.url}/`,
				SERVERLESS_ENDPOINT_B300_SPOT: balancer.url,
				SERVERLESS_API_KEY: "made-up-inference-key",
				OUTPUTS_PATH: outputs,
				SFS_OUTPUT_DIR: share,
				SFS_POLL_INTERVAL: "0.3",
				WORKER_HEARTBEAT_TIMEOUT: "2",
				...more,
			}
			const process = await startQueueManager(environment, bundle === undefined ? {} : { main: bundle })
			managers.push(process)
			return { process, ask: clientOf(process.url), url: process.url }
		},
		list,
		/** Files of a name below the share's own directory. */
		find: (name: string) =>
			readdirSync(share, { recursive: true, encoding: "utf8" })
				.filter((path) => basename(path) === name)
				.map((path) => join(share, path)),
		/** How often prompts were handed to ComfyUI. */
		prompts: () => balancer.seen.filter(({ path, method }) => path === "/prompt" && method === "POST").length,
		async [Symbol.asyncDispose]() {
			for (const manager of managers) await manager[Symbol.asyncDispose]()
			await balancer[Symbol.asyncDispose]()
			for (const replica of replicas) await replica[Symbol.asyncDispose]()
			await redis[Symbol.asyncDispose]()
			rmSync(directory, { recursive: true, force: true })
		},
	}
}

/** Submits, and gives the id. */
export async function submitTo(
	ask: Ask,
	workflow: object,
	more: Record<string, unknown> = {},
): Promise<string> {
	const answer = await ask("POST", "/api/jobs", { user_id: "user001", workflow, ...more })
	if (answer.status !== 201) throw new Error(`submit: ${answer.status} ${answer.text}`)
	return answer.body.id
}

/** Waits until a job has a state, and gives it. */
export async function jobWhen(ask: Ask, id: string, status: string, deadlineMs = 30_000) {
	let last = ""
	await poll(
		async () => {
			const { body, text } = await ask("GET", `/api/jobs/${id}`)
			last = text
			return body.status === status
		},
		{ what: `${id} is ${status}`, deadlineMs },
	).catch((error: Error) => {
		throw new Error(`${error.message}: ${last}`)
	})
	// biome-ignore lint/suspicious/noExplicitAny: tests look into results of every shape
	return JSON.parse(last) as any
}
