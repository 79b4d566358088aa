// How full the host's file systems are. What is not mounted is never measured as the disk below its mount point.
import { dirname } from "node:path"
import { stackOf } from "../config/environment.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { command, withOptions } from "../host/command.ts"
import { type FileSystem, fileSystemOf } from "../host/disk.ts"
import type { FileSystemFacts } from "../plan/events.ts"
import { needed, type Plan, type Step, satisfied } from "../plan/step.ts"
import { formatBytes } from "../ui/format.ts"
import { type StepContext, workDirectory } from "./context.ts"
import { requireMounted } from "./open.ts"
import { dockerRoot } from "./stack-images.ts"

export type DiskLimits = {
	/** In percent, of bytes as of inodes. */
	warn: number
	critical: number
	/** Critical is a refusal (7): other work begins only after this. */
	block: boolean
}

export type RequiredRoom = { path: string; bytes: number }

type Found = { paths: string[]; facts: FileSystem } | { paths: string[]; trouble: OperatorError }

/** A step per file system, each once, whatever lies on it. */
export async function diskPlan(context: StepContext, limits: DiskLimits): Promise<Plan> {
	const found = await Promise.all((await placesOf(context)).map((path) => measure(context, path)))
	const once: Found[] = []
	for (const one of found) {
		const same = once.find((other) => keyOf(other) === keyOf(one))
		if (same === undefined) once.push(one)
		else same.paths.push(...one.paths)
	}
	return planOf(
		context,
		once.map((one) => fileSystemStep(one, limits)),
	)
}

/** A step per path that must have room, and nothing else. */
export async function requirePlan(
	context: StepContext,
	required: readonly RequiredRoom[],
	limits: DiskLimits,
): Promise<Plan> {
	const steps = required.map(async ({ path, bytes }, index): Promise<Step> => {
		if (!(await isThere(context, path)))
			throw new OperatorError(`there is no ${path} on ${context.host.name}`, {
				exitCode: exitCodes.usage,
				hint: "name a path that there is on the host",
			})
		const found = await measure(context, path)
		return {
			id: `require-${index + 1}`,
			title: `${path} has ${formatBytes(bytes)} free`,
			check: async (report) => {
				if ("trouble" in found) throw found.trouble
				report.fileSystem({ ...shown(found.facts), paths: [path], level: levelOf(found.facts, limits) })
				const { freeBytes, source } = found.facts
				const says = `${formatBytes(freeBytes)} are free on ${source}`
				if (freeBytes >= bytes) return satisfied(says)
				throw new OperatorError(`${says}, ${formatBytes(bytes)} are needed`, {
					exitCode: exitCodes.noSpace,
					hint: `df -h ${path}; du -xh --max-depth=2 ${path} | sort -h | tail`,
				})
			},
			apply: async () => {},
		}
	})
	return planOf(context, await Promise.all(steps))
}

const keyOf = (found: Found) => ("facts" in found ? found.facts.device : found.trouble.message)

const planOf = (context: StepContext, steps: readonly Step[]): Plan => ({
	command: "disk-check",
	environment: context.environment.name,
	host: context.hostConfiguration.name,
	place: context.place,
	steps,
})

function fileSystemStep(found: Found, limits: DiskLimits): Step {
	const [first = ""] = found.paths
	return {
		id: first,
		title: found.paths.join(", "),
		check: async (report) => {
			if ("trouble" in found) throw found.trouble
			const { facts, paths } = found
			const level = levelOf(facts, limits)
			report.fileSystem({ ...shown(facts), paths, level })
			const inodes =
				facts.inodesUsedPercent === undefined ? "" : `, ${facts.inodesUsedPercent} % of its inodes`
			const says = `${facts.usedPercent} % used${inodes}, ${formatBytes(facts.freeBytes)} free`
			if (level === "warning") report.note(`${says}: more than ${limits.warn} %`)
			if (level !== "critical") return satisfied(says)
			const because = `${says}: more than ${limits.critical} %`
			const hint = `du -xh --max-depth=2 ${first} | sort -h | tail`
			if (limits.block) throw new OperatorError(because, { exitCode: exitCodes.noSpace, hint })
			return needed(because, hint)
		},
		apply: async () => {},
	}
}

const shown = ({ device: _, ...facts }: FileSystem): Omit<FileSystemFacts, "paths" | "level"> => facts

function levelOf(facts: FileSystem, { warn, critical }: DiskLimits): FileSystemFacts["level"] {
	const most = Math.max(facts.usedPercent, facts.inodesUsedPercent ?? 0)
	if (most > critical) return "critical"
	return most > warn ? "warning" : "ok"
}

/** What matters on a host of this environment, the root disk first. */
async function placesOf(context: StepContext): Promise<string[]> {
	const { environment } = context
	const { share, scratch, stack } = environment
	const docker = context.host.standIn ? undefined : await dockerRoot(context.host)
	const paths = stack === undefined ? undefined : stackOf(environment).paths
	const wanted = [
		"/",
		...(share === undefined ? [] : [share.mountPoint]),
		...(scratch === undefined ? [] : [scratch.path]),
		workDirectory,
		...(docker === undefined ? [] : [docker]),
		"/tmp",
		...(paths === undefined ? [] : [paths.outputs, paths.inputs, paths.shareOutputs]),
	]
	return [...new Set(wanted)]
}

/** A directory that is made when it is first needed lies where its parent does. */
async function nearest(context: StepContext, path: string): Promise<string> {
	let at = path
	while (at !== "/" && !isMount(context, at) && !(await isThere(context, at))) at = dirname(at)
	return at
}

const isMount = ({ environment: { share, scratch } }: StepContext, path: string) =>
	path === share?.mountPoint || path === scratch?.path

/** The file system that a path lies on; what should be mounted there must be. */
async function measure(context: StepContext, path: string): Promise<Found> {
	try {
		await requireMountsOf(context, path)
		const at = realPath(context, await nearest(context, path))
		return { paths: [path], facts: await fileSystemOf(context.host, at) }
	} catch (error) {
		if (!(error instanceof OperatorError)) throw error
		context.signal.throwIfAborted()
		return { paths: [path], trouble: error }
	}
}

async function requireMountsOf({ host, environment }: StepContext, path: string): Promise<void> {
	const { share, scratch } = environment
	const isIn = (directory: string) => path === directory || path.startsWith(`${directory}/`)
	if (share !== undefined && isIn(share.mountPoint)) await requireMounted(host, share)
	if (scratch === undefined || !isIn(scratch.path) || host.standIn) return
	if (await host.test(command("findmnt", "--noheadings", "--mountpoint", scratch.path))) return
	throw new OperatorError(`the scratch disk is not mounted at ${scratch.path}`, {
		exitCode: exitCodes.unreachable,
		hint: `mount ${scratch.device} ${scratch.path}`,
	})
}

const isThere = (context: StepContext, path: string) =>
	context.host.test(
		withOptions(command("test", "-e", realPath(context, path)), { timeoutMs: existsTimeoutMs }),
	)

// A share whose server is gone gives no answer either.
const existsTimeoutMs = 20_000

/** A share that a directory stands in for lies on this machine, not below the host's root. */
const realPath = ({ host, environment: { share } }: StepContext, path: string) =>
	share?.filesystem === "directory" && path === share.mountPoint ? path : host.path(path)
