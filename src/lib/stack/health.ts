// What `docker inspect` says of containers, and what follows from it: is this one as it should be, and will it ever be?
import { z } from "zod"
import type { ContainerFacts } from "../plan/events.ts"

export type Container = {
	id: string
	name: string
	/** Of its compose labels. */
	project: string | undefined
	service: string | undefined
	configHash: string | undefined
	/** Docker's words. */
	state: string
	health: string
	/** What its last health check printed. */
	probe: string
	/** How often Docker has started it again by itself. */
	restarts: number
	exitCode: number
	/** It was ended because its memory was used up. */
	outOfMemory: boolean
	/** Why Docker could not start it. */
	error: string
	startedAt: Date | undefined
	finishedAt: Date | undefined
	imageId: string
}

const labels = {
	project: "com.docker.compose.project",
	service: "com.docker.compose.service",
	configHash: "com.docker.compose.config-hash",
} as const

const inspectSchema = z.array(
	z.object({
		Id: z.string(),
		Name: z.string(),
		Image: z.string(),
		RestartCount: z.number(),
		State: z.object({
			Status: z.string(),
			ExitCode: z.number(),
			OOMKilled: z.boolean(),
			Error: z.string(),
			StartedAt: z.string(),
			FinishedAt: z.string(),
			Health: z
				.object({ Status: z.string(), Log: z.array(z.object({ Output: z.string() })).nullish() })
				.nullish(),
		}),
		Config: z.object({ Labels: z.record(z.string(), z.string()).nullish() }),
	}),
)

/**
 * Reads what `docker inspect` prints. Pure.
 * @throws when it is something else
 */
export function readContainers(text: string): Container[] {
	return inspectSchema.parse(JSON.parse(text.trim() || "[]")).map(({ State: state, ...all }) => ({
		id: all.Id,
		name: all.Name.replace(/^\//, ""),
		project: all.Config.Labels?.[labels.project],
		service: all.Config.Labels?.[labels.service],
		configHash: all.Config.Labels?.[labels.configHash],
		state: state.Status,
		health: state.Health?.Status ?? "none",
		probe: state.Health?.Log?.at(-1)?.Output.trim() ?? "",
		restarts: all.RestartCount,
		exitCode: state.ExitCode,
		outOfMemory: state.OOMKilled,
		error: state.Error,
		startedAt: readTime(state.StartedAt),
		finishedAt: readTime(state.FinishedAt),
		imageId: all.Image,
	}))
}

// Docker writes the year 1 for never, and nanoseconds.
function readTime(text: string): Date | undefined {
	const time = new Date(text.replace(/(\.\d{3})\d+/, "$1"))
	return Number.isNaN(time.getTime()) || time.getUTCFullYear() < 2000 ? undefined : time
}

/** What it should be; what can't be said is absent, and then isn't asked for. */
export type Wanted = {
	hashes?: readonly string[] | undefined
	imageId?: string | undefined
	/** A file that it read when it started was written since. */
	filesChanged?: boolean
}

/** Runs, or has been told to: `docker stop` has something to do. */
export const isUp = ({ state }: Container): boolean =>
	state === "running" || state === "restarting" || state === "paused"

/**
 * Whether a container is as it should be, and why. Pure.
 * @param container undefined where there is none
 */
export function judge(
	container: Container | undefined,
	{ hashes, imageId, filesChanged = false }: Wanted,
): Pick<ContainerFacts, "right" | "because"> & { imageCurrent?: boolean; configurationCurrent?: boolean } {
	if (container === undefined) return { right: false, because: "there is no such container" }
	const imageCurrent = imageId === undefined ? undefined : container.imageId === imageId
	const asComposed = hashes === undefined ? undefined : hashes.includes(container.configHash ?? "")
	const configurationCurrent = filesChanged ? false : asComposed
	const current = {
		...(imageCurrent === undefined ? {} : { imageCurrent }),
		...(configurationCurrent === undefined ? {} : { configurationCurrent }),
	}
	const trouble = troubleOf(container)
	if (trouble !== undefined) return { right: false, because: trouble, ...current }
	const old = [
		...(configurationCurrent === false ? ["configuration"] : []),
		...(imageCurrent === false ? ["image"] : []),
	]
	if (old.length > 0)
		return { right: false, because: `healthy, with an older ${old.join(" and an older ")}`, ...current }
	return { right: true, because: "healthy", ...current }
}

/** Why it is not healthy; undefined when it is. Pure. */
export function troubleOf(container: Container): string | undefined {
	const { state, health, restarts, probe } = container
	if (state === "restarting") return `it starts again and again: ${times(restarts)}, ${howEnded(container)}`
	if (state === "created")
		return container.error === "" ? "it was never started" : `it can't be started: ${container.error}`
	if (state !== "running") return `${state}: ${howEnded(container)}`
	if (health === "healthy") return undefined
	const again = restarts === 0 ? "" : `, and it was started again ${times(restarts)}`
	if (health === "starting") return `its health check has not passed yet${again}`
	if (health === "none") return `nothing checks its health${again}`
	return `its health check fails${probe === "" ? "" : `: ${lastOf(probe)}`}${again}`
}

const times = (count: number) => (count === 1 ? "once" : `${count} times`)

function howEnded({ exitCode, outOfMemory, error }: Container): string {
	const why = outOfMemory ? " (its memory was used up)" : error === "" ? "" : ` (${error})`
	return `its last run ended with exit code ${exitCode}${why}`
}

const lastOf = (text: string) => text.split("\n").at(-1)?.slice(0, 300) ?? ""

/**
 * Whether waiting can end well: undefined while it may, else why not. Pure.
 * @param restartsBefore how often Docker had started it again when the waiting began
 */
export function hopeless(container: Container | undefined, restartsBefore: number): string | undefined {
	if (container === undefined) return "it is gone"
	// Once may be bad luck while what it needs comes up; twice is a loop.
	if (container.restarts >= restartsBefore + 2)
		return container.state === "running" ? "it starts again and again" : troubleOf(container)
	if (container.state === "exited" || container.state === "dead") return troubleOf(container)
	if (container.state === "running" && container.health === "unhealthy") return troubleOf(container)
	if (container.state === "running" && container.health === "none") return troubleOf(container)
	return undefined
}
