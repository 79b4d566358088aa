// Starting the stack: what everything needs first, then users in batches side by side. Waits for health, never for time.
import { command } from "../host/command.ts"
import type { Plan, Step } from "../plan/step.ts"
import type { Stack } from "../stack/description.ts"
import { imageNames } from "../stack/images.ts"
import type { Service } from "../stack/services.ts"
import { certificateToStartWith } from "./certificates.ts"
import type { StepContext } from "./context.ts"
import { spokenWords } from "./heal-options.ts"
import { once } from "./open.ts"
import { type OpenStack, requireRendered, servicesNamed } from "./stack.ts"
import { containerTitle, restartContainer, type Starting, startContainer } from "./stack-container.ts"
import { composeFiles, dockerAnswers, memoryIsEnough, mountsAreThere } from "./stack-engine.ts"
import { type ImageOptions, imageStepId, imageSteps } from "./stack-images.ts"
import { leavesHost, nginxStep } from "./stack-nginx.ts"

export type StartOptions = {
	/** These and what they need; all when empty. */
	only: readonly string[]
	/** How long one container may take until it is healthy. */
	deadlineMs: number
	/** Build images first, from these files. */
	build?: ImageOptions
	/** The command's own words, to be typed again. */
	argv: readonly string[]
}

/**
 * A step per container. Redis, then the queue manager; then side by side the door (auth gate, admin, nginx) and the
 * batches of users, inside of which each waits for the one before. What fails stops those that need it and nobody else.
 */
export async function planStart(context: StepContext, open: OpenStack, options: StartOptions): Promise<Plan> {
	requireRendered(open, context.spoken)
	const wanted = options.only.length === 0 ? open.services : withNeeded(open.services, options.only)
	const starting = startingOf(context, open, options)
	const nginx = open.stack.role === "app" && (options.only.length === 0 || options.only.includes("nginx"))
	// The host's nginx finds the others at ports that they lose with it: if it stays, they stay as they are.
	const switching = nginx && (await leavesHost(starting))
	// nginx doesn't start without one.
	const certificate = nginx
		? [certificateToStartWith({ context, stack: open.stack, docker: open.docker })]
		: []
	const builds = options.build === undefined ? [] : imageSteps(context, open.stack, options.build)
	const mounts = mountsAreThere(context)
	const first = ["docker", ...(mounts === undefined ? [] : [mounts.id]), "files", "memory"]
	const needs = (service: Service) => [
		...first,
		...builds.filter(({ id }) => id === imageOf(open.stack, service)).map(({ id }) => id),
		...(switching ? ["nginx"] : []),
		...service.after.filter((name) => isIn(wanted, name)),
	]
	const laneOf = ({ name, batch }: Service) => {
		if (batch !== undefined) return { lane: `batch ${batch}` }
		const worker = /^worker(?:-agent)?-(\d+)$/.exec(name)?.[1]
		return isDoor(name) ? { lane: "door" } : worker === undefined ? {} : { lane: `worker ${worker}` }
	}
	const stepOf = (service: Service): Step => ({
		id: service.name,
		title: containerTitle(service),
		...laneOf(service),
		requires: needs(service),
		lasting: true,
		...startContainer(starting, service),
	})
	const withoutNginx = wanted.filter(({ name }) => name !== "nginx")
	// The door's lane goes first, so that nginx answers while the users come up.
	const steps = withoutNginx.map(stepOf)
	const firstUser = steps.findIndex(({ lane }) => lane?.startsWith("batch"))
	const doorEnd = firstUser === -1 ? steps.length : firstUser
	const front: Step[] = nginx
		? [
				{
					...nginxStep(starting),
					...(switching ? {} : { lane: "door" }),
					lasting: true,
					requires: [
						...first,
						"certificate-there",
						...(switching ? [] : ["queue-manager", "auth-gate"].filter((name) => isIn(wanted, name))),
					],
				},
			]
		: []
	const containers = switching
		? [...front, ...steps]
		: [...steps.slice(0, doorEnd), ...front, ...steps.slice(doorEnd)]
	const again = `comfyume start ${context.spoken} ${spokenWords(options.argv)}`.trimEnd()
	return {
		command: "start",
		environment: context.environment.name,
		host: context.hostConfiguration.name,
		place: context.place,
		steps: [
			dockerAnswers(open.docker),
			...(mounts === undefined ? [] : [mounts]),
			composeFiles(open, context.spoken),
			memoryIsEnough(open.docker, open.services, wanted, context.spoken),
			...builds.map((step) => ({ ...step, requires: [...(step.requires ?? []), "docker"] })),
			...certificate,
			...containers,
		],
		next: ({ exitCode, dryRun }) => (dryRun || exitCode !== 0 ? again : `comfyume status ${context.spoken}`),
	}
}

