// What must hold before any container is started: Docker answers and is new enough, what containers write to is mounted,
// the compose files are there and are what the configuration says, the memory is enough.
import { exitCodes, OperatorError } from "../errors.ts"
import { mountAt } from "../host/mounts.ts"
import { type Finding, type Step, satisfied } from "../plan/step.ts"
import { renderCompose, renderComposeUsers } from "../stack/compose.ts"
import { renderComposeWorker } from "../stack/compose-worker.ts"
import { files, type Stack } from "../stack/description.ts"
import type { Docker } from "../stack/docker.ts"
import { isUp } from "../stack/health.ts"
import { requirePlaces } from "../stack/host-places.ts"
import { requireMemory } from "../stack/memory.ts"
import { composePlaces, type Service } from "../stack/services.ts"
import { readIfThere } from "../stack/write.ts"
import type { StepContext } from "./context.ts"
import { requireMounted } from "./open.ts"
import type { OpenStack } from "./stack.ts"

/** A step that nothing can be done about from here: what is wrong is thrown by its check. */
export const precondition = (id: string, title: string, check: Step["check"]): Step => ({
	id,
	title,
	check,
	// Its check is satisfied or throws.
	apply: async () => {},
})

// `start_interval`, by which a start is quick, came with these.
const leastEngine = 25
const leastCompose = [2, 20, 3] as const

/** Docker answers, and knows all that the compose files ask of it. */
export const dockerAnswers = (docker: Docker): Step =>
	precondition("docker", "Docker", async (): Promise<Finding> => satisfied(await requireEngine(docker)))

/**
 * What answers, in words.
 * @throws {OperatorError} (4) when nothing does, (3) when it is too old for the compose files
 */
export async function requireEngine(docker: Docker): Promise<string> {
	const { version, composeVersion } = await docker.engine()
	if (Number.parseInt(version, 10) < leastEngine)
		throw tooOld(`Docker Engine is ${version}, and ${leastEngine} is needed`, "docker-ce")
	if (isOlder(composeVersion, leastCompose))
		throw tooOld(
			`docker compose is ${composeVersion}, and ${leastCompose.join(".")} is needed`,
			"docker-compose-plugin",
		)
	return `Engine ${version}, compose ${composeVersion}`
}

const tooOld = (message: string, name: string) =>
	new OperatorError(`${message}: the health checks' start_interval`, {
		exitCode: exitCodes.incomplete,
		hint: `apt-get update; apt-get install ${name}`,
	})

/** Compares as far as both are numbers. Pure. */
export function isOlder(version: string, least: readonly number[]): boolean {
	const parts = version.split(".").map((part) => Number.parseInt(part, 10))
	for (const [index, needed] of least.entries()) {
		const part = parts[index] ?? 0
		if (Number.isNaN(part) || part > needed) return false
		if (part < needed) return true
	}
	return false
}

/**
 * What containers write to is mounted, and is this environment's: unmounted, a place is an empty directory of the root
 * disk, which their files would fill. Undefined where nothing is to be mounted.
 */
export function mountsAreThere({ host, environment, spoken }: StepContext): Step | undefined {
	const { share, scratch } = environment
	const disk = host.standIn ? undefined : scratch
	if (share === undefined && disk === undefined) return undefined
	return precondition("mounts", "Share and scratch disk", async (): Promise<Finding> => {
		if (share !== undefined) await requireMounted(host, share)
		if (disk !== undefined && (await mountAt(disk.path)) === undefined)
			throw new OperatorError(`the scratch disk is not mounted at ${disk.path}`, {
				exitCode: exitCodes.unreachable,
				hint: `mount ${disk.path}; or: comfyume restore ${spoken} --only machine`,
			})
		const places = [share?.mountPoint, disk?.path].filter((path) => path !== undefined)
		return satisfied(`mounted: ${places.join(" and ")}`)
	})
}

/** The compose files are what the configuration and the roster come to. */
export const composeFiles = ({ stack }: OpenStack, spoken: string): Step =>
	precondition("files", "Compose files", async (): Promise<Finding> => {
		const places = composePlaces(stack)
		await requirePlaces(places.map((place) => ({ ...place, hint: `${place.hint} ${spoken}` })))
		const { directory } = stack.configuration
		const from = stack.role === "worker" ? "comfyume.yaml" : "comfyume.yaml and the roster"
		for (const [file, text] of renderedCompose(stack))
			if ((await readIfThere(`${directory}/${file}`)) !== text)
				throw new OperatorError(
					`${directory}/${file} is not what ${from} come${stack.role === "worker" ? "s" : ""} to now`,
					{
						exitCode: exitCodes.incomplete,
						hint: `comfyume generate-users ${spoken}`,
					},
				)
		return satisfied(`in ${directory}, as ${from} ${stack.role === "worker" ? "has" : "have"} it`)
	})

const renderedCompose = (stack: Stack): readonly (readonly [file: string, text: string])[] =>
	stack.role === "worker"
		? [[files.composeWorker, renderComposeWorker(stack)]]
		: [
				[files.compose, renderCompose(stack)],
				[files.composeUsers, renderComposeUsers(stack)],
			]

/** What is expected to be used, by those that are to start and those that run already, fits into the machine. */
export const memoryIsEnough = (
	docker: Docker,
	services: readonly Service[],
	wanted: readonly Service[],
	spoken: string,
): Step => ({
	...precondition("memory", "Memory", async (report) => {
		const [{ memoryBytes }, containers] = await Promise.all([docker.knownEngine(), docker.look()])
		const counted = services.filter((service) => {
			const container = containers.get(service.container)
			return wanted.includes(service) || (container !== undefined && isUp(container))
		})
		const { says, tight } = requireMemory(counted, memoryBytes, spoken)
		if (tight !== undefined) report.note(tight)
		return satisfied(says)
	}),
	requires: ["docker"],
})
