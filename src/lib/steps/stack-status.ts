// How the stack is: every container against what it should be, the queue, the door. Only looks.
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import type { ContainerFacts } from "../plan/events.ts"
import { type Finding, needed, type Plan, type Step, satisfied } from "../plan/step.ts"
import { type Expected, projectName } from "../stack/docker.ts"
import { askDoor } from "../stack/front.ts"
import { type Container, isUp, judge } from "../stack/health.ts"
import { askQueueManager } from "../stack/queue-health.ts"
import { type Service, servicesOf } from "../stack/services.ts"
import type { StepContext } from "./context.ts"
import type { OpenStack } from "./stack.ts"
import { readsOlderFiles } from "./stack-container.ts"
import { precondition } from "./stack-engine.ts"
import { hostNginxState } from "./stack-nginx.ts"

/** Checks alone: containers, queue manager, the door with its certificate. */
export function planStatus(context: StepContext, open: OpenStack): Plan {
	return {
		command: "status",
		environment: context.environment.name,
		host: context.hostConfiguration.name,
		place: context.place,
		steps: [
			precondition("docker", "Docker", async () => {
				const { size } = await open.docker.look()
				return satisfied(`answers: ${size === 1 ? "1 container" : `${size} containers`}`)
			}),
			// Side by side: none of them waits for another's answer.
			...[
				containersStep(context, open),
				queueStep(context, open),
				// A GPU host has no door.
				...(open.stack.role === "app" ? [doorStep(context, open)] : []),
			].map((step) => ({
				...step,
				lane: step.id,
				requires: ["docker"],
			})),
		],
		next: ({ exitCode }) =>
			exitCode === exitCodes.incomplete ? `comfyume start ${context.spoken} --dry-run` : undefined,
	}
}

const checkOnly = (id: string, title: string, check: Step["check"]): Step => ({
	...{ id, title, check },
	apply: () => Promise.reject(new Error("status changes nothing")),
})

/** Every container is as it should be. Only looks. */
export const containersStep = (context: StepContext, open: OpenStack): Step =>
	checkOnly("containers", "Containers", async (report): Promise<Finding> => {
		// A GPU worker is expected where there is one.
		const all = servicesOf(open.stack, { gpu: true })
		const images = [...new Set(all.map(({ image }) => image))]
		const [containers, expected] = await Promise.all([
			open.docker.look(),
			open.docker.expected(images).catch((error: unknown): Expected => {
				if (!(error instanceof OperatorError) || error.exitCode === exitCodes.unreachable) throw error
				report.warn(`whether configurations and images are current can't be said: ${messageOf(error)}`)
				return { hashes: new Map(), images: new Map() }
			}),
		])
		const wanted = all.filter(
			(service) => isKnown(open.services, service) || containers.has(service.container),
		)
		const facts = [
			...(await Promise.all(
				wanted.map(async (service) => {
					const container = containers.get(service.container)
					const filesChanged = await readsOlderFiles(open, service, container)
					return factsOf(service, container, { ...expected, filesChanged })
				}),
			)),
			...strays(containers, all),
		]
		for (const container of facts) report.container(container)
		if (!open.rendered)
			return needed(
				open.stack.role === "worker" ? "not every worker has a token" : "nobody is in the roster",
				`comfyume generate-users ${context.spoken}`,
			)
		const wrong = facts.filter(({ right }) => !right)
		if (wrong.length === 0) return satisfied(`all ${facts.length} are healthy and current`)
		const missing = wrong.filter(({ state }) => state === "missing").length
		return needed(
			`${wrong.length} of ${facts.length} ${wrong.length === 1 ? "is" : "are"} not right${missing === 0 ? "" : `, ${missing} of them missing`}`,
			`comfyume start ${context.spoken}`,
		)
	})

const isKnown = (services: readonly Service[], { name }: Service) =>
	services.some((service) => service.name === name)

