// One container as a step: it runs, healthy, from the image and the configuration that there are now.
import { setTimeout as pause } from "node:timers/promises"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import { type Finding, needed, type Report, type Step, satisfied } from "../plan/step.ts"
import { type Docker, type Expected, projectName } from "../stack/docker.ts"
import { type Container, hopeless, isUp, judge } from "../stack/health.ts"
import { describeHolder, haveChangedSince, holderOf, requirePlaces } from "../stack/host-places.ts"
import { placesOf, readAtStart, type Service } from "../stack/services.ts"
import type { StepContext } from "./context.ts"
import type { OpenStack } from "./stack.ts"

export type Starting = {
	context: StepContext
	open: OpenStack
	/** Asked once for all steps: nothing that it depends on changes during a run. */
	expected: () => Promise<Expected>
	/** How long a container may take until it is healthy. */
	deadlineMs: number
	/** Images that are missing are built by steps before. */
	builds: boolean
}

export const containerTitle = ({ name, user }: Pick<Service, "name" | "user">) =>
	user ? `frontend of ${name}` : name

/** Its container is started, or started anew where image or configuration are older, and is waited for. */
export function startContainer(starting: Starting, service: Service): Omit<Step, "id" | "title"> {
	const find = () => findContainer(starting, service)
	return {
		async check(): Promise<Finding> {
			const { container, wanted } = await find()
			const { right, because } = judge(container, wanted)
			if (right) return satisfied(because)
			await requireStartable(starting, service, container)
			return needed(because)
		},
		apply: async (report) => {
			const { container, wanted } = await find()
			// A container that is sick stays so when it is told to run.
			const stays = container === undefined || judge(container, wanted).right
			const recreate = !stays && (!isStarting(container) || wanted.filesChanged)
			await bringUp(starting, service, { recreate, report })
		},
	}
}

// Compose starts what was stopped, and makes anew what is outdated, by itself.
const isStarting = ({ state, health }: Container) =>
	state === "exited" || state === "created" || (state === "running" && health === "starting")

/** Its container is made anew, whatever it is like now, and is waited for. */
export function restartContainer(starting: Starting, service: Service): Omit<Step, "id" | "title"> {
	let before: string | undefined
	let asked = true
	return {
		async check(): Promise<Finding> {
			const { container, wanted } = await findContainer(starting, service)
			const { right, because } = judge(container, wanted)
			if (!asked && container?.id !== before) return right ? satisfied(because) : needed(because)
			await requireStartable(starting, service, container)
			before = container?.id
			return needed(right ? "it is healthy, and is started anew" : because)
		},
		apply: async (report) => {
			asked = false
			await bringUp(starting, service, { recreate: true, report })
		},
	}
}

async function findContainer({ open, expected }: Starting, service: Service) {
	const [containers, { hashes, images }] = await Promise.all([open.docker.look(), expected()])
	const container = containers.get(service.container)
	return {
		container,
		wanted: {
			hashes: hashes.get(service.name),
			imageId: images.get(service.image),
			filesChanged: await readsOlderFiles(open, service, container),
		},
	}
}

/** Whether a container that runs has read files of the stack that were written anew since. */
export const readsOlderFiles = async (
	{ stack }: Pick<OpenStack, "stack">,
	service: Service,
	container: Container | undefined,
): Promise<boolean> =>
	container !== undefined &&
	isUp(container) &&
	(await haveChangedSince(readAtStart(stack, service), container.startedAt))

/** Everything that Docker would stumble over, said before and in words. */
async function requireStartable(
	{ context, open, expected, builds }: Starting,
	service: Service,
	container: Container | undefined,
): Promise<void> {
	if (container !== undefined && container.project !== projectName)
		throw new OperatorError(
			`${service.container} is there and belongs to ${container.project === undefined ? "no compose project" : `the compose project ${container.project}`}`,
			{
				exitCode: exitCodes.refusedByGuard,
				hint: `docker stop ${service.container} && docker rename ${service.container} old-${service.container}`,
			},
		)
	const { images } = await expected()
	if (!builds && !images.has(service.image) && service.image.startsWith("comfyume-"))
		throw new OperatorError(`there is no image ${service.image} on ${context.hostConfiguration.name}`, {
			hint: `comfyume start ${context.spoken} --build`,
		})
	await requirePlaces(placesOf(open.stack, service))
	if (container !== undefined && isUp(container)) return
	for (const port of service.ports) {
		const holder = await holderOf(context.host, port)
		if (holder !== undefined) throw await portTaken(open.docker, port, holder)
	}
}

async function portTaken(
	docker: Docker,
	port: number,
	holder: NonNullable<Awaited<ReturnType<typeof holderOf>>>,
): Promise<OperatorError> {
	const publisher = holder.program === "docker-proxy" ? await docker.publisherOf(port) : undefined
	const by = publisher === undefined ? describeHolder(holder) : `the container ${publisher}`
	return new OperatorError(`port ${port} is taken by ${by}`, {
		hint:
			publisher !== undefined
				? `docker stop ${publisher}`
				: holder.unit === undefined
					? `ss -ltnp 'sport = :${port}'`
					: `systemctl disable --now ${holder.unit}`,
	})
}

/**
 * Starts it and waits until it is healthy.
 * @throws {OperatorError} when it never will be, or isn't in time; its last lines have been told
 */
export async function bringUp(
	starting: Starting,
	service: Service,
	{ recreate, report }: { recreate: boolean; report: Report },
): Promise<void> {
	const { open, context } = starting
	try {
		await open.docker.up(service.name, { recreate })
		await waitForHealth(starting, service)
	} catch (error) {
		if (context.signal.aborted) throw error
		await tellLastLines(open.docker, service, report)
		throw error
	}
}

async function waitForHealth({ open, context, deadlineMs }: Starting, service: Service): Promise<void> {
	const startedAtMs = performance.now()
	let before: number | undefined
	for (;;) {
		const container = (await open.docker.look()).get(service.container)
		before ??= container?.restarts ?? 0
		if (container !== undefined && container.state === "running" && container.health === "healthy") return
		const why = hopeless(container, before)
		const late = performance.now() - startedAtMs > deadlineMs
		if (why !== undefined || late)
			throw new OperatorError(
				`${service.container} is not healthy${why === undefined ? ` after ${Math.round(deadlineMs / 1000)} s: ${judge(container, {}).because}` : `: ${why}`}`,
				{ hint: `comfyume logs ${service.name} ${context.spoken}` },
			)
		await pause(250, undefined, { signal: context.signal })
	}
}

const shownLines = 20

/** The last lines of its log, as warnings: they are why something failed, and are also said when all else is quiet. */
async function tellLastLines(docker: Docker, { container }: Service, report: Report): Promise<void> {
	try {
		for (const line of await docker.lastLines(container, shownLines)) report.warn(`log: ${line}`)
	} catch (error) {
		report.note(`its log can't be read: ${messageOf(error)}`)
	}
}
