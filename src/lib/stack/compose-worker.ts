// GPU workers in compose: one beside the stack, and those of a host of its own. ComfyUI as it is, and an agent beside it that
// asks the queue manager for jobs.
import { after, bind, common, health, inDirectory, nodeProbe, text, type Value } from "./compose-parts.ts"
import { files, type Stack } from "./description.ts"
import { workerName } from "./workers.ts"

type Named = {
	service: string
	container: string
	agent: { service: string; container: string }
	/** WORKER_ID. */
	id: string
	tokenVariable: string
	gpu: "all" | number
	queueManagerUrl: string
	/** ComfyUI's: the agent is in all of them. */
	network: string
	/** The agent's besides, by which it reaches the queue manager. */
	outside: readonly string[]
	stateVolume: string
	modelPaths: string
	/** Services that must be healthy before. */
	needs: { [key: string]: Value }
	profile: { profiles?: readonly string[] }
}

/** A worker and its agent. */
function pair(stack: Stack, named: Named): { [key: string]: Value } {
	const { images, limits, configuration, frontendPort } = stack
	const probe = `import urllib.request as r; r.urlopen("http://127.0.0.1:${frontendPort}/system_stats", timeout=5)`
	const gpus = named.gpu === "all" ? { count: "all" } : { device_ids: [String(named.gpu)] }
	return {
		[named.service]: {
			...common(named.container, images.worker, limits.worker),
			pull_policy: "never",
			...named.profile,
			user: "1000:1000",
			// ComfyUI writes caches and temporary files beside its own code.
			read_only: false,
			deploy: {
				resources: { reservations: { devices: [{ driver: "nvidia", ...gpus, capabilities: ["gpu"] }] } },
			},
			command: [
				"python3",
				"/workspace/ComfyUI/main.py",
				"--listen",
				"0.0.0.0",
				"--port",
				String(frontendPort),
				"--extra-model-paths-config",
				"/etc/comfyume/extra_model_paths.yaml",
				"--output-directory",
				"/outputs",
			],
			volumes: [
				bind({ from: configuration.paths.models, to: "/models", writable: false }),
				bind({ from: configuration.paths.shareOutputs, to: "/outputs", writable: true }),
				bind({ from: named.modelPaths, to: "/etc/comfyume/extra_model_paths.yaml", writable: false }),
			],
			networks: [named.network],
			...named.needs,
			// Not curl: the worker's image has none, and a probe that can't run restarts it for ever.
			healthcheck: health(["python3", "-c", probe]),
		},
		[named.agent.service]: {
			...common(named.agent.container, images.workerAgent, limits.workerAgent),
			pull_policy: "never",
			...named.profile,
			stop_grace_period: "15s",
			environment: {
				QUEUE_MANAGER_URL: named.queueManagerUrl,
				COMFYUI_URL: `http://${named.container}:${frontendPort}`,
				WORKER_ID: named.id,
				WORKER_TOKEN: { variable: named.tokenVariable },
				OUTPUTS_PATH: "/outputs",
			},
			volumes: [
				bind({ from: configuration.paths.shareOutputs, to: "/outputs", writable: true }),
				{ type: "volume", source: named.stateVolume, target: "/var/lib/comfyume-worker-agent" },
			],
			networks: [named.network, ...named.outside],
			depends_on: after(named.service),
			healthcheck: health(nodeProbe("http://127.0.0.1:3001/health")),
		},
	}
}

/** The one beside the stack, on the app server. Off unless asked for: a CPU host has no use for it. */
export const workerBeside = (stack: Stack): { [key: string]: Value } =>
	pair(stack, {
		service: "worker",
		container: "comfy-worker",
		agent: { service: "worker-agent", container: "comfy-worker-agent" },
		id: workerName,
		tokenVariable: "WORKER_TOKEN",
		gpu: "all",
		queueManagerUrl: `http://${stack.services.queueManager.container}:${stack.services.queueManager.port}`,
		network: "control",
		outside: [],
		stateVolume: "worker-agent-state",
		modelPaths: inDirectory(stack, files.modelPaths),
		needs: { depends_on: after("queue-manager") },
		profile: { profiles: ["gpu"] },
	})

/**
 * `compose.worker.yaml`: all of a GPU host. Nothing is published, and ComfyUI has no way out of its own network: its
 * agent alone reaches the queue manager, over the VPN. Pure.
 */
export function renderComposeWorker(stack: Stack): string {
	const { workers, configuration, services } = stack
	const outside = "vpn"
	const pairs = workers.map((worker) =>
		pair(stack, {
			...worker,
			queueManagerUrl: `http://${configuration.vpnAddress}:${services.queueManager.hostPort}`,
			outside: [outside],
			modelPaths: inDirectory(stack, files.workerModelPaths),
			needs: {},
			profile: {},
		}),
	)
	return text({
		name: "comfyume",
		services: Object.assign({}, ...pairs),
		networks: {
			...Object.fromEntries(workers.map(({ network }) => [network, { internal: true }])),
			[outside]: {},
		},
		volumes: Object.fromEntries(workers.map(({ stateVolume }) => [stateVolume, {}])),
	})
}