/** The id of the step that builds a service's image. */
const imageOf = ({ images }: Stack, { image }: Service): string | undefined => {
	const [name] = imageNames.filter((one) => images[one] === image)
	return name === undefined ? undefined : imageStepId(name)
}

/** The commit of the platform's code on the host, for the images' labels. */
export async function revisionOf({ environment, host }: StepContext): Promise<string> {
	const asked = command("git", "-C", host.path(environment.git.project.path), "rev-parse", "HEAD")
	const { stdout, exitCode } = await host.capture(asked, { allowedExitCodes: [128] })
	return exitCode === 0 ? stdout.trim() : "unknown"
}

const isDoor = (name: string) => name === "auth-gate" || name === "admin" || name === "nginx"
const isIn = (services: readonly Service[], wanted: string) => services.some(({ name }) => name === wanted)

export function startingOf(
	context: StepContext,
	open: OpenStack,
	{ deadlineMs, build }: Pick<StartOptions, "deadlineMs" | "build">,
): Starting {
	const images = open.services.map(({ image }) => image)
	// First asked for by the first container's step: by then the images have been built.
	const expected = once(() => open.docker.expected(images))
	return { context, open, expected, deadlineMs, builds: build !== undefined }
}

/** What was named, and the services that it needs; not the users that merely come before. */
function withNeeded(services: readonly Service[], named: readonly string[]): Service[] {
	const wanted = new Set(
		servicesNamed(
			services,
			named.filter((name) => name !== "nginx" || isIn(services, "nginx")),
		).map(({ name }) => name),
	)
	if (named.includes("nginx")) for (const name of ["queue-manager", "auth-gate"]) wanted.add(name)
	for (const { name, after } of [...services].reverse())
		if (wanted.has(name))
			for (const before of after)
				if (!services.some((service) => service.name === before && service.user)) wanted.add(before)
	return services.filter(({ name }) => wanted.has(name))
}

/** Makes the named containers anew, and waits until they are healthy; users side by side. */
export function planRestart(
	context: StepContext,
	open: OpenStack,
	{ named, deadlineMs }: { named: readonly string[]; deadlineMs: number },
): Plan {
	requireRendered(open, context.spoken)
	const starting = startingOf(context, open, { deadlineMs })
	const services = servicesNamed(open.services, named)
	const mounts = mountsAreThere(context)
	return {
		command: "restart",
		environment: context.environment.name,
		host: context.hostConfiguration.name,
		place: context.place,
		steps: [
			dockerAnswers(open.docker),
			...(mounts === undefined ? [] : [mounts]),
			composeFiles(open, context.spoken),
			...services.map(
				(service, index): Step => ({
					id: service.name,
					title: containerTitle(service),
					...(service.user ? { lane: `users ${index % 5}` } : {}),
					requires: ["docker", ...(mounts === undefined ? [] : [mounts.id]), "files"],
					...restartContainer(starting, service),
				}),
			),
		],
		next: ({ exitCode, dryRun }) =>
			dryRun || exitCode !== 0
				? `comfyume restart ${context.spoken} ${named.join(" ")}`
				: `comfyume status ${context.spoken}`,
	}
}
