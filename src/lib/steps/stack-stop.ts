// Stopping the stack: those who are served first, what they need last. Nothing is removed, no volume and no network.

import { stackOf } from "../config/environment.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { closest } from "../formats/closest.ts"
import { needed, type Plan, type Step, satisfied } from "../plan/step.ts"
import { type Docker, dockerOf, projectName } from "../stack/docker.ts"
import { type Container, isUp } from "../stack/health.ts"
import { userNumber } from "../stack/roster.ts"
import { mostWorkers } from "../stack/workers.ts"
import type { StepContext } from "./context.ts"
import { containerTitle } from "./stack-container.ts"

// Users are served through these; the last one keeps what the others still write.
const order = [
	// Of a GPU host: an agent hands its job back before its ComfyUI goes.
	...Array.from({ length: mostWorkers }, (_, index) => `worker-agent-${index + 1}`),
	...Array.from({ length: mostWorkers }, (_, index) => `worker-${index + 1}`),
	...["worker-agent", "worker", "nginx", "admin", "auth-gate", "queue-manager", "redis"],
]

// A `docker stop` is a process of its own, and there may be hundreds of users.
const laneOf = (index: number) => `users ${index % 20}`

const nameOf = (container: string) => container.replace(/^comfy-/, "")

/** One of ours: by its project, or, where it was started in another way, by a name that only the stack has. */
function isOurs({ name, project }: Container): boolean {
	if (project !== undefined) return project === projectName
	const short = nameOf(name)
	return order.includes(short) || userNumber(short) !== undefined
}

/**
 * Stops containers in an order in which nobody loses what he needs: users side by side, the door, the queue manager
 * (it drains), Redis. Looks at what there is and reads no file: also what is in no compose file any more is stopped.
 * @param named users and services; all when empty
 */
export async function planStop(context: StepContext, named: readonly string[]): Promise<Plan> {
	const docker = dockerOf(context.host, stackOf(context.environment).directory)
	const ours = [...(await docker.look()).values()].filter(isOurs)
	const names = ours.map(({ name }) => nameOf(name))
	const wanted = named.length === 0 ? names : named.map((name) => requireThere(nameOf(name), names))
	const users = wanted.filter((name) => !order.includes(name)).sort()
	const services = order.filter((name) => wanted.includes(name))
	const steps = [
		...users.map((name, index): Step => ({ ...stopContainer(docker, name), lane: laneOf(index) })),
		...services.map((name): Step => {
			// Redis stays for one that could not be stopped: it still writes.
			const requires = name === "redis" && services.includes("queue-manager") ? ["queue-manager"] : []
			return { ...stopContainer(docker, name), requires }
		}),
	]
	const start = `comfyume start ${context.spoken}${named.length === 0 ? "" : ` --only ${wanted.join(",")}`}`
	const again = `comfyume stop ${context.spoken}${named.map((name) => ` ${name}`).join("")}`
	return {
		command: "stop",
		environment: context.environment.name,
		host: context.hostConfiguration.name,
		place: context.place,
		steps,
		next: ({ exitCode, dryRun }) => (dryRun || exitCode !== exitCodes.done ? again : start),
	}
}

function requireThere(name: string, there: readonly string[]): string {
	if (there.includes(name)) return name
	// A stopped world has no containers: what could be there is no mistake.
	if (order.includes(name) || userNumber(name) !== undefined) return name
	const near = closest(name, [...there, ...order])
	throw new OperatorError(`there is no container comfy-${name}`, {
		exitCode: exitCodes.usage,
		hint: near === undefined ? "comfyume status" : `did you mean ${near}?`,
	})
}

function stopContainer(docker: Docker, name: string): Step {
	const container = `comfy-${name}`
	return {
		id: name,
		title: containerTitle({ name, user: userNumber(name) !== undefined }),
		async check() {
			const found = (await docker.look()).get(container)
			if (found === undefined) return satisfied("there is no such container")
			return isUp(found) ? needed(`it is ${found.state}`) : satisfied("stopped")
		},
		// It has as long as its compose file says; `unless-stopped` then leaves it alone at the next boot.
		apply: async () => {
			await docker.run("stop", container)
		},
	}
}

/** What a container may take in an emergency before it is killed. */
const emergencySeconds = 3

/** Every container of the stack at once. Asks Docker alone: works with broken files, and without the lock. */
export function planStopNow(context: StepContext): Plan {
	const docker = dockerOf(context.host, stackOf(context.environment).directory)
	const running = async () =>
		[...(await docker.look()).values()].filter((container) => isOurs(container) && isUp(container))
	return {
		command: "stop",
		environment: context.environment.name,
		host: context.hostConfiguration.name,
		place: context.place,
		steps: [
			{
				id: "now",
				title: "All containers at once",
				async check() {
					const names = (await running()).map(({ name }) => name)
					if (names.length === 0) return satisfied("none of the stack's containers runs")
					const list = names.sort().join(", ")
					return needed(
						`${names.length === 1 ? "1 container runs" : `${names.length} containers run`}: ${list}`,
					)
				},
				async apply() {
					const ids = (await running()).map(({ id }) => id)
					if (ids.length > 0) await docker.run("stop", "--time", String(emergencySeconds), ...ids)
				},
			},
		],
		next: ({ exitCode, dryRun }) =>
			dryRun || exitCode !== exitCodes.done
				? `comfyume stop ${context.spoken} --now`
				: `comfyume start ${context.spoken}`,
	}
}