function factsOf(
	service: Service,
	container: Container | undefined,
	{ hashes, images, filesChanged }: Expected & { filesChanged: boolean },
): ContainerFacts {
	const wanted = { hashes: hashes.get(service.name), imageId: images.get(service.image), filesChanged }
	const foreign = container !== undefined && container.project !== projectName
	return {
		...seen(service.container, container),
		service: service.name,
		expected: true,
		...judge(container, wanted),
		...(foreign
			? {
					right: false,
					because: `it belongs to ${container.project ?? "no compose project"}, not to ${projectName}`,
				}
			: {}),
	}
}

/** Containers of the project that run and are no part of the stack any more: a removed user's. */
function strays(containers: ReadonlyMap<string, Container>, all: readonly Service[]): ContainerFacts[] {
	return [...containers.values()]
		.filter(
			(container) =>
				container.project === projectName &&
				isUp(container) &&
				!all.some((service) => service.container === container.name),
		)
		.map((container) => ({
			...seen(container.name, container),
			...{ expected: false, right: false, because: "it runs, and is no part of the stack (any more)" },
		}))
}

function seen(name: string, container: Container | undefined) {
	const since =
		container === undefined ? undefined : isUp(container) ? container.startedAt : container.finishedAt
	return {
		container: name,
		state: container?.state ?? "missing",
		health: container?.health ?? "none",
		restarts: container?.restarts ?? 0,
		...(since === undefined ? {} : { since: since.toISOString() }),
	}
}

/** The queue manager answers where this host finds it, and is healthy. Only looks. */
export const queueStep = (context: StepContext, { stack }: OpenStack): Step =>
	checkOnly("queue", "Queue manager", async (): Promise<Finding> => {
		const asked = await askQueueManager(stack, context)
		const hint =
			stack.role === "worker"
				? `tailscale ping ${stack.configuration.vpnAddress}; comfyume status of the app server`
				: `comfyume logs queue-manager ${context.spoken}`
		if ("why" in asked) return needed(`${asked.address} gives no answer: ${asked.why}`, hint)
		const { status, redis_connected: connected } = asked.health
		const { queue_depth, workers_active, inference_mode: mode = "?" } = asked.health
		const [depth, workers] = [queue_depth ?? 0, workers_active ?? 0]
		const said = `${depth} waiting, ${workers === 1 ? "1 worker" : `${workers} workers`}, ${mode}`
		return status === "healthy"
			? satisfied(said)
			: needed(`${status}: ${connected === false ? "Redis is not connected" : said}`, hint)
	})

const dayMs = 86_400_000
/** Below this a renewal has not happened that should have. */
const leastDays = 14

const doorStep = (context: StepContext, open: OpenStack): Step =>
	checkOnly("door", "Door", async (report): Promise<Finding> => {
		const { stack } = open
		const { https: port } = stack.configuration.ports
		const where = `https://${stack.domain}${port === 443 ? "" : `:${port}`}`
		const hint = stack.hasNginx ? `comfyume start ${context.spoken} --only nginx` : "systemctl status nginx"
		const answer = await askDoor({ domain: stack.domain, port, path: "/health/ping", signal: context.signal })
		if (typeof answer === "string") return needed(`${where} gives no answer here: ${answer}`, hint)
		if (answer.status !== 200 || answer.body.trim() !== "healthy")
			return needed(`${where}/health/ping answers ${answer.status}`, hint)
		if (!stack.hasNginx && !(await hostNginxState(context, open)).enabled)
			return needed("nginx.service would not come back after a reboot", `comfyume start ${context.spoken}`)
		const days =
			answer.validTo === undefined
				? undefined
				: Math.floor((answer.validTo.getTime() - context.now().getTime()) / dayMs)
		const left = days === undefined ? "" : `, certificate valid for ${days} days`
		if (days !== undefined && days < leastDays)
			return needed(
				days < 0
					? `the certificate of ${stack.domain} ended ${-days} days ago`
					: `the certificate of ${stack.domain} ends in ${days} days`,
				`openssl x509 -noout -dates -in ${stack.configuration.paths.certificates}/cert.pem`,
			)
		// A self-signed beginning works, and browsers warn of it.
		if (answer.untrusted !== undefined)
			report.note(`browsers don't trust the certificate: ${answer.untrusted}`)
		return satisfied(`${where} answers${left}`)
	})
